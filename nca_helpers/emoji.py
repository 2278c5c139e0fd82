"""Targets: any emoji, or any picture, as a float32 RGBA array premultiplied by alpha.

target = load_emoji("🦎", size=40, padding=16)  # (72, 72, 4)
"""

import contextlib
import io
import os
import re
import sys
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError, features

from nca_helpers.checks import check_integer
from nca_helpers.files import fetch, replace_file

__all__ = ["BUNDLED", "emoji_name", "emoji_url", "load_emoji", "load_image", "render_emoji"]

BUNDLED = ("🦎", "😀", "💥", "👁", "🐠", "🦋", "🐞", "🕸", "🥨", "🎄", "❤️", "👩‍🚀", "🇫🇷")

# The branch `main` of noto-emoji moves its folders; a tag does not.
NOTO_TAG = "v2.048"
NOTO_URL = f"https://raw.githubusercontent.com/googlefonts/noto-emoji/{NOTO_TAG}"
LARGEST_EMOJI = 2**20  # bytes
LARGEST_PICTURE = 2**26  # bytes

# The grammar of Unicode's UTS #51 without U+FE0F. The blocks are wider than today's emoji, so that
# tomorrow's are let through; what no source knows is refused by the sources.
_SKIN_TONES = "\U0001f3fb-\U0001f3ff"
_BLOCKS = "©®‼⁉™ℹ↔-↪⌚-⏺Ⓜ▪-◾☀-➿⤴⤵⬅-⭕〰〽㊗㊙\U0001f000-\U0001f1e5\U0001f200-\U0001faff"
_ELEMENT = f"[{_BLOCKS}][{_SKIN_TONES}]?"
_EMOJI = re.compile(
    "(?P<country>[\U0001f1e6-\U0001f1ff]{2})"
    "|🏴(?P<subdivision>[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6})\U000e007f"
    "|[0-9#*]\u20e3"
    f"|{_ELEMENT}(?:\u200d{_ELEMENT})*"
)


def _parse(emoji: str) -> re.Match:
    match = isinstance(emoji, str) and _EMOJI.fullmatch(emoji.replace("\ufe0f", ""))
    if not match:
        raise ValueError(f"emoji must be a string of exactly one emoji such as '🦎', got {emoji!r}")
    return match


def emoji_name(emoji: str) -> str:
    """Names the file of one emoji as Noto does: its code points in hexadecimal, without U+FE0F.

    For example `emoji_u1f98e.png` for 🦎. What is not exactly one emoji raises ValueError.
    """
    codes = "_".join(f"{ord(character):04x}" for character in _parse(emoji)[0])
    return f"emoji_u{codes}.png"


def emoji_url(emoji: str) -> str:
    """Returns where noto-emoji keeps the picture; flags are named there by their region's code."""
    match = _parse(emoji)
    if match["country"]:
        region = "".join(chr(ord(letter) - ord("🇦") + ord("A")) for letter in match["country"])
    elif match["subdivision"]:
        code = "".join(chr(ord(tag) - 0xE0000) for tag in match["subdivision"]).upper()
        region = f"{code[:2]}-{code[2:]}"
    else:
        return f"{NOTO_URL}/png/128/{emoji_name(emoji)}"
    return f"{NOTO_URL}/third_party/region-flags/png/{region}.png"


def load_emoji(
    emoji: str, size: int = 40, padding: int = 0, offline: bool | None = None
) -> np.ndarray:
    """Loads an emoji as a target to grow.

    Looks among the bundled pictures, then in the cache on disk, then in the repository of Noto
    Color Emoji, and last in an installed Noto Color Emoji font.

    Args:
        emoji: one emoji: several code points, skin tones, flags and keycaps included.
        size: the longer side of the picture, in cells.
        padding: transparent cells on every side.
        offline: True never touches the network; None asks the environment variable
            `NCA_OFFLINE` (1, true, yes or on: offline; 0, false, no, off or nothing: online).

    Returns:
        `(size + 2 * padding, size + 2 * padding, 4)`, float32 in [0, 1], premultiplied by alpha.

    Raises:
        ValueError: an argument or `NCA_OFFLINE` is not what is accepted.
        LookupError: no source has the emoji; lists what was tried and why each source failed.
    """
    name = emoji_name(emoji)
    size, padding = check_integer("size", size, 1), check_integer("padding", padding, 0)
    if offline is None:
        offline = _is_offline()
    elif not isinstance(offline, bool):
        raise ValueError(f"offline must be True, False or None, got {offline!r}")
    sources = {
        "bundled": _bundled,
        "cache": _cached,
        "download": _offline if offline else _downloaded,
        "font": render_emoji,
    }
    failures = [f"emoji={emoji!r} ({name}) was not found; tried"]
    for label, source in sources.items():
        try:
            return _fit(source(emoji), size, padding)
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            failures.append(f"{label}: {error}")
    raise LookupError("\n  ".join(failures))


def load_image(
    source: str | os.PathLike | bytes | Image.Image | np.ndarray, size: int = 40, padding: int = 0
) -> np.ndarray:
    """Loads any picture as a target to grow: its aspect is kept, and it is centred on transparent.

    Args:
        source: a path, an http(s) URL, the bytes of a picture file, a PIL image, or an array
            `(height, width, 3 or 4)`, uint8 or float in [0, 1], with straight alpha. Of an
            animation the first frame is taken; the EXIF orientation is applied.
        size: the longer side of the picture, in cells.
        padding: transparent cells on every side.

    Returns:
        `(size + 2 * padding, size + 2 * padding, 4)`, float32 in [0, 1], premultiplied by alpha.

    Raises:
        ValueError: an argument is not what is accepted, or `source` holds no picture.
        OSError: `source` cannot be read or reached; FileNotFoundError where there is no such file.
    """
    size, padding = check_integer("size", size, 1), check_integer("padding", padding, 0)
    try:
        return _fit(_read(source), size, padding)
    except (OSError, ValueError) as error:
        kinds = (FileNotFoundError, OSError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(
            f"source={source!r:.200} cannot be grown: {error}. Accepted: a path, an http(s) "
            "URL, bytes, a PIL image, or an array (height, width, 3 or 4)"
        ) from error


def render_emoji(emoji: str) -> Image.Image:
    """Draws an emoji with the installed font Noto Color Emoji.

    Returns:
        An RGBA image of 128×128 pixels.

    Raises:
        ValueError: `emoji` is not exactly one emoji.
        LookupError: the font is missing, or has no picture for the emoji.
    """
    match = _parse(emoji)
    if not features.check("raqm"):
        raise LookupError("this Pillow has no raqm, which joins code points to one emoji")
    try:
        # The bitmaps of the font exist in this one size.
        font = ImageFont.truetype("NotoColorEmoji.ttf", 109)
    except OSError as error:
        raise LookupError(f"no usable NotoColorEmoji.ttf is installed ({error})") from error

    def draw(text: str) -> Image.Image:
        # A missing glyph has no height; a sequence that is unknown falls apart and is too wide.
        if font.getbbox(text) != (0, 0, 136, 128):
            raise LookupError(f"{font.path} has no picture for it")
        canvas = Image.new("RGBA", (136, 128))
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        # Pillow blends the colours with the black of the empty canvas: they come premultiplied.
        drawn = Image.frombytes("RGBa", canvas.size, canvas.tobytes()).convert("RGBA")
        return drawn.crop((4, 0, 132, 128))

    picture = draw(match[0])
    # The font draws every unknown flag as one with a question mark; XX is nobody's.
    if (match["country"] or match["subdivision"]) and picture == draw("🇽🇽"):
        raise LookupError(f"{font.path} does not know this flag")
    return picture


def _fit(picture: Image.Image, size: int, padding: int) -> np.ndarray:
    if 0 in picture.size:
        raise ValueError(f"it has zero size, {picture.width}×{picture.height}")
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    # Premultiplied first: the colour of transparent pixels must not bleed into the edges.
    picture = picture.convert("RGBA").convert("RGBa")
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    side = size + 2 * padding
    top, left = (side - height) // 2, (side - width) // 2
    target = np.zeros((side, side, 4), np.float32)
    target[top : top + height, left : left + width] = np.asarray(picture, np.float32) / 255
    # Lanczos overshoots at edges.
    target[..., :3] = np.minimum(target[..., :3], target[..., 3:])
    if not target.any():
        raise ValueError(f"it is fully transparent at size={size}, there is nothing to grow")
    return target


def _decode(data: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    try:
        Image.open(io.BytesIO(data), formats=formats).verify()  # checksums; spends the image
        return _upright(Image.open(io.BytesIO(data), formats=formats))
    except Exception as error:  # a broken file makes Pillow's readers raise almost anything
        detail = "unknown format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"{len(data)} bytes that begin with {data[:16]!r} are no readable "
            f"{' or '.join(formats or ('picture',))} ({detail})"
        ) from error


def _upright(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"no one knows which values of mode {picture.mode} are white")
    return picture.convert("RGBA")


def _read(source: object) -> Image.Image:
    if isinstance(source, Image.Image):
        try:
            return _upright(source)
        except Exception as error:  # it is read from its file only now: see _decode
            raise ValueError(f"it is no readable picture ({error})") from error
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source))
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _decode(fetch(source, LARGEST_PICTURE))
    if isinstance(source, (str, os.PathLike)):
        path = os.path.expanduser(source)
        if not os.path.isfile(path):
            raise FileNotFoundError("there is no such file")
        return _decode(Path(path).read_bytes())
    raise ValueError(f"its type is {type(source).__name__}")


def _from_array(values: np.ndarray) -> Image.Image:
    if values.ndim != 3 or values.shape[-1] not in (3, 4) or values.size == 0:
        raise ValueError(f"its shape is {values.shape}")
    if np.issubdtype(values.dtype, np.floating):
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError("its values are not all in [0, 1]")
        values = np.round(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise ValueError(f"its dtype is {values.dtype}, neither uint8 nor a float in [0, 1]")
    return Image.fromarray(values).convert("RGBA")


def _is_offline() -> bool:
    value = os.environ.get("NCA_OFFLINE", "").lower()
    if value not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
        raise ValueError(
            "the environment variable NCA_OFFLINE must be 1, true, yes or on, or 0, false, no, "
            f"off or empty, got {value!r}"
        )
    return value in ("1", "true", "yes", "on")


def _offline(emoji: str) -> Image.Image:
    raise LookupError("not tried, offline")


def _bundled(emoji: str) -> Image.Image:
    file = resources.files("nca_helpers") / "data" / "emoji" / emoji_name(emoji)
    if not file.is_file():
        raise LookupError(f"only {' '.join(BUNDLED)} come with the package")
    return _decode(file.read_bytes(), ("PNG",))


def _cache_path(emoji: str) -> Path:
    platforms = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}
    root = os.environ.get("XDG_CACHE_HOME") or platforms.get(sys.platform, "~/.cache")
    return Path(root).expanduser() / "nca_helpers" / f"noto-{NOTO_TAG}" / emoji_name(emoji)


def _cached(emoji: str) -> Image.Image:
    path = _cache_path(emoji)
    if not path.is_file():
        raise LookupError(f"no {path}")
    try:
        return _decode(path.read_bytes(), ("PNG",))
    except ValueError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _downloaded(emoji: str) -> Image.Image:
    data = fetch(emoji_url(emoji), LARGEST_EMOJI)
    picture = _decode(data, ("PNG",))
    # The cache is a convenience: where it cannot be written, life goes on without.
    with contextlib.suppress(OSError, RuntimeError):
        replace_file(_cache_path(emoji), data)
    return picture
