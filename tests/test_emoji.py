"""Emoji, against literal names, the font's bitmaps and a real server."""

import importlib.util
import io
import os
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont
from test_images import HTML, Server, assert_is_target, encode, hang, trickle, unused_port

from nca_helpers import emoji as module
from nca_helpers.checks import shown
from nca_helpers.emoji import (
    BUNDLED,
    emoji_name,
    emoji_url,
    load_emoji,
    render_emoji,
    target_name,
)
from nca_helpers.images import load_image

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
        "🦎 🐠",
        "🦎a",
        "🇫",
        "🇫🇷🇩🇪",
        "→",
        "\u200d",
    ),
    *("🦎\u200d", "\u200d🦎", "\ufe0f", "\ufe0e", "\ud83e\udd8e", "🏴\U000e0067\U000e007f"),
    *("U+0041", "U+1F98E a", "U+1F98E U+1F420", "U+110000", ":", "::", ":no_such_thing:", ":a b:"),
    *(":latin_small_letter_a:", ":lizard", "x" * 5000),
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
    assert f"got {shown(value)}" in message and len(message) < 400


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


PASTED = {  # What people paste, and the code points that they mean.
    " 🦎": "1f98e",
    "\u00a0🦎\n": "1f98e",
    "\ufeff🦎\u200b": "1f98e",
    "🦎\ufe0e": "1f98e",
    "❤\ufe0e": "2764",
    "☂\ufe0e ": "2602",
    "👁\ufe0e\u200d🗨\ufe0e": "1f441_200d_1f5e8",
    ":lizard:": "1f98e",
    " :Lizard: ": "1f98e",
    ":dog_face:": "1f436",
    ":face-with-tears-of-joy:": "1f602",
    ":heavy_black_heart:": "2764",
    "U+1F98E": "1f98e",
    " u+1f98e ": "1f98e",
    "U+2764 U+FE0F": "2764",
    "U+1F469 U+200D U+1F680": "1f469_200d_1f680",
    "U+1F1EB,U+1F1F7": "1f1eb_1f1f7",
    "U+1F44BU+1F3FF": "1f44b_1f3ff",
}


@pytest.mark.parametrize(("emoji", "codes"), PASTED.items(), ids=map(ascii, PASTED))
def test_an_emoji_as_people_paste_it(emoji, codes):
    assert emoji_name(emoji) == f"emoji_u{codes}.png"


def test_a_pasted_emoji_is_loaded(no_network):
    expected = load_emoji("🦎", offline=True)
    codes = ("U+1F98E", "1f98e", "0x1F98E", "\\U0001F98E", "\\u{1f98e}", "&#x1F98E;")
    for emoji in (" 🦎\n", "🦎\ufe0e", "\u200e🦎", ":lizard:", *codes):
        np.testing.assert_array_equal(load_emoji(emoji, offline=True), expected)
    np.testing.assert_array_equal(load_emoji("❤\ufe0e", offline=True), load_emoji("❤️"))


@pytest.mark.parametrize(
    ("emoji", "meant"),
    [
        ("🦎🐠", "these are 2: 🦎 🐠"),
        ("🦎 👩‍🚀\n🇫🇷", "these are 3: 🦎 👩‍🚀 🇫🇷"),
        (":heart:", "❤"),
        (":thumbsup:", "👍"),
        (":collision:", "💥"),
        (":tree:", "🎄"),
        (":lizzard:", "🦎"),
        (":xqzwv:", "None has such a name"),
    ],
)
def test_the_emoji_that_is_meant_is_named(emoji, meant):
    with pytest.raises(ValueError, match=r"exactly one emoji.*, got") as caught:
        load_emoji(emoji)
    assert meant in str(caught.value).partition(repr(emoji))[2]


# New in Unicode 15.1, 16 and 17.
NEWER = {
    "🐦‍🔥": "1f426_200d_1f525",
    "🍋‍🟩": "1f34b_200d_1f7e9",
    "🍄‍🟫": "1f344_200d_1f7eb",
    "⛓️‍💥": "26d3_200d_1f4a5",
    "🙂‍↔️": "1f642_200d_2194",
    "🙂‍↕️": "1f642_200d_2195",
    "🧑‍🧑‍🧒‍🧒": "1f9d1_200d_1f9d1_200d_1f9d2_200d_1f9d2",
    "🏃🏽‍♀️‍➡️": "1f3c3_1f3fd_200d_2640_200d_27a1",
    "👩🏿‍🦽‍➡️": "1f469_1f3ff_200d_1f9bd_200d_27a1",
    "\U0001fae9": "1fae9",
    "\U0001fac6": "1fac6",
    "\U0001fabe": "1fabe",
    "\U0001fadf": "1fadf",
    "\U0001faea": "1faea",
    "\U0001facd": "1facd",
    "\U0001f6d8": "1f6d8",
    "\U0001fa8a": "1fa8a",
    "\U0001f9d1\u200d\U0001fa70": "1f9d1_200d_1fa70",
    "\U0001f9d1\U0001f3fb\u200d\U0001f430\u200d\U0001f9d1\U0001f3fc": (
        "1f9d1_1f3fb_200d_1f430_200d_1f9d1_1f3fc"
    ),
}


@pytest.mark.parametrize(("emoji", "codes"), NEWER.items(), ids=NEWER.values())
def test_newer_emoji_are_known(emoji, codes):
    assert emoji_name(emoji) == f"emoji_u{codes}.png"


@pytest.mark.parametrize(
    ("emoji", "near"),
    [
        ("🐦‍🔥", "🐦 🔥"),
        ("👍🏽", "👍"),
        ("🏃🏽‍♀️‍➡️", "🏃 ♀ ➡"),
        ("\U0001f9e9", "🧦 🧧 🧨 🧪 🧫 🧬"),
        ("🇨🇶", "🇨🇳 🇨🇴 🇨🇵 🇨🇷 🇨🇸 🇨🇹"),
        (subdivision_flag("usxx"), "🇺🇸"),
        ("1️⃣", None),
    ],
)
def test_what_no_source_has_is_listed_with_what_is_near(server, emoji, near):
    with pytest.raises(LookupError) as caught:
        load_emoji(emoji)
    first, *lines = str(caught.value).splitlines()
    assert emoji.replace("\ufe0f", "") in first
    assert [line for line in lines if "near" in line] == ([f"  near it: {near}"] if near else [])


def test_every_flag_has_an_address():
    letters = [chr(code) for code in range(0x1F1E6, 0x1F200)]
    for i, first in enumerate(letters):
        for j, second in enumerate(letters):
            name = emoji_url(first + second).rpartition("/")[2]
            assert name == f"{chr(65 + i)}{chr(65 + j)}.png"


NAMED = {
    "🦎": "lizard",
    " :lizard: ": "lizard",
    "❤️": "heavy_black_heart",
    "👩‍🚀": "emoji_u1f469_200d_1f680",
    "🇫🇷": "emoji_u1f1eb_1f1f7",
    "lizard.png": "lizard",
    "/home/me/my photo (1).JPG": "my_photo_1",
    "C:\\Users\\me\\photo.png": "photo",
    "~/archive.tar.gz": "archive_tar",
    "ein Böser Käfer.png": "ein_Böser_Käfer",
    "写真.png": "写真",
    "my%20photo.png": "my_photo",
    "https://example.org/my%20photo.png?token=a/b.c#d": "my_photo",
    "https://example.org/o/images%2Flizard.png?alt=media&token=1": "lizard",
    "https://example.org/120px-Lizard.svg.png": "120px-Lizard_svg",
    "https://example.org/%F0%9F%A6%8E.png": "own_picture",
    "https://example.org/": "own_picture",
    "https://example.org": "own_picture",
    "file:///tmp/a%20b.png": "a_b",
    "data:image/png;base64,iVBORw0KGgo=": "own_picture",
    "..": "own_picture",
    "a\0b.png": "a_b",
    "": "own_picture",
}


@pytest.mark.parametrize(("source", "name"), NAMED.items(), ids=map(ascii, NAMED))
def test_a_target_has_a_name_for_files(source, name):
    assert target_name(source) == name
    if name not in ("lizard", "heavy_black_heart") and "emoji" not in name and "://" not in source:
        assert target_name(Path(source)) == name


@pytest.mark.parametrize("source", [b"bytes", None, io.BytesIO(), np.zeros((4, 4)), 3])
def test_what_has_no_name_is_an_own_picture(source):
    assert target_name(source) == "own_picture"


@pytest.mark.parametrize("letter", ["a", "é", "写", "𠀀", "%C3%A9", "\ud800"], ids=ascii)
def test_a_name_fits_on_every_disk(letter, tmp_path):
    name = target_name(f"https://example.org/{letter * 300}.png?{'token' * 99}")
    assert 1 <= len(name.encode()) <= 60
    (tmp_path / f"{name}_growth.webp").write_text("fits")


@pytest.mark.parametrize("value", [1, "yes", 0, np.nan])
def test_bad_offline_is_refused(value):
    with pytest.raises(ValueError, match="offline must be True, False or None, got"):
        load_emoji("🦎", offline=value)


# The pictures


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


# The network: a real server, on this machine


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


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 30, 4), np.uint8))


FLAMINGO, FLAMINGO_URL = "🦩", "/png/128/emoji_u1f9a9.png"


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


@pytest.mark.parametrize("target", [b"NO.png", b"NO.png\n", b"../png/NO.png"])
def test_a_symbolic_link_in_the_repository_is_followed(server, picture, tmp_path, target):
    folder = "/third_party/region-flags/png"
    server.answers |= {f"{folder}/SJ.png": target, f"{folder}/NO.png": encode(picture)}
    expected = load_image(picture)
    for _ in range(2):
        np.testing.assert_array_equal(load_emoji("🇸🇯"), expected)
    assert server.requests == [f"{folder}/SJ.png", f"{folder}/NO.png"]
    (file,) = cached_files(tmp_path)
    assert (file.name, file.read_bytes()) == ("emoji_u1f1f8_1f1ef.png", encode(picture))


def test_a_link_to_a_link_is_followed_but_no_circle(server, picture):
    folder = "/third_party/region-flags/png"
    server.answers |= {f"{folder}/SJ.png": b"NO.png", f"{folder}/NO.png": b"BV.png"}
    server.answers[f"{folder}/BV.png"] = encode(picture)
    np.testing.assert_array_equal(load_emoji("🇸🇯"), load_image(picture))
    server.answers[f"{folder}/BV.png"] = b"SJ.png"
    server.requests.clear()
    with pytest.raises(LookupError, match=r"download: .*readable PNG, got 6 bytes"):
        load_emoji("🇧🇻")
    assert len(server.requests) == 3


@pytest.mark.parametrize("target", [b"http://127.0.0.1:1/x.png", b"//127.0.0.1:1/x.png", b"/x.png"])
def test_a_link_leads_to_no_other_host(server, target):
    server.answers["/third_party/region-flags/png/SJ.png"] = target
    with pytest.raises(LookupError, match=r"download: .*readable PNG"):
        load_emoji("🇸🇯")
    assert len(server.requests) == 1


def test_bundled_emoji_need_no_download(server):
    for emoji in BUNDLED:
        load_emoji(emoji)
    assert server.requests == []


ANSWERS = {
    "404": (lambda server, png: None, "404"),
    "500": (lambda server, png: lambda handler: handler.send_error(500), "500"),
    "timeout": (lambda server, png: hang(server), "timed out"),
    "trickle": (lambda server, png: trickle(server), "took longer than"),
    "HTML": (lambda server, png: HTML, "begin with b'<!DOCTYPE html>"),
    "a JPEG": (
        lambda server, png: encode(Image.new("RGB", (9, 9)), "JPEG"),
        "a readable PNG",
    ),
    "empty": (lambda server, png: lambda handler: handler.reply(b""), "0 bytes"),
    "cut off": (
        lambda server, png: lambda handler: handler.reply(png[:50], length=len(png)),
        "cannot be downloaded",
    ),
    "half a PNG": (lambda server, png: png[: len(png) // 2], "IDAT is cut"),
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
    assert labels == ["bundled", "cache", "download", "font", "near it"]
    bundled, cache, download, font, near = tried
    assert near.split()[2:] == ["🦦", "🦧", "🦨", "🦪", "🦫", "🦬"]
    assert all(emoji in bundled for emoji in BUNDLED)
    assert str(tmp_path / "cache") in cache
    assert reason in download
    assert "no font in this test" in font
    assert server.requests == [FLAMINGO_URL]
    if reason != "fully transparent":
        assert cached_files(tmp_path) == []


def test_refused_connection(server, monkeypatch):
    monkeypatch.setattr(module, "NOTO_URL", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(LookupError, match=r"download: .*refused"):
        load_emoji(FLAMINGO)


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
    with pytest.raises(LookupError, match="cache: it is no readable picture"):
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
