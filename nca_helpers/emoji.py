"""Targets: any emoji as a float32 RGBA array premultiplied by alpha."""

import contextlib
import difflib
import os
import re
import sys
import unicodedata
from importlib import resources
from pathlib import Path
from typing import Any
from urllib import parse

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from nca_helpers.checks import check_integer, require, shown
from nca_helpers.files import fetch, replace_file
from nca_helpers.imagefiles import PNG, decode
from nca_helpers.images import to_target

BUNDLED = ("🦎", "😀", "💥", "👁", "🐠", "🦋", "🐞", "🕸", "🥨", "🎄", "❤️", "👩‍🚀", "🇫🇷")

# The branch `main` of noto-emoji moves its folders; a tag does not.
NOTO_TAG = "v2.048"
NOTO_URL = f"https://raw.githubusercontent.com/googlefonts/noto-emoji/{NOTO_TAG}"
LARGEST_EMOJI = 2**20  # bytes

# The grammar of Unicode's UTS #51 without U+FE0F. The blocks are wider than today's emoji, so that
# tomorrow's are let through; what no source knows is refused by the sources.
SKIN_TONES = "[\U0001f3fb-\U0001f3ff]"
_BLOCKS = "©®‼⁉™ℹ↔-↪⌚-⏺Ⓜ▪-◾☀-➿⤴⤵⬅-⭕〰〽㊗㊙\U0001f000-\U0001f1e5\U0001f200-\U0001faff"
_ELEMENT = f"[{_BLOCKS}]{SKIN_TONES}?"
_EMOJI = re.compile(
    "(?P<country>[\U0001f1e6-\U0001f1ff]{2})"
    "|🏴(?P<subdivision>[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6})\U000e007f"
    "|[0-9#*]\u20e3"
    f"|{_ELEMENT}(?:\u200d{_ELEMENT})*"
)
_CODE = r"(?:U\+|0x|\\u\{?|&#x|(?=1f[\da-f]{3}))0{,3}([\da-f]{4,5})"  # As U+1F98E.


def emoji_name(emoji: str) -> str:
    """Names the file of an emoji as Noto does: its code points in hexadecimal, without U+FE0F.

    For example `emoji_u1f98e.png` for 🦎, `emoji_u1f469_200d_1f680.png` for 👩‍🚀.
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


def target_name(source: Any) -> str:
    """Names files after a target that `load_emoji` or `load_image` takes.

    The name is an emoji's Unicode name or code or a picture's own, of letters, digits, "_" and "-",
    at most 60 bytes: `lizard` for 🦎, `my_photo` for `https://example.org/my%20photo.png?token=…`,
    `own_picture` for what has no name.
    """
    try:
        text = _parse(source)[0]
        code = emoji_name(text).removesuffix(".png")
        name = unicodedata.name(text, code).lower() if len(text) == 1 else code
    except ValueError:
        is_path = isinstance(source, str | os.PathLike) and not str(source).startswith("data:")
        text = str(source) if is_path else ""
        path = parse.unquote(parse.urlsplit(text).path if "://" in text else text)
        name = Path(path.replace("\\", "/")).stem
    name = re.sub(r"[^\w-]+", "_", name).strip("_-")
    return name.encode(errors="ignore")[:60].decode(errors="ignore") or "own_picture"


def load_emoji(
    emoji: str, size: int = 40, padding: int = 0, offline: bool | None = None
) -> np.ndarray:
    """Loads an emoji as a target to grow.

    Looks among the bundled pictures, then in the cache on disk, then in the repository of Noto
    Color Emoji, and last in an installed Noto Color Emoji font.

    Args:
        emoji: one emoji: several code points, skin tones, flags and keycaps included. Spaces around
            it do no harm; its name, `:lizard:`, or its code, `U+1F98E`, will do too.
        size: the longer side of the picture, in cells.
        padding: transparent cells on every side.
        offline: True never touches the network; None asks the environment variable
            `NCA_OFFLINE` (1, true, yes or on: offline; 0, false, no, off or nothing: online).

    Returns:
        `(size + 2 * padding, size + 2 * padding, 4)`, float32 in [0, 1], premultiplied by alpha.

    Raises:
        LookupError: no source has the emoji; lists what was tried and why each source failed.
    """
    text, name = _parse(emoji)[0], emoji_name(emoji)
    size, padding = check_integer("size", size, 1), check_integer("padding", padding, 0)
    offline = _is_offline() if offline is None else offline
    require(isinstance(offline, bool), "offline", "True, False or None", offline)
    failures = [f"emoji={text:.50} ({name:.200}) was not found; tried"]
    sources = {"bundled": _bundled, "cache": _cached, "download": _downloaded, "font": render_emoji}
    for label, source in sources.items():
        try:
            if offline and label == "download":
                raise LookupError("not tried, offline")
            return to_target(source(emoji), size, padding)
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            failures.append(f"{label}: {' '.join(str(error).split()):.300}")
    near = " ".join(_near(text)[:9])
    raise LookupError("\n  ".join(failures + [f"near it: {near}"] * bool(near)))


def render_emoji(emoji: str) -> Image.Image:
    """Draws an emoji, 128×128 RGBA, with the installed font Noto Color Emoji.

    Where the font is missing, or has no picture for the emoji, it raises LookupError.
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


def _parse(emoji: Any) -> re.Match:
    """Reads one emoji as people paste it: with spaces, in text style, as a name or a code."""
    given, hint = emoji if isinstance(emoji, str) else "", ""
    if re.fullmatch(rf"(?i)\s*({_CODE}[\s,;}}]*)+", given):
        given = "".join(chr(int(code, 16)) for code in re.findall(f"(?i){_CODE}", given))
    text = re.sub("[\ufe0e\ufe0f\ufeff\u200b\u200e\u200f]", "", given).strip()
    if flag := re.fullmatch("(?i):flag[_-]([a-z]{2}):", text):
        text = "".join(chr(ord("🇦") + ord(letter) - ord("A")) for letter in flag[1].upper())
    elif name := re.fullmatch(r":([^:]+):|[a-zA-Z][\w -]+", text):
        words = re.sub("[_-]", " ", name[1] or name[0]).upper()
        if name[1] and words in (names := _names()):
            text = names[words]
        else:
            hint = f": is it one of these? {' '.join(_similar(words)) or 'None has such a name.'}"
    found = [part[0] for part in _EMOJI.finditer(text)]
    if len(found) > 1 and "".join(found) == re.sub(r"\s", "", text):
        hint = f": these are {len(found)}: {' '.join(found[:9])}"
    match = _EMOJI.fullmatch(text)
    if not match:
        accepted = "a string of exactly one emoji such as '🦎'"
        raise ValueError(f"emoji must be {accepted}, got {shown(emoji)}{hint}")
    return match


def _names() -> dict[str, str]:
    """Returns the emoji of one code point by Unicode's names, those first that are never text."""
    known = [chr(code) for code in (*range(0x231A, 0x27C0), *range(0x1F300, 0x1FB00))]
    wide = [character for character in known if unicodedata.east_asian_width(character) == "W"]
    text = [character for character in known if "\u2600" <= character]
    return {unicodedata.name(character, ""): character for character in wide + text}


def _similar(words: str) -> list[str]:
    """Returns some emoji whose Unicode names have these words, or else look like them."""
    names = _names()
    # Without their last letters, for what is :smile: elsewhere is a SMILING FACE here.
    stems = [rf"\b{re.escape(word[:-1] if len(word) > 4 else word)}" for word in words.split()]
    found = [name for name in names if all(re.search(stem, name) for stem in stems)]
    found = sorted(found, key=len) or difflib.get_close_matches(words, names)
    return [names[name] for name in found[:24]]


def _near(text: str) -> list[str]:
    """Returns what is near an emoji: its parts without skin tones, or its neighbours in Unicode."""
    if len(text) == 1 or _EMOJI.fullmatch(text)["country"]:
        around = (text[:-1] + chr(ord(text[-1]) + step) for step in (-3, -2, -1, 1, 2, 3))
        return [near for near in around if _EMOJI.fullmatch(near) and unicodedata.name(near[0], "")]
    if code := _EMOJI.fullmatch(text)["subdivision"]:
        return ["".join(chr(ord(tag) - ord("\U000e0061") + ord("🇦")) for tag in code[:2])]
    parts = dict.fromkeys(re.sub(SKIN_TONES, "", text).split("\u200d"))
    return [part for part in parts if part not in ("", text)]


def _is_offline() -> bool:
    value = os.environ.get("NCA_OFFLINE", "").lower()
    yes, no = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")
    accepted = f"{', '.join(yes)}, {', '.join(no[:-1])} or empty"
    require(value in yes + no, "the environment variable NCA_OFFLINE", accepted, value)
    return value in yes


def _bundled(emoji: str) -> Image.Image:
    file = resources.files("nca_helpers") / "data" / "emoji" / emoji_name(emoji)
    if not file.is_file():
        raise LookupError(f"only {' '.join(BUNDLED)} come with the package")
    return decode(file.read_bytes())


def _cache_path(emoji: str) -> Path:
    platforms = {"darwin": "~/Library/Caches", "win32": "~/AppData/Local"}
    root = os.environ.get("XDG_CACHE_HOME") or platforms.get(sys.platform, "~/.cache")
    return Path(root).expanduser() / "nca_helpers" / f"noto-{NOTO_TAG}" / emoji_name(emoji)


def _cached(emoji: str) -> Image.Image:
    path = _cache_path(emoji)
    if not path.is_file():
        raise LookupError(f"no {path}")
    try:
        return _decode_png(path.read_bytes())
    except ValueError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _downloaded(emoji: str) -> Image.Image:
    url = emoji_url(emoji)
    data = fetch(url, LARGEST_EMOJI)
    for _ in range(2):  # A symbolic link there, as 🇸🇯 is to 🇳🇴, comes as the name of its target.
        if re.fullmatch(rb"[\w.][\w./-]{,99}\.png\s*", data):
            url = parse.urljoin(url, data.decode().strip())
            data = fetch(url, LARGEST_EMOJI)
    picture = _decode_png(data)
    # The cache is a convenience: where it cannot be written, life goes on without.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        replace_file(_cache_path(emoji), data)
    return picture


def _decode_png(data: bytes) -> Image.Image:
    require(data.startswith(PNG), "an emoji's picture", "a readable PNG", data)
    return decode(data)
