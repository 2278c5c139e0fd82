"""Picture files: their pixels, whatever is broken beside them, in bounded memory."""

import io
import re
import warnings
import zlib

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from nca_helpers.checks import shown

LARGEST_PICTURE = 200e6  # bytes, while it is decoded
BYTES_PER_PIXEL = {"WEBP": 12, "AVIF": 12, "JPEG2000": 20}  # 4 of other formats
NO_PICTURES = {  # What is found in files that are named like a picture, and what to do.
    rb"version https://git-lfs": "a Git LFS pointer, not the picture itself: run git lfs pull",
    rb".*<(!doctype\s+)?(html|head|body)\b": "a web page: save the picture, not the page",
    rb".*<svg": "an SVG drawing: export it as PNG",
    rb"%PDF": "a PDF document: export the page as PNG",
    rb".{,4}ftyp(hei|hev|mif|msf)": "a HEIC photo, which Pillow cannot read here: save it as PNG",
    rb".{,4}ftypavi": "an AVIF picture, which Pillow cannot read here: save it as PNG",
    rb".{,4}JXL |\xff\n": "a JPEG XL picture, which Pillow cannot read: save it as PNG",
    rb"II\*|MM\*": "a TIFF of a kind that Pillow cannot read: save it as PNG, of 8 bits",
    rb".{,4}ftyp|\x1a\x45\xdf\xa3": "a video: save one of its frames as PNG",
    rb"PK\x03\x04|\x1f\x8b": "a compressed archive: unpack it first",
    rb"$": "an empty file",
}
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
KEPT = (  # Of a PNG or JPEG beside its pixels, at the second attempt to read it, the third …
    {b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"ICC_", b"Exif", b"Adob"},
    {b"tRNS", b"eXIf", b"Exif", b"Adob"},
    {b"eXIf", b"Adob"},
)


def decode(data: bytes, size: int = 128) -> Image.Image:
    """Reads a picture file; a huge JPEG not much larger than `size` asks for.

    Raises:
        ValueError: it is no readable picture, or too large a one.
    """
    failures: list[Exception] = []
    for kept in (None, *KEPT) if data.startswith((PNG, JPEG)) else (None,):
        try:
            picture = _open(data if kept is None else _stripped(data, kept), size)
        except Exception as error:  # A broken file makes Pillow's readers raise almost anything.
            failures.append(error)
        else:
            if failures:
                warnings.warn(f"broken metadata ({failures[0]!s:.100})", stacklevel=2)
            return picture
    detail = f"{failures[-1]!s:.200}"
    if isinstance(failures[-1], UnidentifiedImageError):
        head = data[:4096].replace(b"\0", b"")  # Without zeros UTF-16 reads like ASCII.
        known = [what for start, what in NO_PICTURES.items() if re.match(start, head, re.S | re.I)]
        detail = (*known, f"an unknown format, {shown(data)}")[0]
    raise ValueError(f"it is no readable picture ({detail})") from failures[-1]


def check_memory(picture: Image.Image) -> None:
    """Raises ValueError if a picture that is still to be decoded would take too much memory."""
    each = BYTES_PER_PIXEL.get(picture.format, 4)
    if picture.info.get("progressive"):  # All coefficients of a JPEG, at its full size.
        each += 6 * (*getattr(picture, "decoderconfig", ()), 1)[0] ** 2
    is_loaded = getattr(picture, "fp", None) is None
    if not is_loaded and picture.width * picture.height * each > LARGEST_PICTURE:
        raise ValueError(
            f"{picture.width}×{picture.height} pixels; of this kind at most "
            f"{LARGEST_PICTURE / each / 1e6:.0f} million are read: make it smaller"
        )


def _stripped(data: bytes, kept: set[bytes]) -> bytes:
    """Returns a PNG or JPEG with its pixels and, of the rest, what is whole and kept."""
    is_png = data.startswith(PNG)
    if is_png and b"IDAT" not in data:
        raise ValueError("it has no pixels")
    at = len(PNG if is_png else JPEG)
    parts = [data[:at]]
    while is_png and at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        is_pixels = kind in (b"IHDR", b"PLTE", b"IDAT")
        is_whole = zlib.crc32(data[at + 4 : end - 4]).to_bytes(4) == data[end - 4 : end]
        if is_pixels and not is_whole:
            raise ValueError(f"its {kind.decode()} is cut or damaged")
        if is_whole and (is_pixels or kind in kept):
            parts.append(data[at:end])
        at = end
    while not is_png and data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if data[at + 1] < 0xE0 or data[at + 4 : at + 8] in kept:
            parts.append(data[at:end])
        at = end
    return b"".join([*parts, b"\0\0\0\0IEND\xaeB`\x82" if is_png else data[at:]])


def _open(data: bytes, size: int) -> Image.Image:
    Image.open(io.BytesIO(data)).verify()  # Checksums; it spends the image.
    picture = Image.open(io.BytesIO(data))
    if picture.width * picture.height > 2**24:
        picture.draft(None, (4 * size, 4 * size))  # Only JPEG can.
    check_memory(picture)
    info, depth = picture.info, None
    if picture.format == "PNG" and "transparency" in info:
        depth = picture.tile[0][3]
    if depth in ("L;2", "L;4"):
        info["transparency"] *= {"L;2": 85, "L;4": 17}[depth]
    if picture.format == "TIFF":  # Else Pillow reads these with the pixels, and may stumble.
        info.pop("xmp", None)
        for table in ExifTags.IFD:
            picture.getexif().pop(table, None)
    picture.load()
    if depth == "RGB;16B":
        # These are the high bytes of the colours. Taken for little-endian it has the low ones.
        low = Image.open(io.BytesIO(data))
        low.tile = [low.tile[0]._replace(args="RGB;16L")]
        values = np.asarray(picture).astype(int) * 256 + np.asarray(low)
        picture.putalpha(Image.fromarray((values != info.pop("transparency")).any(-1)))
    return picture
