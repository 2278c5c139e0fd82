"""Feeds damaged pictures, checkpoints and emoji to what reads them, and looks for a wrong error.

    python scripts/fuzz.py             100,000 cases of each kind, with key 0
    python scripts/fuzz.py 5000 7      5,000 cases of each kind, with key 7

Every case must load, or raise one of the errors that its docstring names. What does not is printed
with all that is needed to make a test of it.
"""

import collections
import io
import json
import random
import sys
import time
import warnings
from importlib import resources

import numpy as np
from PIL import Image

from nca_helpers import emoji_name, load_emoji, load_image, load_meta

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "DDS")
JOINERS = "\u200d\ufe0f\u20e3🏻🏿🇦🇿🏴\U000e0067\U000e007f#*0a \n\x00\ud800"


def pictures() -> list[bytes]:
    """Small pictures in the formats that readers have."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    found = []
    for name in FORMATS:
        buffer = io.BytesIO()
        mode = "RGB" if name in ("JPEG", "PPM", "PCX") else "RGBA"
        Image.fromarray(pixels).convert(mode).save(buffer, name)
        found.append(buffer.getvalue())
    return found


def checkpoints() -> list[bytes]:
    folder = resources.files("nca_helpers") / "data" / "pretrained"
    return [file.read_bytes() for file in folder.iterdir() if file.name.endswith("evolved.npz")]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Returns bytes that were changed, cut, repeated or moved in a few places."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        start = chance.randrange(len(data) + 1)
        stop = min(len(data), start + chance.choice((1, 2, 4, 64)))
        match chance.randrange(5):
            case 0:
                data[start:stop] = chance.randbytes(stop - start)
            case 1:
                del data[start:stop]
            case 2:
                data[start:start] = data[start:stop]
            case 3:
                del data[start:]
            case 4:
                data[start:stop] = chance.choice((b"\xff", b"\x00")) * (stop - start)
    return bytes(data)


def rewritten(data: bytes, chance: random.Random) -> bytes:
    """Returns a checkpoint that is a whole file, with something in it that does not belong."""
    with np.load(io.BytesIO(data)) as content:
        arrays = dict(content)
    odd = (None, -1, 0, 1e308, float("nan"), True, "16", [], {}, 2**70, 0.5, 4, "</script>")
    if chance.random() < 0.5:
        meta = json.loads(str(arrays["meta"]))
        name = chance.choice(list(meta))
        meta[name] = chance.choice(odd)
        if chance.random() < 0.3:
            del meta[name]
        arrays["meta"] = np.array(json.dumps(meta))
    else:
        name = chance.choice(list(arrays))
        shape = chance.choice(((), (0,), (16,), (48, 16), (16, 48), (1, 1, 1)))
        dtype = chance.choice((np.float32, np.float64, np.int8, "U3", "V4", bool, "M8[s]"))
        arrays[name] = np.zeros(shape, dtype)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def words(chance: random.Random) -> str:
    """Returns a few characters, most of them such as emoji are made of."""
    block = (0x1F300, 0x1FAFF) if chance.random() < 0.6 else (0, 0x10FFFF)
    letters = (
        chance.choice(JOINERS) if chance.random() < 0.5 else chr(chance.randint(*block))
        for _ in range(chance.choice((0, 1, 1, 2, 3, 5, 9)))
    )
    return "".join(letters)


def named_and_loaded(text: str) -> None:
    emoji_name(text)
    load_emoji(text, size=8, offline=True)


def main() -> None:
    cases, key = (int(word) for word in (*sys.argv[1:], "100000", "0")[:2])
    chance = random.Random(key)
    warnings.simplefilter("ignore")  # Pillow warns of large and of odd pictures.
    some_pictures, some_checkpoints = pictures(), checkpoints()
    kinds = {
        "pictures": (
            lambda: damaged(chance.choice(some_pictures), chance),
            lambda data: load_image(data, size=8),
            (ValueError, OSError),
        ),
        "checkpoints": (
            lambda: chance.choice((damaged, rewritten))(chance.choice(some_checkpoints), chance),
            lambda data: load_meta(io.BytesIO(data)),
            (ValueError,),
        ),
        "emoji": (lambda: words(chance), named_and_loaded, (ValueError, LookupError)),
    }
    wrong = 0
    for kind, (make, read, accepted) in kinds.items():
        outcomes, slowest = collections.Counter(), 0.0
        for _ in range(cases):
            case = make()
            started = time.perf_counter()
            try:
                read(case)
                outcomes["loaded"] += 1
            except accepted as error:
                outcomes[type(error).__name__] += 1
            except BaseException as error:
                wrong += 1
                print(f"{kind}: {type(error).__name__}: {error!s:.200}\n  {case!r}")
                if isinstance(error, KeyboardInterrupt):
                    raise
            slowest = max(slowest, time.perf_counter() - started)
        print(f"{kind}: {cases:,} cases, {dict(outcomes)}, slowest {slowest:.2f} s", flush=True)
    sys.exit(f"{wrong} cases raised another error" if wrong else 0)


if __name__ == "__main__":
    main()
