"""Pictures, against a Lanczos in float64, files made byte by byte, and a real server."""

import base64
import http.server
import io
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
import warnings
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image, ImageCms

from nca_helpers.checks import shown
from nca_helpers.images import load_image


def assert_is_target(target: np.ndarray, size: int, padding: int) -> None:
    side = size + 2 * padding
    assert isinstance(target, np.ndarray) and target.dtype == np.float32
    assert target.shape == (side, side, 4)
    assert np.isfinite(target).all() and target.min() >= 0 and target.max() <= 1
    assert (target[..., :3] <= target[..., 3:]).all()
    inside = np.zeros((side, side), bool)
    inside[padding : padding + size, padding : padding + size] = True
    assert not target[~inside].any()


EXTREMES = st.sampled_from([0, 0, 1, 128, 254, 255, 255])


@settings(max_examples=150, deadline=None)
@given(
    pixels=st_numpy.arrays(
        np.uint8,
        st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(4)),
        elements=EXTREMES,
        fill=st.nothing(),
    ),
    size=st.integers(1, 30),
    padding=st.integers(0, 5),
)
def test_any_picture_is_a_target_or_has_nothing_to_grow(pixels, size, padding):
    try:
        target = load_image(Image.fromarray(pixels), size, padding)
    except ValueError as error:
        assert "fully transparent" in str(error) and pixels[..., 3].min() < 255
    else:
        assert_is_target(target, size, padding)
        assert pixels[..., 3].any()


def lanczos_weights(length: int, new_length: int) -> np.ndarray:
    """The matrix of an antialiased Lanczos-3 resize along one axis, in float64."""
    scale = max(length / new_length, 1.0)
    centres = (np.arange(new_length)[:, None] + 0.5) * length / new_length
    distance = (np.arange(length) + 0.5 - centres) / scale
    weights = np.where(abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(128, 128, 40), (60, 90, 31), (90, 60, 30), (7, 5, 28)]
)
def test_resize_agrees_with_a_float64_reference(height, width, size):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 4), np.uint8)
    pixels[: height // 2, :, 3] = 0  # a half that must not be seen
    straight = pixels / 255
    premultiplied = np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)
    new_height, new_width = (round(side * size / max(height, width)) for side in (height, width))
    rows, columns = lanczos_weights(height, new_height), lanczos_weights(width, new_width)
    # Columns first, as in Pillow, whose 8 bits keep no overshoot between the two.
    expected = np.einsum("jw,hwc->hjc", columns, premultiplied).clip(0, 1)
    expected = np.einsum("ih,hjc->ijc", rows, expected).clip(0, 1)
    expected[..., :3] = np.minimum(expected[..., :3], expected[..., 3:])

    top, left = (size - new_height) // 2, (size - new_width) // 2
    inside = np.s_[top : top + new_height, left : left + new_width]
    target = load_image(pixels, size)
    np.testing.assert_allclose(target[inside], expected, atol=2 / 255)
    target[inside] = 0
    assert not target.any()


def test_hidden_colour_does_not_bleed():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :32] = (255, 0, 0, 255)
    pixels[:, 32:] = (0, 255, 0, 0)
    target = load_image(pixels, 13)
    assert target[..., 1].max() == 0 and target[..., 0].max() == 1


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (40, 20, (0, 10, 40, 30)),
        (20, 40, (10, 0, 30, 40)),
        (80, 80, (0, 0, 40, 40)),
        (3, 1, (0, 13, 40, 26)),
        (4000, 1, (0, 19, 40, 20)),
        (1, 1, (0, 0, 40, 40)),
    ],
)
def test_aspect_is_kept_and_the_picture_centred(width, height, box):
    target = load_image(Image.new("RGB", (width, height), (51, 102, 255)), 40, 3)
    left, top, right, bottom = (side + 3 for side in box)
    expected = np.zeros((46, 46, 4), np.float32)
    expected[top:bottom, left:right] = (0.2, 0.4, 1, 1)
    np.testing.assert_allclose(target, expected, atol=1e-6)


# Pictures of one's own

HTML = b"<!DOCTYPE html><html><body>Welcome to the hotel network</body></html>"


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 4), np.uint8)
    return Image.fromarray(pixels)


def write_in_parts(descriptor: int, data: bytes) -> None:
    with open(descriptor, "wb", buffering=0) as pipe:
        for start in range(0, len(data), 2000):
            pipe.write(data[start : start + 2000])
            time.sleep(0.02)


def test_every_kind_of_source_gives_the_same_target(picture, tmp_path, server):
    data = encode(picture)
    path = tmp_path / "own picture.png"
    path.write_bytes(data)
    server.answers["/own.png"] = data
    before = picture.tobytes()
    expected = load_image(picture, 20, 2)
    pixels = np.asarray(picture)
    server.answers["/moved.png"] = lambda handler: (
        handler.send_response(302),
        handler.send_header("Location", "/own%20picture.png?token=1"),
        handler.end_headers(),
    )
    server.answers["/own%20picture.png?token=1"] = data
    encoded = base64.b64encode(data).decode()
    sources = [
        *(data, bytearray(data), memoryview(data), path, str(path), io.BytesIO(data)),
        *(path.as_uri(), f"file://localhost{urllib.parse.quote(str(path))}", f" {path.as_uri()}\n"),
        *(f"{server.url}/own.png", f" {server.url}/own.png\n", f"{server.url}/moved.png"),
        *(f"data:image/png;base64,{encoded}", f"DATA:;base64,{urllib.parse.quote(encoded)}"),
        f"data:image/png,{urllib.parse.quote(data)}",
        *(pixels, pixels / 255, pixels.tolist(), (pixels / 255).tolist(), list(pixels)),
        *(jnp.array(pixels), jnp.array(pixels / 255, jnp.float32), pixels.astype(np.uint16) * 257),
        *(pixels[::-1][::-1], np.asfortranarray(pixels), pixels.astype(">u2") * np.uint16(257)),
        Image.open(io.BytesIO(data)),
    ]
    for source in sources:
        np.testing.assert_array_equal(load_image(source, 20, 2), expected)
    with open(path, "rb") as file:
        file.read(10)
        np.testing.assert_array_equal(load_image(file, 20, 2), expected)
        assert not file.closed
    for buffering in (-1, 0):  # Without a buffer a pipe gives what is there, be it little.
        reading, writing = os.pipe()
        thread = threading.Thread(target=write_in_parts, args=(writing, data))
        thread.start()
        with open(reading, "rb", buffering=buffering) as file:
            np.testing.assert_array_equal(load_image(file, 20, 2), expected)
        thread.join()
    assert picture.tobytes() == before and picture.mode == "RGBA"


def test_opaque_arrays_have_three_channels():
    values = np.full((4, 4, 3), 0.6, np.float16)
    np.testing.assert_allclose(load_image(values, 4)[0, 0], (0.6, 0.6, 0.6, 1), atol=1e-6)


def test_modes_and_formats():
    grey = Image.new("L", (8, 8), 51)
    for mode in ("L", "RGB", "CMYK", "P", "LA", "RGBA", "RGBa", "YCbCr"):
        via = grey.convert("RGBA") if mode == "RGBa" else grey
        target = load_image(via.convert(mode), 8)
        np.testing.assert_allclose(target, [[(0.2, 0.2, 0.2, 1)] * 8] * 8, atol=2 / 255)
    sixteen_bit = Image.fromarray(np.full((8, 8), 0x3380, np.uint16))
    np.testing.assert_allclose(load_image(encode(sixteen_bit), 8)[..., 0], 0.2, atol=1 / 255)
    for kind in ("JPEG", "WEBP", "BMP", "GIF", "TIFF"):
        target = load_image(encode(grey.convert("RGB"), kind), 8)
        np.testing.assert_allclose(target[..., :3], 0.2, atol=3 / 255)


def test_orientation_is_respected(picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise
    turned = load_image(encode(picture, exif=exif), 50)
    np.testing.assert_array_equal(turned, np.rot90(load_image(picture, 50), -1))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(red, kind, save_all=True, append_images=[blue], duration=100, **options)
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.n_frames == 2
    np.testing.assert_allclose(load_image(data, 9), [[(1, 0, 0, 1)] * 9] * 9, atol=0.01)


def refused_sources():
    png = encode(Image.new("RGB", (64, 64), "red"))
    broken = bytearray(png)
    broken[len(png) // 2] ^= 1
    lost = encode(Image.effect_noise((64, 64), 50).convert("RGB"))
    length = lost.index(b"IDAT") - 4
    lost = lost[:length] + (1000).to_bytes(4, "big") + lost[length + 4 :]
    jpeg = encode(Image.effect_noise((64, 64), 50), "JPEG")
    nan = np.full((4, 4, 4), np.nan)
    closed = io.BytesIO(png)
    closed.close()
    yield from (
        ("empty bytes", b"", "an empty file"),
        ("text", b"lizard" * 999, "an unknown format, 5994 bytes that begin with b'lizard"),
        ("half a PNG", png[: len(png) // 2], "IDAT is cut or damaged"),
        ("a flipped bit", bytes(broken), "IDAT is cut or damaged"),
        ("half a PNG, opened", Image.open(io.BytesIO(png[: len(png) // 2])), "no readable picture"),
        ("lost in a PNG, opened", Image.open(io.BytesIO(lost)), "broken PNG file"),
        ("half a JPEG, opened", Image.open(io.BytesIO(jpeg[: len(jpeg) // 2])), "truncated"),
        ("zero width", Image.new("RGBA", (0, 5)), "zero size, 0×5"),
        ("fully transparent", Image.new("RGBA", (5, 5), (255, 0, 0, 0)), "fully transparent"),
        ("grey float", Image.new("F", (5, 5)), "its values are floats, mode F"),
        ("32 bits", Image.new("I", (5, 5)), "its values are integers of 32 bits, mode I"),
        ("float TIFF", encode(Image.new("F", (5, 5)), "TIFF"), "its values are floats, mode F"),
        (
            "32-bit TIFF",
            encode(Image.new("I", (5, 5)), "TIFF"),
            "its values are integers of 32 bits, mode I",
        ),
        ("number", 3, "its type is int"),
        ("None", None, "its type is NoneType"),
        ("dict", {"content": png}, "its type is dict"),
        ("open text", io.StringIO("lizard"), "it gives str: open it with mode 'rb'"),
        ("closed file", closed, "closed"),
        ("data without a comma", "data:image/png;base64", "data"),
        ("ragged list", [[0, 1], [2]], "NumPy cannot read it"),
        ("list of words", [["a", "b"]], "its dtype is <U1"),
        ("list above 255", [[0, 256]], "its dtype is int64"),
        ("list below 0", [[0, -1]], "its dtype is int64"),
        ("empty list", [], "its shape is (0,)"),
        (
            "batch of one",
            np.ones((1, 4, 4, 4), np.uint8),
            "a batch of 1: give one picture of it, image[0]",
        ),
        ("list of one picture", [Image.new("RGB", (4, 4))], "a batch of 1"),
        (
            "batch",
            np.ones((7, 4, 4, 4), np.uint8),
            "a batch of 7: give one picture of it, image[0]",
        ),
        ("grey batch of one", np.ones((1, 8, 8)), "a batch of 1: give one picture of it, image[0]"),
        ("floats to 255", np.full((4, 4), 255.0), "not all in [0, 1]: divide them by 255"),
        (
            "file of its own kind",
            type("File", (), {"read": lambda self: png})(),
            "positional argument",
        ),
        ("huge", np.broadcast_to(np.uint8(1), (9_000, 12_000, 3)), "it has 324 MB: make it"),
        ("no pixels", png[:33] + png[-12:], "it has no pixels"),
        ("channels first", np.ones((3, 9, 9), np.uint8), "np.moveaxis(image, 0, -1)"),
        ("objects", np.full((4, 4), None), "its dtype is object"),
        ("complex", np.ones((4, 4), complex), "its dtype is complex128"),
        ("random key", jax.random.key(0), "NumPy cannot read it"),
        ("NaN", nan, "not all in [0, 1]"),
        ("infinity", np.where(np.isnan(nan), np.inf, 0), "not all in [0, 1]"),
        ("above one", np.full((4, 4, 3), 1.5), "not all in [0, 1]"),
        ("below zero", np.full((4, 4, 3), -0.1), "not all in [0, 1]"),
        ("int32", np.ones((4, 4, 4), np.int32), "int32"),
        ("two channels", np.ones((4, 4, 2), np.uint8), "(4, 4, 2)"),
        ("flat", np.ones(4, np.uint8), "(4,)"),
        ("one number", np.float32(0.5), "its shape is ()"),
        ("no rows", np.ones((0, 4, 4), np.uint8), "(0, 4, 4)"),
    )


@pytest.mark.parametrize(
    ("source", "reason"), [pytest.param(*rest, id=name) for name, *rest in refused_sources()]
)
def test_what_is_no_picture_is_refused(source, reason):
    with pytest.raises(ValueError) as caught:
        load_image(source)
    message = str(caught.value)
    assert message.startswith("source must be a picture: a path, an http(s), file or data URL")
    given = message.partition("float in [0, 1], got ")[2]
    assert given.startswith(f"{shown(source)}: ") and reason in given
    assert len(given) < 700 and "\n" not in message


@pytest.mark.parametrize("data", [b"lizard" * 99, encode(Image.new("RGB", (64, 64)))[:60]])
def test_an_error_shows_nothing_of_what_a_data_address_holds(data):
    address = " data:image/png;base64," + base64.b64encode(data).decode()
    with pytest.raises(ValueError, match=r"got ' data:image/png;base64,…': it is") as caught:
        load_image(address)
    assert base64.b64encode(data).decode()[:8] not in str(caught.value)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"source must be .*decompression bomb"):
        load_image(encode(Image.new("RGB", (64, 64))))


@pytest.mark.parametrize("path", ["missing.png", ".", "x" * 5000, "a\0b", "~nobody/x.png", "🦎"])
def test_missing_file_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (path, Path(path)):
        with pytest.raises(FileNotFoundError, match=r"source must be a .*, got .*no such file"):
            load_image(source)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image("file:///no/such%20picture.png")


# Files made byte by byte


def png_chunk(kind: bytes, data: bytes, wrong: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_file(
    pixels: np.ndarray, colour: int, depth: int = 8, before=b"", after=b"", pieces: int = 1
) -> bytes:
    """A PNG of `(height, width, samples)`; `before` and `after` its pixels stand other chunks."""
    height, width, _ = pixels.shape
    if depth == 16:
        rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = pixels.astype(np.uint8).reshape(height, -1)
    else:  # Several pixels to a byte, the first one in the highest bits.
        bits = np.unpackbits(pixels.astype(np.uint8), axis=2)[..., 8 - depth :]
        rows = np.packbits(bits.reshape(height, -1), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    step = -(-len(data) // pieces)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + before
        + b"".join(png_chunk(b"IDAT", data[i : i + step]) for i in range(0, len(data), step))
        + after
        + png_chunk(b"IEND", b"")
    )


def tiff_table(entries, order: str = "<", start: int = 8) -> bytes:
    """The first table of a TIFF or EXIF block; entries are (tag, type, count, value as bytes)."""
    entries = sorted(entries)
    table, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > 4:
            place = start + 2 + 12 * len(entries) + 4 + len(beyond)
            value, beyond = struct.pack(order + "I", place), beyond + value
        table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + table + bytes(4) + beyond


def orientation_entry(value: int, order: str = "<"):
    return (0x0112, 3, 1, struct.pack(order + "H", value))


NOISE = np.random.default_rng(3).integers(0, 256, (7, 9, 3), np.uint8)


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def with_exif(kind: str, exif: bytes, entries=(), order: str = "<") -> bytes:
    """The noise as a file of that kind, with a block of EXIF in it."""
    if kind == "PNG":
        return png_file(NOISE, 2, before=png_chunk(b"eXIf", exif))
    if kind == "JPEG":
        data = encode(Image.fromarray(NOISE), "JPEG", quality=100, subsampling=0)
        return data[:2] + jpeg_segment(0xE1, b"Exif\0\0" + exif) + data[2:]
    if kind == "WEBP":
        return encode(Image.fromarray(NOISE), "WEBP", lossless=True, exif=b"Exif\0\0" + exif)
    raw, short, long = NOISE.tobytes(), order + "H", order + "I"  # TIFF: the table is the file's
    basic = [
        *((256, 3, 1, struct.pack(short, 9)), (257, 3, 1, struct.pack(short, 7))),
        *((258, 3, 3, struct.pack(short, 8) * 3), (259, 3, 1, struct.pack(short, 1))),
        *((262, 3, 1, struct.pack(short, 2)), (273, 4, 1, struct.pack(long, 8))),
        *((277, 3, 1, struct.pack(short, 3)), (278, 3, 1, struct.pack(short, 7))),
        (279, 4, 1, struct.pack(long, len(raw))),
    ]
    table = tiff_table([*basic, *entries], order, start=8 + len(raw) + len(raw) % 2)
    return table[:8] + raw + bytes(len(raw) % 2) + table[8:]


TURNED = {  # What EXIF's orientation asks for, with NumPy.
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def assert_pixels(target: np.ndarray, pixels: np.ndarray, atol: float = 1e-6) -> None:
    """The target has these straight RGB or RGBA pixels, of [0, 255], in its middle."""
    pixels = np.asarray(pixels, float) / 255
    if pixels.shape[2] == 3:
        pixels = np.concatenate([pixels, np.ones((*pixels.shape[:2], 1))], 2)
    pixels = np.concatenate([pixels[..., :3] * pixels[..., 3:], pixels[..., 3:]], 2)
    height, width, _ = pixels.shape
    top, left = (len(target) - height) // 2, (len(target) - width) // 2
    inside = np.s_[top : top + height, left : left + width]
    np.testing.assert_allclose(target[inside], pixels, atol=atol)
    rest = target.copy()
    rest[inside] = 0
    assert not rest.any()


def load_warned(source, size: int = 9) -> tuple[np.ndarray, list[str]]:
    """The target, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        target = load_image(source, size)
    assert all(warning.category is UserWarning for warning in caught)
    return target, [str(warning.message) for warning in caught]


# What is broken beside the pixels

TEXT = b"Comment\0lizard"
LONG_TEXT = b"Comment\0\0" + zlib.compress(bytes(2 * 2**20))
BROKEN_CHUNKS = {
    **{
        f"wrong checksum of {kind.decode()}": png_chunk(kind, data, wrong=True)
        for kind, data in {
            b"tEXt": TEXT,
            b"zTXt": b"Comment\0\0" + zlib.compress(b"lizard"),
            b"iTXt": b"Comment\0\0\0\0\0lizard",
            b"pHYs": struct.pack(">IIB", 2835, 2835, 1),
            b"tIME": struct.pack(">HBBBBB", 2026, 1, 1, 0, 0, 0),
            b"gAMA": struct.pack(">I", 45455),
            b"iCCP": b"profile\0\0" + zlib.compress(b"no profile"),
            b"eXIf": tiff_table([orientation_entry(1)]),
            b"prVt": b"lizard",
        }.items()
    },
    "2 MB of compressed text": png_chunk(b"zTXt", LONG_TEXT),
    "2 MB of international text": png_chunk(
        b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2 * 2**20))
    ),
    "2 MB of colour profile": png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 * 2**20))),
    "short pHYs": png_chunk(b"pHYs", b"\0"),
    "short gAMA": png_chunk(b"gAMA", b"\0"),
    "short sRGB": png_chunk(b"sRGB", b""),
    "short tRNS": png_chunk(b"tRNS", b"\0"),
    "unknown compression of text": png_chunk(b"zTXt", b"Comment\0\7lizard"),
    "broken animation": png_chunk(b"acTL", b"\0\0\0\2") + png_chunk(b"fcTL", b"\0"),
}


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_a_png_is_not_its_metadata(name):
    chunk = BROKEN_CHUNKS[name]
    target, notes = load_warned(png_file(NOISE, 2, before=chunk))
    assert_pixels(target, NOISE)
    (note,) = notes
    assert "skipped broken metadata" in note and "bytes that begin with b'\\x89PNG" in note


@pytest.mark.parametrize("name", [*list(BROKEN_CHUNKS)[:3], "2 MB of compressed text"])
def test_what_is_broken_behind_the_pixels_of_a_png(name):
    target, notes = load_warned(png_file(NOISE, 2, after=BROKEN_CHUNKS[name]))
    assert_pixels(target, NOISE)
    assert len(notes) == 1


def test_whole_metadata_is_no_reason_to_warn():
    whole = png_chunk(b"tEXt", TEXT) + png_chunk(b"pHYs", struct.pack(">IIB", 2835, 2835, 1))
    exif = png_chunk(b"eXIf", tiff_table([orientation_entry(1), (0x011A, 5, 1, bytes((72,)) * 8)]))
    target, notes = load_warned(png_file(NOISE, 2, before=whole + exif, after=whole))
    assert_pixels(target, NOISE)
    assert notes == []


def test_what_else_a_broken_png_says_is_kept():
    key = png_chunk(b"tRNS", struct.pack(">HHH", *NOISE[2, 3]))
    exif = png_chunk(b"eXIf", tiff_table([orientation_entry(8)]))
    data = png_file(NOISE, 2, before=png_chunk(b"tEXt", TEXT, wrong=True) + key + exif)
    alpha = 255 * (NOISE != NOISE[2, 3]).any(2, keepdims=True)
    assert_pixels(load_warned(data)[0], TURNED[8](np.concatenate([NOISE, alpha], 2)))


def test_a_png_without_its_end():
    data = png_file(NOISE, 2)
    for cut in range(1, 13):
        target, notes = load_warned(data[:-cut])
        assert_pixels(target, NOISE)
        assert len(notes) == (cut > 4)  # The checksum of nothing is of no interest.
    assert_pixels(load_warned(data + b"lizard")[0], NOISE)


@pytest.mark.parametrize("pieces", [1, 5])
def test_a_png_that_is_cut_in_its_pixels_is_refused(pieces):
    data = png_file(NOISE, 2, pieces=pieces)
    end = data.rindex(b"IEND") - 4
    for length in range(8, end):
        with pytest.raises(ValueError, match="no readable picture"):
            load_image(data[:length])


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_a_wrong_checksum_of_the_pixels_is_refused(kind):
    colours = png_chunk(b"PLTE", bytes(range(256)) * 3)
    data = bytearray(png_file(NOISE[..., :1], 3, before=colours))
    load_image(bytes(data), 9)
    place = data.index(kind)
    length = int.from_bytes(data[place - 4 : place])
    data[place + 4 + length] ^= 1
    with pytest.raises(ValueError, match=f"its {kind.decode()} is cut or damaged"):
        load_image(bytes(data))


BROKEN_SEGMENTS = {
    "Photoshop": (0xED, b"Photoshop 3.0\x008BIM\x04"),
    "Photoshop of wrong length": (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff"),
    "short profile": (0xE2, b"ICC_PROFILE\0"),
    "missing part of a profile": (0xE2, b"ICC_PROFILE\0\x01\x07lizard"),
    "no profile": (0xE2, b"ICC_PROFILE\0\x01\x01lizard"),
    "short JFIF": (0xE0, b"JFIF\0"),
    "several pictures": (0xE2, b"MPF\0lizard"),
    "comment that is no text": (0xFE, b"\xff\xfe\xff"),
    "empty EXIF": (0xE1, b"Exif\0\0"),
    "EXIF that is none": (0xE1, b"Exif\0\0lizard"),
}


@pytest.mark.parametrize("name", BROKEN_SEGMENTS)
def test_a_jpeg_is_not_its_metadata(name):
    whole = encode(Image.fromarray(NOISE), "JPEG", quality=100, subsampling=0)
    data = whole[:2] + jpeg_segment(*BROKEN_SEGMENTS[name]) + whole[2:]
    target, notes = load_warned(data)
    np.testing.assert_array_equal(target, load_image(whole, 9))
    assert_pixels(target, NOISE, atol=0.1)
    assert len(notes) <= 1


BROKEN_ENTRIES = {  # Of a wrong type, a wrong length, or pointing beyond the file.
    "resolution as text": (0x011A, 2, 5, b"many\0"),
    "resolution as bytes": (0x011A, 7, 3, b"\1\2\3"),
    "resolution of 0/0": (0x011A, 5, 1, bytes(8)),
    "resolution beyond the end": (0x011A, 5, 1, struct.pack("<I", 10**9)),
    "unit as bytes": (0x0128, 1, 1, b"\2"),
    "unit as a large number": (0x0128, 4, 1, b"\xff\xff\xff\x7f"),
    "GPS as a negative number": (0x8825, 8, 1, b"\x98\xff"),
    "GPS as text": (0x8825, 2, 4, b"here"),
    "GPS beyond the end": (0x8825, 4, 1, struct.pack("<I", 10**9)),
    "EXIF as a fraction": (0x8769, 5, 1, bytes(8)),
    "software as a float": (0x0131, 11, 1, bytes(4)),
    "maker of half a length": (0x010F, 3, 3, b"7\0\0\0"),
    "XMP as numbers": (0x02BC, 3, 2, bytes(4)),
    "an unknown type": (0x011B, 99, 1, b"\0"),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("name", BROKEN_ENTRIES)
def test_broken_exif_leaves_pixels_and_orientation(name, kind):
    entries = [orientation_entry(6), BROKEN_ENTRIES[name]]
    data = with_exif(kind, tiff_table(entries), entries)
    target, notes = load_warned(data)
    assert_pixels(target, TURNED[6](NOISE), atol=0.1 if kind == "JPEG" else 1e-6)
    assert len(notes) <= 1 and all(": skipped " in note for note in notes)


def test_broken_exif_is_warned_of():
    for name in ("resolution as text", "unit as bytes", "GPS as a negative number"):
        exif = tiff_table([orientation_entry(1), BROKEN_ENTRIES[name]])
        (note,) = load_warned(with_exif("JPEG", exif))[1]
        assert "skipped what is broken in its EXIF" in note


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation(value, order):
    entries = [orientation_entry(value, order)]
    exif = tiff_table(entries, order)
    for kind in ("PNG", "WEBP", "TIFF"):
        target, notes = load_warned(with_exif(kind, exif, entries, order))
        assert_pixels(target, TURNED[value](NOISE))
        assert notes == []
    # Behind an entry that Pillow does not get over, or in a picture that is opened already.
    exif = tiff_table([*entries, (0x010F, 3, 3, struct.pack(order + "I", 7))], order)
    assert_pixels(load_warned(with_exif("PNG", exif))[0], TURNED[value](NOISE))
    assert_pixels(
        load_warned(Image.open(io.BytesIO(with_exif("PNG", exif))))[0], TURNED[value](NOISE)
    )


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_no_orientation_at_all(value):
    target, _ = load_warned(with_exif("PNG", tiff_table([orientation_entry(value)])))
    assert_pixels(target, NOISE)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("PPM", {})),
        *(("WEBP", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("JPEG2000", {})),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
    ],
)
def test_a_file_that_is_cut_in_its_pixels_is_refused(kind, options):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    data = encode(Image.fromarray(pixels), kind, **options)
    load_image(data)
    for share in (0.3, 0.5, 0.7, 0.9, 0.97):
        with pytest.raises(ValueError, match="no readable picture"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_image(data[: int(len(data) * share)])


# Transparency, depth, mode, colours


def straight(target: np.ndarray) -> np.ndarray:
    return np.round(np.concatenate([target[..., :3] / target[..., 3:], target[..., 3:]], -1) * 255)


GREYS = np.array([[[0], [1], [2]], [[3], [2], [1]], [[0], [2], [3]]])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_png_with_one_transparent_grey(depth):
    values = GREYS % 2**depth * {16: 257 * 60, 8: 60}.get(depth, 1)
    values[0, 0] += depth == 16  # Another grey, if only by its last bit.
    key = int(values[0, 1, 0])
    data = png_file(values, 0, depth, before=png_chunk(b"tRNS", struct.pack(">H", key)))
    grey = values * 255 / (2**depth - 1)
    alpha = 255 * (values != key)
    assert 0 < (alpha == 0).sum() < 9
    assert_pixels(load_image(data, 3), np.concatenate([grey] * 3 + [alpha], 2), atol=0.5 / 255)


@pytest.mark.parametrize("depth", [8, 16])
def test_colour_png_with_one_transparent_colour(depth):
    values = np.array(
        [[[10, 20, 30], [10, 20, 31], [10, 21, 30]], [[11, 20, 30], [10, 20, 30], [30, 20, 10]]]
    )
    values = values * (257 if depth == 16 else 1)
    if depth == 16:
        values[0, 1] = values[0, 0] + [0, 0, 1]  # Its high bytes are the same.
    chunk = png_chunk(b"tRNS", struct.pack(">HHH", *values[0, 0]))
    alpha = 255 * (values != values[0, 0]).any(2, keepdims=True)
    assert (alpha == 0).sum() == 2
    target = load_image(png_file(values, 2, depth, before=chunk), 3)
    rgb = values / (257 if depth == 16 else 1)
    assert_pixels(target, np.concatenate([rgb, alpha], 2), atol=1.01 / 255)


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_png(colour, samples):
    values = np.random.default_rng(samples).integers(0, 65536, (5, 5, samples))
    values[..., -1] |= 0xC000 if samples != 3 else 0
    grey = values[..., :1].repeat(3, 2)
    wanted = {3: values, 2: np.concatenate([grey, values[..., 1:]], 2), 4: values}[samples]
    assert_pixels(load_image(png_file(values, colour, 16), 5), wanted / 257, atol=2 / 255)


def test_palette_with_alpha():
    colours = np.array([[200, 10, 20], [10, 200, 20], [0, 0, 255], [9, 9, 9]], np.uint8)
    alphas = np.array([255, 128, 0, 255], np.uint8)
    places = np.array([[0, 1, 2], [3, 2, 1], [1, 0, 3]], np.uint8)
    wanted = np.concatenate([colours[places], alphas[places][..., None]], 2)
    chunks = png_chunk(b"PLTE", colours.tobytes()) + png_chunk(b"tRNS", alphas[:3].tobytes())
    assert_pixels(load_image(png_file(places[..., None], 3, before=chunks), 3), wanted, 1 / 255)

    picture = Image.frombytes("P", (3, 3), places.tobytes())
    picture.putpalette(colours.tobytes())
    picture.info["transparency"] = alphas.tobytes()
    assert_pixels(load_image(picture, 3), wanted, 1 / 255)
    picture.info["transparency"] = 2
    wanted[..., 3] = 255 * (places != 2)
    assert_pixels(load_image(picture, 3), wanted, 1 / 255)

    picture = Image.frombytes("PA", (3, 3), np.stack([places, alphas[places]], 2).tobytes())
    picture.putpalette(colours.tobytes())
    wanted[..., 3] = alphas[places]
    assert_pixels(load_image(picture, 3), wanted, 1 / 255)


MODES = {  # One pixel of a mode, and its straight RGBA, by formulas of the mode's own standard.
    "1": (255, (255, 255, 255, 255)),
    "L": (51, (51, 51, 51, 255)),
    "LA": ((200, 100), (200, 200, 200, 100)),
    "La": ((80, 102), (200, 200, 200, 102)),
    "RGB": ((200, 100, 50), (200, 100, 50, 255)),
    "RGBA": ((200, 100, 50, 102), (200, 100, 50, 102)),
    "RGBa": ((80, 40, 20, 102), (200, 100, 50, 102)),
    "RGBX": ((200, 100, 50, 7), (200, 100, 50, 255)),
    "CMYK": ((55, 155, 205, 0), (200, 100, 50, 255)),
    "YCbCr": ((124, 86, 182), (200, 100, 50, 255)),  # JFIF's matrix
    "HSV": ((14, 191, 200), (200, 100, 50, 255)),
    "LAB": ((127, 128, 128), (118, 118, 118, 255)),  # L* 49.8, a* and b* 0: sRGB 118.4
    "I;16": (0x3333, (51, 51, 51, 255)),
    "I;16L": (0x3333, (51, 51, 51, 255)),
    "I;16B": (0x3333, (51, 51, 51, 255)),
}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode(mode):
    value, wanted = MODES[mode]
    picture = Image.new(mode, (4, 4), 0)
    for x in range(4):
        for y in range(4):
            picture.putpixel((x, y), value)
    target = load_image(picture, 4)
    np.testing.assert_allclose(straight(target), np.full((4, 4, 4), wanted), atol=2.5)


@pytest.mark.parametrize("largest", [255, 1000, 4095, 65535])
def test_pgm_of_any_depth(largest):
    values = np.random.default_rng(0).integers(0, largest + 1, (5, 5, 1))
    data = (
        f"P5 5 5 {largest}\n".encode() + values.astype(">u2" if largest > 255 else "u1").tobytes()
    )
    wanted = (values / largest * 255).repeat(3, 2)
    assert_pixels(load_image(data, 5), wanted, atol=0.6 / 255)
    assert_pixels(load_image(Image.open(io.BytesIO(data)), 5), wanted, atol=0.6 / 255)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bit_tiff(order):
    values = np.random.default_rng(0).integers(0, 65536, (5, 5, 1))
    mode = "I;16" if order == "<u2" else "I;16B"
    picture = Image.frombytes(mode, (5, 5), values.astype(order).tobytes())
    wanted = (values / 257).repeat(3, 2)
    assert_pixels(load_image(picture, 5), wanted, atol=0.6 / 255)
    assert_pixels(load_image(encode(picture, "TIFF"), 5), wanted, atol=0.6 / 255)


ARRAYS = {
    "bool": np.array([[True, False], [False, True]]),
    "uint8": np.array([[255, 0], [102, 51]], np.uint8),
    "uint16": np.array([[65535, 0], [257 * 102, 257 * 51]], np.uint16),
    **{
        str(np.dtype(dtype)): np.array([[1, 0], [0.4, 0.2]], dtype)
        for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16)
    },
}


@pytest.mark.parametrize("dtype", ARRAYS)
def test_arrays_of_each_type_and_shape(dtype):
    values = ARRAYS[dtype]
    largest = {"bool": 1, "uint8": 255, "uint16": 65535}.get(dtype, 1)
    wanted = (values.astype(float) / largest * 255)[..., None].repeat(3, 2)
    one = values.dtype.type(largest)
    shapes = [values, values[..., None], np.stack([values] * 3, 2)]
    shapes += [np.stack([values] * 3 + [np.full_like(values, one)], 2)]
    for array in shapes:
        for kind in (np.asarray, jnp.asarray, lambda each: each.repeat(2, 0)[::2]):
            assert_pixels(load_image(kind(array), 2), wanted, atol=0.6 / 255)
    if dtype != "uint16":  # A list's integers are of [0, 255].
        assert_pixels(load_image(values.tolist(), 2), wanted, atol=0.6 / 255)


def test_a_traced_array_is_refused():
    @jax.jit
    def load(pixels):
        return load_image(pixels)

    with pytest.raises(ValueError, match=r"got .*: it is traced: load the target outside"):
        load(jnp.zeros((4, 4, 4)))


def icc_profile(space: bytes, connection: bytes, tags: dict[bytes, bytes], name="test") -> bytes:
    """An ICC profile of version 2, by the layout of ICC.1:2001-04."""
    words = name.encode() + b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(words)) + words + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
    } | tags
    table, body, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, place + len(body), len(data))
        body += data
    kind = b"prtr" if space == b"CMYK" else b"mntr"
    header = struct.pack(
        ">I4sI4s4s4s",
        132 + len(table) - 4 + len(body),
        b"\0" * 4,
        0x02100000,
        kind,
        space,
        connection,
    )
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(value * 65536) for value in values))


LINEAR = b"curv" + bytes(4) + struct.pack(">I", 0)
# The primaries of sRGB, adapted to the white of profiles, as IEC 61966-2-1 has them.
PRIMARIES = {
    b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
    b"gXYZ": xyz(0.38515, 0.71687, 0.09708),
    b"bXYZ": xyz(0.14307, 0.06061, 0.71410),
}
CURVES = {b"rTRC": LINEAR, b"gTRC": LINEAR, b"bTRC": LINEAR}
LINEAR_RGB = icc_profile(b"RGB ", b"XYZ ", PRIMARIES | CURVES)
LINEAR_GREY = icc_profile(b"GRAY", b"XYZ ", {b"kTRC": LINEAR})


def srgb_curve(linear: np.ndarray) -> np.ndarray:
    """From linear light of [0, 1] to sRGB's values, as IEC 61966-2-1 has it."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_another_colour_profile_becomes_srgb(kind):
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = Image.new("RGB", (8, 8), (200, 100, 10))
    data = encode(picture, kind, icc_profile=LINEAR_RGB, **options)
    wanted = srgb_curve(np.array([200, 100, 10]) / 255) * 255
    target, notes = load_warned(data, 8)
    assert_pixels(target, np.full((8, 8, 3), wanted), atol=3 / 255)
    assert notes == []
    assert_pixels(load_image(Image.open(io.BytesIO(data)), 8), np.full((8, 8, 3), wanted), 3 / 255)


def test_swapped_primaries():
    profile = icc_profile(
        b"RGB ", b"XYZ ", dict(zip(PRIMARIES, list(PRIMARIES.values())[::-1], strict=True)) | CURVES
    )
    data = encode(Image.new("RGB", (4, 4), (255, 0, 0)), icc_profile=profile)
    assert_pixels(load_image(data, 4), np.full((4, 4, 3), (0, 0, 255)), atol=3 / 255)


def test_a_profile_does_not_touch_alpha():
    pixels = NOISE[:6, :6].astype(np.uint8)
    alpha = np.arange(36, dtype=np.uint8).reshape(6, 6, 1) * 4 + 100
    data = encode(Image.fromarray(np.concatenate([pixels, alpha], 2)), icc_profile=LINEAR_RGB)
    wanted = np.concatenate([srgb_curve(pixels / 255) * 255, alpha], 2)
    assert_pixels(load_image(data, 6), wanted, atol=3 / 255)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "I;16"])
def test_profiles_of_grey_and_of_palettes(mode):
    picture = Image.new("L", (4, 4), 128).convert("RGB" if mode == "P" else "L")
    picture = picture.convert(mode, dither=Image.Dither.NONE) if mode != "I;16" else picture
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    value = np.asarray(picture.convert("RGB"))[0, 0, 0] if mode != "I;16" else 128
    wanted = np.full((4, 4, 3), srgb_curve(value / 255) * 255)
    for profile in [LINEAR_RGB] if mode == "P" else [LINEAR_GREY, LINEAR_RGB]:
        target, notes = load_warned(encode(picture, icc_profile=profile), 4)
        assert_pixels(target, wanted, atol=3 / 255)
        assert notes == []


def test_a_profile_of_inks():
    corners = np.full((2, 2, 2, 2, 3), (0, 128, 128), np.uint8)  # Lab: black but for two corners
    corners[0, 0, 0, 0] = (255, 128, 128)
    corners[1, 0, 0, 0] = (128, 128, 128)  # Cyan ink alone is a grey, L* 50.2: sRGB 119.7
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 * np.eye(3, dtype=int).flatten()).tolist())
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    lut += ramp * 4 + corners.tobytes() + ramp * 3
    profile = icc_profile(b"CMYK", b"Lab ", {b"A2B0": lut})
    picture = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    target, notes = load_warned(encode(picture, "TIFF", icc_profile=profile), 4)
    assert_pixels(target, np.full((4, 4, 3), 119.7), atol=3 / 255)
    assert notes == []


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"lizard"), ("RGB", LINEAR_RGB[:200]), ("RGB", LINEAR_GREY), ("CMYK", LINEAR_RGB)],
)
def test_a_broken_or_wrong_profile_is_skipped(mode, profile):
    picture = Image.new("RGB", (4, 4), (200, 100, 50)).convert(mode)
    target, notes = load_warned(encode(picture, "TIFF", icc_profile=profile), 4)
    assert_pixels(target, np.full((4, 4, 3), (200, 100, 50)), atol=1e-6)
    (note,) = notes
    assert "skipped its colour profile" in note


def test_the_profile_of_srgb_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert_pixels(load_image(encode(Image.fromarray(NOISE), icc_profile=profile), 9), NOISE)


# Animations


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.parametrize("empty", [1, 3])
def test_the_first_frame_that_is_not_empty(kind, empty):
    frames = [Image.new("RGBA", (9, 9), (9 * i, 0, 0, 0)) for i in range(empty)]
    for i in range(empty):
        frames[i].putpixel((i, i), (0, 99, 0, 0))
    red = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    red.paste((255, 0, 0, 255), (0, 0, 9, 5))
    frames += [red, Image.new("RGBA", (9, 9), (0, 0, 255, 255))]
    options = {"GIF": {"disposal": 2}, "WEBP": {"lossless": True, "exact": True}}.get(kind, {})
    durations = [100 + i for i in range(len(frames))]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=durations, **options
    )
    pixels = np.zeros((9, 9, 4))
    pixels[:5] = (255, 0, 0, 255)
    target, notes = load_warned(data)
    assert_pixels(target, pixels)
    (note,) = notes
    assert "skipped" in note and "empty frame" in note
    opened = Image.open(io.BytesIO(data))
    assert_pixels(load_warned(opened)[0], pixels)
    assert opened.tell() == 0
    opened = Image.open(io.BytesIO(data))  # Pillow's way back through an APNG is broken.
    opened.seek(opened.n_frames - 1)
    target, notes = load_warned(opened)
    assert_pixels(target, np.full((9, 9, 4), (0, 0, 255, 255)))
    assert notes == [] and opened.tell() == opened.n_frames - 1


def test_an_animation_of_nothing_is_refused():
    frames = [Image.new("RGBA", (9, 9), (i, 0, 0, 0)) for i in range(3)]
    data = encode(
        frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True
    )
    with pytest.raises(ValueError, match="fully transparent"):
        load_image(data)


# What is no picture, and what is too large a one


FOREIGN = {
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n",
        "a Git LFS pointer, not the picture itself: run git lfs pull",
    ),
    "page": (HTML, "a web page: save the picture, not the page"),
    "page in capitals": (b"\xef\xbb\xbf\n<!-- hello -->\n<HTML><body>", "a web page"),
    "page with a drawing": (b"<!doctype html><html><body><svg></svg>", "a web page"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing: export it as PNG"),
    "head of a page": (b"<head><title>404</title>", "a web page"),
    "SVG of 16 bits": ('<?xml version="1.0"?><svg/>'.encode("utf-16"), "an SVG drawing"),
    "SVG with a long preface": (
        b"<?xml version='1.0'?><!DOCTYPE svg [" + b"<!ENTITY ns 'http:'>" * 99 + b"]><svg/>",
        "an SVG drawing",
    ),
    "JPEG XL": (b"\xff\x0a\x10\x20", "a JPEG XL picture"),
    "JPEG XL in a box": (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    "TIFF that is none": (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a TIFF of a kind that"),
    "SVG of XML": (
        b'<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN">\n<svg width="4">',
        "an SVG drawing",
    ),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "a PDF document: export the page as PNG"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo"),
    "HEIC, mif1": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC photo"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "an AVIF picture"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\2\0isommp41", "a video: save one of its frames as PNG"),
    "WebM": (b"\x1a\x45\xdf\xa3\x01\0\0\0", "a video"),
    "ZIP": (b"PK\x03\x04\x14\0\0\0", "a compressed archive: unpack it first"),
    "SVGZ": (b"\x1f\x8b\x08\0\0\0\0\0", "a compressed archive"),
    "nothing": (b"", "an empty file"),
    "text": (b"lizard, lizard, lizard", "an unknown format"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_named_like_a_picture_is_named(name, tmp_path):
    data, reason = FOREIGN[name]
    path = tmp_path / "lizard.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="no readable picture") as caught:
        load_image(path)
    assert f"({reason}" in str(caught.value) and "\n" not in str(caught.value)


PEAK = """
import sys, warnings
import nca_helpers
def memory(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024
nca_helpers.load_image(bytes.fromhex(sys.argv[2]), 40)
open("/proc/self/clear_refs", "w").write("5")
idle = memory("VmRSS")
warnings.simplefilter("error")
try:
    assert nca_helpers.load_image(sys.argv[1], 40).any()
except ValueError as error:
    print(error)
print(f"{(memory('VmHWM') - idle) / 1e6:.0f}")
"""


def peak(path: Path) -> tuple[float, str]:
    """The most megabytes beyond those of the idle process while a picture loads, and its error."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the most memory that a process has had")
    command = [sys.executable, "-c", PEAK, str(path), encode(Image.new("RGB", (9, 9))).hex()]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    assert ran.returncode == 0, ran.stderr
    *error, megabytes = ran.stdout.splitlines()
    return float(megabytes), "\n".join(error)


def huge_png(width: int, height: int, colour: int, samples: int) -> bytes:
    """A grey PNG that is made without ever being in memory."""
    packer = zlib.compressobj(1)
    row = b"\0" + bytes((200,)) * (width * samples)
    data = b"".join([packer.compress(row) for _ in range(height)]) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def test_a_huge_photo_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "huge.jpg"
    Image.new("L", (12_000, 9_000), 200).save(path)
    megabytes, error = peak(path)
    assert megabytes < 300 and error == ""
    target, notes = load_warned(path, 40)
    np.testing.assert_allclose(
        target[5:35], np.full((30, 40, 4), (200 / 255,) * 3 + (1,)), atol=0.02
    )
    assert not target[:5].any() and notes == []


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (6, 4)])
def test_the_largest_png_is_read_in_bounded_memory(tmp_path, colour, samples):
    path = tmp_path / "large.png"
    path.write_bytes(huge_png(7_000, 7_000, colour, samples))
    megabytes, error = peak(path)
    assert megabytes < 300 and error == ""


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "opened", "progressive"])
def test_a_larger_one_is_refused_before_it_is_decoded(kind, tmp_path):
    path = tmp_path / "huge"
    if kind == "WEBP":
        Image.new("RGB", (5_000, 5_000), "red").save(path, "WEBP", quality=1, method=0)
    elif kind == "progressive":
        Image.new("L", (6_000, 6_000), 200).save(path, "JPEG", progressive=True)
    else:
        path.write_bytes(huge_png(12_000, 9_000, 0, 1))
    if kind == "opened":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            source = Image.open(path)
        with pytest.raises(ValueError, match="12000×9000 pixels; of this kind at most 50 million"):
            load_image(source)
        assert source.tile  # It is still not decoded.
    else:
        megabytes, error = peak(path)
        assert megabytes < 100
        assert "pixels; of this kind at most" in error and "make it smaller" in error


def test_a_file_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("nca_helpers.images.LARGEST_FILE", 1000)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(1001))
    for source in (path, io.BytesIO(bytes(1001))):
        with pytest.raises(ValueError, match="it has more than 1000 bytes"):
            load_image(source)


@pytest.mark.parametrize("size", [3, 40, 100])
def test_a_large_picture_is_reduced_as_a_small_one_is(size):
    height, width = 2_100, 2_200
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows / height, columns / width, (rows // 300 + columns // 300) % 2], 2)
    alpha = (rows + columns > 1_000)[..., None]
    pixels = np.round(np.concatenate([pixels, alpha], 2) * 255).astype(np.uint8)
    target = load_image(pixels, size)
    pixels = pixels / 255 * np.where(np.arange(4) < 3, pixels[..., 3:] / 255, 1)
    weights = lanczos_weights(width, size), lanczos_weights(height, round(size * height / width))
    expected = np.einsum("jw,hwc->hjc", weights[0], pixels).clip(0, 1)
    expected = np.einsum("ih,hjc->ijc", weights[1], expected).clip(0, 1)
    expected[..., :3] = np.minimum(expected[..., :3], expected[..., 3:])
    top = (size - len(expected)) // 2
    np.testing.assert_allclose(target[top : top + len(expected)], expected, atol=4 / 255)


# Warnings


def test_threads_leave_the_warnings_of_python_as_they_were():
    before = warnings.showwarning, list(warnings.filters)
    broken = png_file(NOISE, 2, before=png_chunk(b"tEXt", TEXT, wrong=True))
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        threads = [
            threading.Thread(target=lambda: found.extend(load_image(broken, 9) for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == len(caught) == 160
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_a_warning_that_is_an_error_is_the_readers_own_wish():
    broken = png_file(NOISE, 2, before=png_chunk(b"tEXt", TEXT, wrong=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="skipped broken metadata"):
            load_image(broken)
        load_image(png_file(NOISE, 2))


@pytest.mark.parametrize(
    "source", ["x" * 5000, b"x" * 5000, np.zeros((500, 500, 7)), [[7] * 99] * 99]
)
def test_an_error_never_shows_more_than_a_line(source):
    with pytest.raises((ValueError, OSError)) as caught:
        load_image(source if not isinstance(source, list) else [*source, [1]])
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


# The network: a real server, on this machine


class Server:
    """Answers by path: bytes, or a function of the request handler. Unknown paths are 404."""

    def __init__(self):
        self.answers, self.requests, self.closing = {}, [], threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append(self.path)
                answer = outer.answers.get(self.path)
                if answer is None:
                    self.send_error(404)
                elif callable(answer):
                    answer(self)
                else:
                    self.reply(answer)

            def reply(self, data, content_type="image/png", length=None):
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(length or len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"
        threading.Thread(target=self.httpd.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.httpd.shutdown()
        self.httpd.server_close()


def hang(server):
    return lambda handler: server.closing.wait(5)


def trickle(server):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(60):
            if server.closing.wait(0.05):
                break
            handler.wfile.write(b"x")

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(lambda server: None, "404", id="404"),
        pytest.param(hang, "timed out", id="timeout"),
        pytest.param(trickle, "took longer than", id="trickle"),
        pytest.param(lambda server: HTML, "a web page: save the picture, not the page", id="HTML"),
    ],
)
def test_failed_download_of_a_picture(server, monkeypatch, answer, reason):
    if reason in ("timed out", "took longer than"):
        monkeypatch.setattr("nca_helpers.files.TIMEOUT", 1.0)
    server.answers["/own.png"] = answer(server)
    kind = ValueError if answer(server) == HTML else OSError
    with pytest.raises(kind, match="source must be a picture: a path, ") as caught:
        load_image(f"{server.url}/own.png")
    assert f"got '{server.url}/own.png': " in str(caught.value) and reason in str(caught.value)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_refused_connection(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(OSError, match=r"source must be .*cannot be downloaded.*refused"):
        load_image(f"http://127.0.0.1:{unused_port()}/x.png")


@pytest.mark.parametrize("url", ["http://", "http://[bad", "HTTPS://127.0.0.1:99999/x"])
def test_malformed_address(url):
    with pytest.raises(OSError, match=r"source must be .*cannot be downloaded"):
        load_image(url)
