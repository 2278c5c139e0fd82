"""Targets, against literal names, a Lanczos in float64, the font's bitmaps and a real server."""

import http.server
import importlib.util
import io
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from PIL import Image, ImageFont

from nca_helpers import emoji as module
from nca_helpers.emoji import (
    BUNDLED,
    emoji_name,
    emoji_url,
    load_emoji,
    load_image,
    render_emoji,
)

NAMES = {
    "🦎": "1f98e",
    "😀": "1f600",
    "💥": "1f4a5",
    "🫩": "1fae9",
    "🀄": "1f004",
    "🅰️": "1f170",
    "🈚": "1f21a",
    "❤️": "2764",
    "❤": "2764",
    "©": "00a9",
    "®️": "00ae",
    "‼️": "203c",
    "™️": "2122",
    "ℹ️": "2139",
    "↔️": "2194",
    "⌚": "231a",
    "Ⓜ️": "24c2",
    "▪️": "25aa",
    "☺️": "263a",
    "⤴️": "2934",
    "⭐": "2b50",
    "〰️": "3030",
    "㊗️": "3297",
    "🏻": "1f3fb",
    "👍🏽": "1f44d_1f3fd",
    "👋🏿": "1f44b_1f3ff",
    "☝🏻": "261d_1f3fb",
    "👩‍🚀": "1f469_200d_1f680",
    "👩🏾‍🚀": "1f469_1f3fe_200d_1f680",
    "👨‍👩‍👧‍👦": "1f468_200d_1f469_200d_1f467_200d_1f466",
    "🧑‍🧑‍🧒": "1f9d1_200d_1f9d1_200d_1f9d2",
    "👩‍❤️‍💋‍👨": "1f469_200d_2764_200d_1f48b_200d_1f468",
    "🧑🏻‍🤝‍🧑🏿": "1f9d1_1f3fb_200d_1f91d_200d_1f9d1_1f3ff",
    "🫱🏻‍🫲🏿": "1faf1_1f3fb_200d_1faf2_1f3ff",
    "🐈‍⬛": "1f408_200d_2b1b",
    "❤️‍🔥": "2764_200d_1f525",
    "👁️‍🗨️": "1f441_200d_1f5e8",
    "🕵️‍♂️": "1f575_200d_2642",
    "🏳️‍🌈": "1f3f3_200d_1f308",
    "🏳️‍⚧️": "1f3f3_200d_26a7",
    "🏴‍☠️": "1f3f4_200d_2620",
    "🏴": "1f3f4",
    "#️⃣": "0023_20e3",
    "*️⃣": "002a_20e3",
    "1️⃣": "0031_20e3",
    "1⃣": "0031_20e3",
}


def subdivision_flag(tags: str) -> str:
    return "🏴" + "".join(chr(0xE0000 + ord(tag)) for tag in tags) + "\U000e007f"


FLAGS = {
    "🇫🇷": ("1f1eb_1f1f7", "FR"),
    "🇯🇵": ("1f1ef_1f1f5", "JP"),
    "🇦🇿": ("1f1e6_1f1ff", "AZ"),
    "🇺🇳": ("1f1fa_1f1f3", "UN"),
    subdivision_flag("gbsct"): ("1f3f4_e0067_e0062_e0073_e0063_e0074_e007f", "GB-SCT"),
    subdivision_flag("gbeng"): ("1f3f4_e0067_e0062_e0065_e006e_e0067_e007f", "GB-ENG"),
    subdivision_flag("gbwls"): ("1f3f4_e0067_e0062_e0077_e006c_e0073_e007f", "GB-WLS"),
    subdivision_flag("ustx"): ("1f3f4_e0075_e0073_e0074_e0078_e007f", "US-TX"),
}

NO_EMOJI = [
    *(
        "",
        " ",
        "a",
        "lizard",
        "1",
        "#",
        "🦎🦎",
        "🦎🐠",
        "🦎 ",
        "🦎\n",
        "🦎a",
        "🇫",
        "🇫🇷🇩🇪",
        "→",
        "\u200d",
    ),
    *("🦎\u200d", "\u200d🦎", "\ufe0f", "❤\ufe0e", "\ud83e\udd8e", "🏴\U000e0067\U000e007f"),
    *(None, 1, 0x1F98E, b"\xf0\x9f\xa6\x8e", ["🦎"], Path("🦎")),
]


@pytest.mark.parametrize(("emoji", "codes"), NAMES.items())
def test_name_and_address_of_an_emoji(emoji, codes):
    assert emoji_name(emoji) == f"emoji_u{codes}.png"
    assert emoji_url(emoji) == (
        "https://raw.githubusercontent.com/googlefonts/noto-emoji/v2.048/png/128/"
        f"emoji_u{codes}.png"
    )


@pytest.mark.parametrize(("emoji", "codes", "region"), [(e, *rest) for e, rest in FLAGS.items()])
def test_name_and_address_of_a_flag(emoji, codes, region):
    assert emoji_name(emoji) == f"emoji_u{codes}.png"
    assert emoji_url(emoji) == (
        "https://raw.githubusercontent.com/googlefonts/noto-emoji/v2.048/"
        f"third_party/region-flags/png/{region}.png"
    )


def test_variation_selector_changes_nothing():
    for emoji in (*NAMES, *FLAGS):
        bare = emoji.replace("\ufe0f", "")
        assert emoji_name(bare) == emoji_name(emoji) == emoji_name(emoji + "\ufe0f")
        assert emoji_url(bare) == emoji_url(emoji)
    np.testing.assert_array_equal(load_emoji("❤", offline=True), load_emoji("❤️", offline=True))
    np.testing.assert_array_equal(load_emoji("👁", offline=True), load_emoji("👁️", offline=True))


@pytest.mark.parametrize("value", NO_EMOJI, ids=ascii)
@pytest.mark.parametrize("function", [emoji_name, emoji_url, load_emoji, render_emoji])
def test_what_is_not_one_emoji_is_refused(function, value):
    with pytest.raises(ValueError) as caught:
        function(value)
    message = str(caught.value)
    assert message.startswith("emoji must be") and "exactly one emoji" in message
    assert message.endswith(repr(value))


@pytest.mark.parametrize("value", [0, -1, 1.0, 40.5, True, "40", None, float("nan"), [40]])
@pytest.mark.parametrize("load", [load_emoji, load_image])
def test_bad_size_and_padding_are_refused(load, value):
    source = "🦎" if load is load_emoji else Image.new("RGB", (4, 4))
    with pytest.raises(ValueError, match="size must be an integer of at least 1") as caught:
        load(source, size=value)
    assert repr(value) in str(caught.value)
    if value == 0 and value is not False:
        return
    with pytest.raises(ValueError, match="padding must be an integer of at least 0") as caught:
        load(source, padding=value)
    assert repr(value) in str(caught.value)


def test_numpy_integers_are_integers():
    assert load_emoji("🦎", np.uint8(200), np.uint8(100)).shape == (400, 400, 4)


@pytest.mark.parametrize("value", [1, "yes", 0, np.nan])
def test_bad_offline_is_refused(value):
    with pytest.raises(ValueError, match="offline must be True, False or None, got"):
        load_emoji("🦎", offline=value)


# The pictures


def assert_is_target(target: np.ndarray, size: int, padding: int) -> None:
    side = size + 2 * padding
    assert isinstance(target, np.ndarray) and target.dtype == np.float32
    assert target.shape == (side, side, 4)
    assert np.isfinite(target).all() and target.min() >= 0 and target.max() <= 1
    assert (target[..., :3] <= target[..., 3:]).all()
    inside = np.zeros((side, side), bool)
    inside[padding : padding + size, padding : padding + size] = True
    assert not target[~inside].any()


@pytest.mark.parametrize("emoji", BUNDLED)
@pytest.mark.parametrize(("size", "padding"), [(40, 0), (24, 4), (72, 16), (128, 0), (1, 0)])
def test_bundled_emoji_are_targets(emoji, size, padding, no_network):
    target = load_emoji(emoji, size, padding)
    assert_is_target(target, size, padding)
    assert size == 1 or target[..., 3].max() > 0.8


def test_bundle_is_what_it_says():
    folder = Path(module.__file__).parent / "data" / "emoji"
    assert len(BUNDLED) == 13
    assert {path.name for path in folder.glob("*")} == {emoji_name(emoji) for emoji in BUNDLED}
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert (picture.format, picture.mode, picture.size) == ("PNG", "RGBA", (128, 128))
        assert path.stat().st_size < 20_000


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


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 30, 4), np.uint8)
    return Image.fromarray(pixels)


def test_every_kind_of_source_gives_the_same_target(picture, tmp_path, server):
    data = encode(picture)
    path = tmp_path / "own picture.png"
    path.write_bytes(data)
    server.answers["/own.png"] = data
    before = picture.tobytes()
    expected = load_image(picture, 20, 2)
    sources = (data, bytearray(data), memoryview(data), path, str(path), np.asarray(picture))
    for source in (*sources, np.asarray(picture) / 255, f"{server.url}/own.png"):
        np.testing.assert_array_equal(load_image(source, 20, 2), expected)
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
    yield from (
        ("empty bytes", b"", "0 bytes"),
        ("text", b"<!DOCTYPE html><html>", "begin with b'<!DOCTYPE html"),
        ("half a PNG", png[: len(png) // 2], "no readable picture"),
        ("a flipped bit", bytes(broken), "no readable picture"),
        ("half a PNG, opened", Image.open(io.BytesIO(png[: len(png) // 2])), "no readable picture"),
        ("lost in a PNG, opened", Image.open(io.BytesIO(lost)), "broken PNG file"),
        ("half a JPEG, opened", Image.open(io.BytesIO(jpeg[: len(jpeg) // 2])), "truncated"),
        ("zero width", Image.new("RGBA", (0, 5)), "zero size, 0×5"),
        ("fully transparent", Image.new("RGBA", (5, 5), (255, 0, 0, 0)), "fully transparent"),
        ("grey float", Image.new("F", (5, 5)), "mode F"),
        ("number", 3, "its type is int"),
        ("None", None, "its type is NoneType"),
        ("list", [[0, 1]], "its type is list"),
        ("NaN", nan, "not all in [0, 1]"),
        ("infinity", np.where(np.isnan(nan), np.inf, 0), "not all in [0, 1]"),
        ("above one", np.full((4, 4, 3), 1.5), "not all in [0, 1]"),
        ("below zero", np.full((4, 4, 3), -0.1), "not all in [0, 1]"),
        ("int32", np.ones((4, 4, 4), np.int32), "int32"),
        ("two channels", np.ones((4, 4, 2), np.uint8), "(4, 4, 2)"),
        ("flat", np.ones((4, 4), np.uint8), "(4, 4)"),
        ("no rows", np.ones((0, 4, 4), np.uint8), "(0, 4, 4)"),
    )


@pytest.mark.parametrize(
    ("source", "reason"), [pytest.param(*rest, id=name) for name, *rest in refused_sources()]
)
def test_what_is_no_picture_is_refused(source, reason):
    with pytest.raises(ValueError) as caught:
        load_image(source)
    message = str(caught.value)
    assert message.startswith(f"source={source!r:.200}") and reason in message
    assert "Accepted: a path, an http(s) URL, bytes, a PIL image, or an array" in message


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"source=.*decompression bomb"):
        load_image(encode(Image.new("RGB", (64, 64))))


@pytest.mark.parametrize("path", ["missing.png", ".", "x" * 5000, "a\0b", "~nobody/x.png", "🦎"])
def test_missing_file_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (path, Path(path)):
        with pytest.raises(FileNotFoundError, match=r"source=.*no such file.*Accepted: a path"):
            load_image(source)


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


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server in noto-emoji's place, an empty cache, and no font."""
    server = Server()
    monkeypatch.setattr(module, "NOTO_URL", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NCA_OFFLINE", raising=False)
    monkeypatch.setattr(module, "render_emoji", no_font)
    yield server
    server.close()


def no_font(emoji):
    raise LookupError("no font in this test")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


FLAMINGO, FLAMINGO_URL = "🦩", "/png/128/emoji_u1f9a9.png"
HTML = b"<!DOCTYPE html><html><body>Welcome to the hotel network</body></html>"


def cached_files(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_download_and_cache(server, picture, tmp_path):
    server.answers[FLAMINGO_URL] = encode(picture)
    first = load_emoji(FLAMINGO, 20, 2)
    np.testing.assert_array_equal(first, load_image(picture, 20, 2))
    second = load_emoji(FLAMINGO, 20, 2)
    offline = load_emoji(FLAMINGO, 20, 2, offline=True)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, offline)
    assert server.requests == [FLAMINGO_URL]
    (file,) = cached_files(tmp_path)
    assert file.name == "emoji_u1f9a9.png" and "nca_helpers" in file.parts
    assert file.read_bytes() == encode(picture)


def test_flags_come_from_their_own_folder(server):
    server.answers["/third_party/region-flags/png/JP.png"] = encode(Image.new("RGB", (60, 40)))
    target = load_emoji("🇯🇵", 30)
    np.testing.assert_array_equal(
        target[..., 3].any(axis=1), [False] * 5 + [True] * 20 + [False] * 5
    )


def test_bundled_emoji_need_no_download(server):
    for emoji in BUNDLED:
        load_emoji(emoji)
    assert server.requests == []


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


ANSWERS = {
    "404": (lambda server, png: None, "404"),
    "500": (lambda server, png: lambda handler: handler.send_error(500), "500"),
    "timeout": (lambda server, png: hang(server), "timed out"),
    "trickle": (lambda server, png: trickle(server), "took longer than"),
    "HTML": (lambda server, png: HTML, "begin with b'<!DOCTYPE html>"),
    "a JPEG": (
        lambda server, png: encode(Image.new("RGB", (9, 9)), "JPEG"),
        "no readable PNG",
    ),
    "empty": (lambda server, png: lambda handler: handler.reply(b""), "0 bytes"),
    "cut off": (
        lambda server, png: lambda handler: handler.reply(png[:50], length=len(png)),
        "cannot be downloaded",
    ),
    "half a PNG": (lambda server, png: png[: len(png) // 2], "no readable PNG"),
    "too large": (lambda server, png: bytes(2**20 + 1), "more than 1048576 bytes"),
    "transparent": (
        lambda server, png: encode(Image.new("RGBA", (9, 9))),
        "fully transparent",
    ),
}


@pytest.mark.parametrize(("answer", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_failed_download_says_what_was_tried(
    server, picture, tmp_path, monkeypatch, answer, reason
):
    if reason in ("timed out", "took longer than"):
        monkeypatch.setattr("nca_helpers.files.TIMEOUT", 1.0)
    server.answers[FLAMINGO_URL] = answer(server, encode(picture))
    with pytest.raises(LookupError) as caught:
        load_emoji(FLAMINGO)
    heading, *tried = str(caught.value).splitlines()
    assert FLAMINGO in heading and "emoji_u1f9a9.png" in heading and "not found" in heading
    labels = [line.split(":")[0].strip() for line in tried]
    assert labels == ["bundled", "cache", "download", "font"]
    bundled, cache, download, font = tried
    assert all(emoji in bundled for emoji in BUNDLED)
    assert str(tmp_path / "cache") in cache
    assert reason in download
    assert "no font in this test" in font
    assert server.requests == [FLAMINGO_URL]
    if reason != "fully transparent":
        assert cached_files(tmp_path) == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [pytest.param(*ANSWERS[name], id=name) for name in ("404", "timeout", "trickle", "HTML")],
)
def test_failed_download_of_a_picture(server, picture, monkeypatch, answer, reason):
    if reason in ("timed out", "took longer than"):
        monkeypatch.setattr("nca_helpers.files.TIMEOUT", 1.0)
    server.answers["/own.png"] = answer(server, encode(picture))
    with pytest.raises((OSError, ValueError)) as caught:
        load_image(f"{server.url}/own.png")
    assert str(caught.value).startswith(f"source='{server.url}/own.png'")
    assert reason in str(caught.value) and "Accepted: a path" in str(caught.value)


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_refused_connection(server, monkeypatch):
    url = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(OSError, match=r"source=.*cannot be downloaded.*refused"):
        load_image(f"{url}/x.png")
    monkeypatch.setattr(module, "NOTO_URL", url)
    with pytest.raises(LookupError, match=r"download: .*refused"):
        load_emoji(FLAMINGO)


@pytest.mark.parametrize("url", ["http://", "http://[bad", "HTTPS://127.0.0.1:99999/x"])
def test_malformed_address(url):
    with pytest.raises(OSError, match=r"source=.*cannot be downloaded"):
        load_image(url)


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "Yes", "on"])
def test_offline_touches_no_network(server, picture, monkeypatch, no_network, value):
    server.answers[FLAMINGO_URL] = encode(picture)
    with pytest.raises(LookupError, match="download: not tried, offline"):
        load_emoji(FLAMINGO, offline=True)
    monkeypatch.setenv("NCA_OFFLINE", value)
    with pytest.raises(LookupError, match="download: not tried, offline"):
        load_emoji(FLAMINGO)
    assert server.requests == []


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", False), *((value, None) for value in ("0", "", "false", "No", "OFF"))],
)
def test_online_in_spite_of_the_environment(server, picture, monkeypatch, value, offline):
    monkeypatch.setenv("NCA_OFFLINE", value)
    server.answers[FLAMINGO_URL] = encode(picture)
    load_emoji(FLAMINGO, offline=offline)
    assert server.requests == [FLAMINGO_URL]


@pytest.mark.parametrize("value", ["2", "ja", " "])
def test_neither_online_nor_offline_is_refused(monkeypatch, no_network, value):
    monkeypatch.setenv("NCA_OFFLINE", value)
    with pytest.raises(ValueError, match=f"NCA_OFFLINE must be 1, .* or empty, got '{value}'"):
        load_emoji("🦎")


def test_half_written_cache_is_dropped_and_fetched_again(server, picture, tmp_path):
    data = encode(picture)
    server.answers[FLAMINGO_URL] = data
    expected = load_emoji(FLAMINGO)
    (file,) = cached_files(tmp_path)
    for damaged in (data[: len(data) // 2], b"", HTML):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(load_emoji(FLAMINGO), expected)
        assert file.read_bytes() == data
    assert server.requests == [FLAMINGO_URL] * 4
    file.write_bytes(data[:100])
    with pytest.raises(LookupError, match="cache: 100 bytes"):
        load_emoji(FLAMINGO, offline=True)
    assert not file.exists()


def test_unwritable_cache_is_no_error(server, picture, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    server.answers[FLAMINGO_URL] = encode(picture)
    for _ in range(2):
        np.testing.assert_array_equal(load_emoji(FLAMINGO), load_image(picture))
    assert server.requests == [FLAMINGO_URL] * 2


def test_unknown_home_is_no_error(server, picture, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    server.answers[FLAMINGO_URL] = encode(picture)
    np.testing.assert_array_equal(load_emoji(FLAMINGO), load_image(picture))


@pytest.mark.parametrize("failing", ["write", "replace"])
def test_failed_write_leaves_nothing_behind(server, picture, tmp_path, monkeypatch, failing):
    def refuse(*args):
        raise OSError("not today")

    # What is written reaches the disk with fsync, and its place with replace.
    monkeypatch.setattr(os, {"write": "fsync"}.get(failing, failing), refuse)
    server.answers[FLAMINGO_URL] = encode(picture)
    np.testing.assert_array_equal(load_emoji(FLAMINGO), load_image(picture))
    assert cached_files(tmp_path) == []


def test_concurrent_writers_leave_a_whole_file(server, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (300, 300, 4), np.uint8)
    data = encode(Image.fromarray(pixels))
    barrier = threading.Barrier(6)

    def answer(handler):  # all six download, for none finds the others' file
        barrier.wait(20)
        handler.reply(data)

    server.answers[FLAMINGO_URL] = answer
    targets, seen, done = [], set(), threading.Event()

    def watch():
        while not done.is_set():
            seen.update(file.read_bytes() for file in (tmp_path / "cache").glob("*/*/*.png"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    writers = [
        threading.Thread(target=lambda: targets.append(load_emoji(FLAMINGO))) for _ in range(6)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    watcher.join()
    assert len(targets) == 6 == len(server.requests)
    assert all((target == targets[0]).all() for target in targets)
    assert seen <= {data}
    (file,) = cached_files(tmp_path)
    assert file.read_bytes() == data


@pytest.mark.parametrize(
    ("platform", "folder"), [("linux", ".cache"), ("darwin", "Library/Caches")]
)
def test_cache_folder_of_the_platform(server, picture, tmp_path, monkeypatch, platform, folder):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module.sys, "platform", platform)
    server.answers[FLAMINGO_URL] = encode(picture)
    load_emoji(FLAMINGO)
    (file,) = (tmp_path / folder / "nca_helpers").rglob("*.png")
    assert file.name == "emoji_u1f9a9.png"


# The font


@pytest.fixture
def font_path():
    try:
        return ImageFont.truetype("NotoColorEmoji.ttf", 109).path
    except OSError:
        pytest.skip("Noto Color Emoji is not installed")


def glyph_picture(font_path: str, emoji: str) -> tuple[Image.Image, str]:
    """The PNG that the font file keeps for one code point, and the font's version."""
    ttlib = pytest.importorskip("fontTools.ttLib")
    font = ttlib.TTFont(font_path)
    if "CBDT" not in font:
        pytest.skip("this Noto Color Emoji has no bitmaps")
    glyph = font["CBDT"].strikeData[0][font.getBestCmap()[ord(emoji)]]
    return Image.open(io.BytesIO(glyph.imageData)).convert("RGBA"), str(
        font["name"].getName(5, 3, 1)
    )


@pytest.mark.parametrize("emoji", ["🦎", "🦋", "🕸"])
def test_font_draws_its_own_bitmaps(font_path, emoji):
    expected = load_image(glyph_picture(font_path, emoji)[0].crop((4, 0, 132, 128)), 128)
    np.testing.assert_allclose(load_image(render_emoji(emoji), 128), expected, atol=4 / 255)


def test_bundle_is_drawn_from_the_font(font_path, tmp_path, monkeypatch):
    if not glyph_picture(font_path, "🦎")[1].startswith("Version 2.042;"):
        pytest.skip("another version of Noto Color Emoji is installed")
    script = Path(__file__).parent.parent / "scripts" / "render_emoji.py"
    spec = importlib.util.spec_from_file_location("render_emoji", script)
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    bundle = drawing.FOLDER
    monkeypatch.setattr(drawing, "FOLDER", tmp_path)
    drawing.main()
    assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in bundle.glob("*.png"))
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(bundle / path.name) as bundled:
            np.testing.assert_array_equal(drawn, bundled)


def test_font_knows_sequences(font_path):
    # The newest of these are younger than the fonts that distributions ship.
    emoji = set(NAMES) - {"🫩", "🧑‍🧑‍🧒"} | set(FLAGS)
    pictures = {each: render_emoji(each).tobytes() for each in emoji}
    assert all(any(picture) for picture in pictures.values())
    same = [("❤", "❤️"), ("1⃣", "1️⃣")]
    assert all(pictures[one] == pictures[other] for one, other in same)
    assert len(set(pictures.values())) == len(pictures) - len(same)


@pytest.mark.parametrize(
    "emoji", ["🦎‍🦎", "🦎🏽", "🇽🇽", subdivision_flag("xxzzz"), "\U0001faff"], ids=ascii
)
def test_font_refuses_what_it_does_not_know(font_path, emoji):
    with pytest.raises(LookupError, match=r"has no picture for it|does not know this flag"):
        render_emoji(emoji)


def test_font_is_the_last_resort(font_path, tmp_path, monkeypatch, no_network):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = load_emoji(FLAMINGO, 40, 4, offline=True)
    np.testing.assert_array_equal(target, load_image(render_emoji(FLAMINGO), 40, 4))


def test_missing_font_is_said(monkeypatch):
    def missing(*args):
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", missing)
    with pytest.raises(LookupError, match=r"raqm|no usable NotoColorEmoji.ttf is installed"):
        render_emoji("🦩")


def test_pillow_without_raqm_is_said(monkeypatch):
    monkeypatch.setattr(module.features, "check", lambda feature: False)
    with pytest.raises(LookupError, match="no raqm"):
        render_emoji("🦩")
