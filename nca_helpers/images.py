"""Targets: any picture as a float32 RGBA array premultiplied by alpha."""

import contextlib
import io
import itertools
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Any
from urllib import parse, request

import jax
import jax.numpy as jnp
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence

from nca_helpers.checks import check_integer, shown
from nca_helpers.files import fetch
from nca_helpers.imagefiles import LARGEST_PICTURE, check_memory, decode

LARGEST_FILE = 2**26  # bytes
ACCEPTED = (
    "a picture: a path, an http(s), file or data URL, an open file, bytes, a PIL image, or an "
    "array (height, width) or (height, width, 1, 3 or 4), uint8, uint16, bool or float in [0, 1]"
)
_LOCK = threading.Lock()  # The list of warning filters belongs to all threads.


def load_image(source: Any, size: int = 40, padding: int = 0) -> np.ndarray:
    """Loads any picture as a target to grow: its aspect is kept, and it is centred on transparent.

    What is broken beside the pixels (EXIF, colour profile, text) is skipped with a warning; a file
    that is cut in its pixels is an error. The EXIF orientation is applied, colours become sRGB, and
    of an animation the first frame that is not empty is taken.

    Args:
        source: a path, an http(s), file or data URL, a file open for reading bytes, the bytes of a
            picture file, a PIL image, or an array of NumPy, JAX or nested lists, `(height, width)`
            or `(height, width, 1, 3 or 4)`, of uint8, uint16, bool or floats in [0, 1], its alpha
            straight. At most 64 MiB, and 50 megapixels (16 as WebP or AVIF; 178 as JPEG, which is
            decoded smaller, but 33 if it is progressive).
        size: the longer side of the picture, in cells.
        padding: transparent cells on every side.

    Returns:
        `(size + 2 * padding, size + 2 * padding, 4)`, float32 in [0, 1], premultiplied by alpha.

    Raises:
        OSError: `source` cannot be read or reached; FileNotFoundError where there is no such file.
    """
    size, padding = check_integer("size", size, 1), check_integer("padding", padding, 0)
    try:
        content = _read(source)
        with _LOCK, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = content if isinstance(content, Image.Image) else decode(content, size)
            target = to_target(picture, size, padding)
    except (OSError, ValueError, TypeError) as error:  # Of a file that is none, say.
        kinds = (kind for kind in (FileNotFoundError, OSError) if isinstance(error, kind))
        kind = next(kinds, ValueError)
        reason = " ".join(str(error).split())
        raise kind(f"source must be {ACCEPTED}, got {_named(source)}: {reason:.400}") from error
    # Once each. Of other categories are Pillow's own affairs: large pictures, deprecations.
    notes = {" ".join(str(w.message).split()): None for w in caught if w.category is UserWarning}
    if notes:
        warnings.warn(f"source {_named(source)}: skipped {'; '.join(notes)}", stacklevel=2)
    return target


def to_target(picture: Image.Image, size: int, padding: int) -> np.ndarray:
    """Returns a picture as `load_image` does; raises ValueError if it has nothing to grow."""
    if 0 in picture.size:
        raise ValueError(f"it has zero size, {picture.width}×{picture.height}")
    try:
        check_memory(picture)
        picture = _first_frame(picture)
        small = _upright(picture, _resized(picture, size))
    except Exception as error:  # It may be read from its file only now: see decode.
        raise ValueError(f"it is no readable picture ({error!s:.200})") from error
    side = size + 2 * padding
    top, left = (side - small.height) // 2, (side - small.width) // 2
    target = np.zeros((side, side, 4), np.float32)
    target[top : top + small.height, left : left + small.width] = np.asarray(small) / 255
    # Lanczos overshoots at edges.
    target[..., :3] = np.minimum(target[..., :3], target[..., 3:])
    if not target.any():
        raise ValueError(f"it is fully transparent at size={size}, there is nothing to grow")
    return target


def _named(source: Any) -> str:
    is_text = isinstance(source, str)
    return shown(re.sub(r"(?is)^(\s*data:[^,]*,).*", r"\1…", source) if is_text else source)


def _read(source: Any) -> bytes | Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    address = source.strip() if isinstance(source, str) else ""
    scheme = address[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return fetch(address, LARGEST_FILE)
    if scheme.startswith("data:"):
        return request.urlopen(address).read()
    if scheme.startswith("file:"):
        source = request.url2pathname(parse.urlsplit(address).path)
    if isinstance(source, str | os.PathLike):
        path = os.path.expanduser(source)
        if not os.path.isfile(path):
            raise FileNotFoundError("there is no such file")
        with Path(path).open("rb") as file:
            return _read(file)
    if hasattr(source, "read"):
        with contextlib.suppress(OSError, AttributeError):  # A pipe has no way back to its start.
            source.seek(0)
        data = b""
        while part := source.read(LARGEST_FILE + 1 - len(data)):  # A pipe gives a little at a time.
            if not isinstance(part, bytes):
                raise ValueError(f"it gives {type(part).__name__}: open it with mode 'rb'")
            data += part
            if len(data) > LARGEST_FILE:
                raise ValueError(f"it has more than {LARGEST_FILE} bytes")
        return data
    if isinstance(source, list | tuple) or hasattr(source, "__array__"):
        return _from_array(source)
    raise ValueError(f"its type is {type(source).__name__}")


def _from_array(source: Any) -> Image.Image:
    if isinstance(source, jax.core.Tracer):
        raise ValueError("it is traced: load the target outside of what JAX transforms")
    try:
        values = np.asarray(source)
    except Exception as error:  # Rows of unequal lengths, memory of another device …
        raise ValueError(f"NumPy cannot read it ({error!s:.200})") from error
    shape, is_picture = values.shape, values.shape[2:] in ((), (1,), (3,), (4,))
    if len(shape) == 4 or (shape[:1] == (1,) and not is_picture):
        raise ValueError(f"it is a batch of {len(values)}: give one picture of it, image[0]")
    if values.size == 0 or len(shape) < 2 or not is_picture:
        is_first = len(shape) == 3 and shape[0] in (1, 3, 4)
        advice = ": move the channels last, np.moveaxis(image, 0, -1)" if is_first else ""
        raise ValueError(f"its shape is {shape}{advice}")
    if values.nbytes > LARGEST_PICTURE:
        raise ValueError(f"it has {values.nbytes / 1e6:.0f} MB: make it smaller, image[::4, ::4]")
    values = values.reshape(shape[:2]) if shape[2:] == (1,) else values
    if isinstance(source, list | tuple) and values.dtype == int and (values == values % 256).all():
        values = values.astype(np.uint8)
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = np.round(values / 257).astype(np.uint8)
    elif jnp.issubdtype(values.dtype, jnp.floating):  # NumPy does not count bfloat16 among them.
        if not np.all((values >= 0) & (values <= 1)):
            advice = ": divide them by 255" if 1 < values.max() <= 255 else ""
            raise ValueError(f"its values are not all in [0, 1]{advice}")
        values = np.round(values.astype(np.float32) * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise ValueError(f"its dtype is {values.dtype}: make it uint8, or floats in [0, 1]")
    return Image.fromarray(values)


def _first_frame(picture: Image.Image) -> Image.Image:
    """Returns the picture, or if it stands at an empty frame the next one that is not empty."""
    start = picture.tell()
    if not getattr(picture, "is_animated", False) or not picture.has_transparency_data:
        return picture
    frames = enumerate(itertools.islice(ImageSequence.Iterator(picture), start, start + 1000))
    filled = ((i, frame.copy()) for i, frame in frames if _rgba(frame).getchannel("A").getbbox())
    skipped, found = next(filled, (0, picture))
    picture.seek(start)
    if skipped:
        count = f"{skipped} empty frame{'s' * (skipped > 1)}"
        warnings.warn(f"{count} before the first that is not", stacklevel=2)
    return found


def _upright(picture: Image.Image, small: Image.Image) -> Image.Image:
    """Returns the small picture turned as the EXIF orientation of the other asks for."""
    value, raw = None, picture.info.get("exif") or b""
    try:
        exif = picture.getexif()
        value = exif.get(ExifTags.Base.Orientation)
        if raw:  # Reads the rest of it, too.
            exif.get_ifd(ExifTags.IFD.GPSInfo)
            exif.tobytes()
    except Exception as error:
        warnings.warn(f"what is broken in its EXIF ({error!s:.100})", stacklevel=2)
    if value is None:  # Pillow stops at a broken entry; it may stand behind, in the first table.
        raw = re.sub(b"^(Exif\0\0)+", b"", raw)
        length = 12 * int.from_bytes(raw[8:10], "little" if raw[:2] == b"II" else "big")
        pattern = b"\x12\1\3\0\1\0\0\0(.)\0|\1\x12\0\3\0\0\0\1\0(.)"
        found = re.search(pattern, raw[10 : 10 + length], re.DOTALL)
        value = found and ord(found[1] or found[2])
    small.getexif()[ExifTags.Base.Orientation] = value
    return ImageOps.exif_transpose(small)


def _resized(picture: Image.Image, size: int) -> Image.Image:
    """Returns it premultiplied, its longer side `size`; large ones in bands, to save memory."""
    if picture.mode == "I" and picture.format == "PPM":  # Pillow scales its greys to 16 bits.
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16))
    (width, height), profile = picture.size, _profile(picture)
    factor = max(1, max(width, height) // (8 * size)) if width * height > 2**22 else 1
    rows = factor * max(1, 2**22 // (width * factor))
    reduced = Image.new("RGBa", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = _rgba(picture.crop((0, top, width, min(top + rows, height))), *profile)
        # Premultiplied first: the colour of transparent pixels must not bleed into the edges.
        reduced.paste(band.convert("RGBa").reduce(factor), (0, top // factor))
    scale = size / max(width, height)
    sides = max(1, round(width * scale)), max(1, round(height * scale))
    return reduced.resize(sides, Image.Resampling.LANCZOS, (0, 0, width / factor, height / factor))


def _profile(picture: Image.Image) -> tuple:
    """Returns what converts the picture's colours to sRGB, and the mode it works in; or nothing."""
    data = picture.info.get("icc_profile")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else None
        if not profile or ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return ()
        modes = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}
        mode = modes[profile.profile.xcolor_space]
        base = picture.mode if picture.mode in ("CMYK", "LAB") else "RGB"
        if mode != base and (mode != "L" or Image.getmodebase(picture.mode) != "L"):
            raise ValueError(f"a profile of {mode}, the picture is {picture.mode}")
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.buildTransform(profile, srgb, mode, "RGB"), mode
    except Exception as error:
        warnings.warn(f"its colour profile ({error!s:.100})", stacklevel=2)
        return ()


def _rgba(
    picture: Image.Image, to_srgb: ImageCms.ImageCmsTransform | None = None, mode: str = "RGB"
) -> Image.Image:
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        alpha = np.where(values == picture.info.get("transparency"), 0, 255)
        picture = Image.fromarray(np.stack([np.round(values / 257), alpha], -1).astype(np.uint8))
    if picture.mode in ("I", "F"):
        kind = {"I": "integers of 32 bits", "F": "floats"}[picture.mode]
        raise ValueError(f"its values are {kind}, mode {picture.mode}: make them uint8")
    picture = picture.convert("LA") if picture.mode == "La" else picture
    rgba = picture.convert("RGBA")
    if to_srgb:
        alpha = rgba.getchannel("A")
        rgba = to_srgb.apply(picture if picture.mode == mode else rgba.convert(mode))
        rgba.putalpha(alpha)
    return rgba
