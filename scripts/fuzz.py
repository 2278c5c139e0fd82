"""Feeds damaged files and odd arguments to what takes them, and looks for a wrong error.

    python scripts/fuzz.py             100,000 cases of each kind, with key 0
    python scripts/fuzz.py 5000 7      5,000 cases of each kind, with key 7

Every case must load, or raise one of the errors that its docstring names. What does not is printed
with all that is needed to make a test of it.
"""

import base64
import collections
import io
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nca_helpers import (
    NCA,
    PGPE,
    circle,
    emoji_name,
    halve,
    hole,
    living_mask,
    load_emoji,
    load_image,
    load_meta,
    pair_keys,
    perceive,
    random_circles,
    rollout,
    rollout_frames,
    seed_state,
    to_rgb,
)
from nca_helpers.checkpoint import as_json

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM", "TGA", "PCX", "DDS")
JOINERS = "\u200d\ufe0f\u20e3🏻🏿🇦🇿🏴\U000e0067\U000e007f#*0a \n\x00\ud800"


def pictures() -> list[bytes]:
    """Small pictures of the formats, kinds of transparency and depths that readers have."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 4), np.uint8)
    whole = Image.fromarray(pixels)
    about = Image.Exif()
    about[0x0112], about[0x010E] = 6, "a photo"  # Orientation and description.
    note = PngInfo()
    note.add_text("Comment", 200 * "a", zip=True)
    grey = whole.convert("L")
    kinds = [(name, "RGB" if name in ("JPEG", "PPM", "PCX") else "RGBA", {}) for name in FORMATS]
    kinds += [("PNG", mode, {"pnginfo": note}) for mode in ("1", "L", "LA", "P", "I;16", "RGB")]
    kinds += [("PNG", mode, {"transparency": 7}) for mode in ("L", "P")]
    kinds += [("TIFF", mode, {}) for mode in ("1", "F", "I", "I;16", "LA", "CMYK")]
    kinds += [(name, "RGB", {"exif": about}) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    found = []
    for name, mode, options in kinds:
        buffer = io.BytesIO()
        picture = grey if mode[0] in "FI" else whole  # Pillow makes these from grey alone.
        picture.convert(mode).save(buffer, name, **options)
        found.append(buffer.getvalue())
    empty = Image.new("RGBA", whole.size)
    for name in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        empty.save(buffer, name, save_all=True, append_images=[whole, empty])
        found.append(buffer.getvalue())
    return found


def handed_over(data: bytes, chance: random.Random, folder: Path) -> Any:
    """Returns the bytes of a file in one of the ways that people hand a picture over."""
    match chance.randrange(7):
        case 0:
            return io.BytesIO(data)
        case 1:
            return chance.choice((bytearray, memoryview))(data)
        case 2:
            kind = chance.choice(("image/png", "", "text/plain", "image/webp;charset=x"))
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"[
                : chance.choice((50, None))
            ]
        case 3:
            path = folder / chance.choice(("a.png", "with space.jpg", "ü%20.gif", "none"))
            path.write_bytes(data)
            return chance.choice((str, Path, Path.as_uri))(path)
        case _:
            return data


def arrays(chance: random.Random) -> Any:
    """Returns an array as people hand a picture over: of any shape, type and range."""
    sides = (0, 1, 1, 2, 3, 4, 5, 9)
    shape = tuple(chance.choice(sides) for _ in range(chance.choice((0, 1, 2, 3, 3, 3, 4))))
    values = np.random.default_rng(chance.randrange(99)).normal(size=shape)
    values = values * chance.choice((0, 0.2, 1, 300, np.nan, np.inf, 1e300))
    kinds = ("u1", "u2", "i8", "f2", "f4", "f8", "?", "c8", "O", "U3", ">f4", "M8[s]")
    with np.errstate(all="ignore"):
        array = np.asarray(values).astype(chance.choice(kinds))
    return chance.choice((array, array, array.tolist(), array.T, np.flip(array)))


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
    written = chance.choice(("{}", "{}", " {}\n", ":{}:", "{}\ufe0e", "<{}>", "&#{};", "U+{}"))
    names = ("lizard", "1F98E", "1f98e 200d", "x1F1E9", "flag: Germany", "waving hand")
    return written.format(chance.choice(names) if chance.random() < 0.2 else "".join(letters))


ODD = (None, -1, 0, 1, 2.5, float("nan"), float("inf"), 2**70, True, "3", b"", [], {}, (), 1j)
ODD += (np.zeros(0), np.float64(0.5), np.zeros((3, 3)), np.zeros((4, 4, 6), np.float16), object())
ODD += (np.zeros((4, 4, 3), np.float32), np.zeros((2, 4, 4, 6), int), [[[0.0]]], np.array("a"))


def calls() -> list[tuple[Callable, list]]:
    """Calls that are cheap, with arguments that are accepted."""
    nca = NCA(channels=6, hidden=4, rngs=nnx.Rngs(0))
    state, key = jnp.zeros((4, 4, 6)), jax.random.key(0)
    pgpe = PGPE(population_size=4, optimizer=optax.sgd(0.1))
    return [
        (seed_state, [4, 4, 6]),
        (circle, [state, (2, 2), 1]),
        (halve, [state, "left"]),
        (hole, [state, 1]),
        (perceive, [state, 0.1]),
        (living_mask, [state]),
        (to_rgb, [state]),
        (random_circles, [state, key]),
        (nca, [state, key]),
        (rollout, [nca, state, key, 2]),
        (rollout_frames, [nca, state, key, 2]),
        (pair_keys, [key, 4]),
        (lambda *given: pgpe.init(*given[:2], init_stdev=given[2]), [np.zeros(3), key, 0.1]),
        (pgpe.scores, [np.zeros(4)]),
        (as_json, ["meta", 1]),
    ]


def misused(chance: random.Random, known: list) -> tuple[Callable, list]:
    """Returns a call of which one argument is odd."""
    function, given = chance.choice(known)
    given = list(given)
    given[chance.randrange(len(given))] = chance.choice(ODD)
    return function, given


def named_and_loaded(text: str) -> None:
    emoji_name(text)
    load_emoji(text, size=8, offline=True)


def main() -> None:
    cases, key = (int(word) for word in (*sys.argv[1:], "100000", "0")[:2])
    chance = random.Random(key)
    warnings.simplefilter("ignore")  # Pillow warns of large and of odd pictures.
    some_pictures, some_checkpoints, known = pictures(), checkpoints(), calls()
    folder = Path(tempfile.mkdtemp())
    kinds = {
        "pictures": (
            lambda: handed_over(damaged(chance.choice(some_pictures), chance), chance, folder),
            lambda source: load_image(source, size=8),
            (ValueError, OSError),
        ),
        "arrays": (
            lambda: arrays(chance),
            lambda source: load_image(source, size=8),
            (ValueError, OSError),
        ),
        "checkpoints": (
            lambda: chance.choice((damaged, rewritten))(chance.choice(some_checkpoints), chance),
            lambda data: load_meta(io.BytesIO(data)),
            (ValueError,),
        ),
        "emoji": (lambda: words(chance), named_and_loaded, (ValueError, LookupError)),
        "calls": (
            lambda: misused(chance, known),
            lambda call: call[0](*call[1]),
            (ValueError, TypeError),
        ),
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
        print(
            f"{kind}: {cases:,} cases with key {key}, {dict(outcomes)}, slowest {slowest:.2f} s",
            flush=True,
        )
    sys.exit(f"{wrong} cases raised another error" if wrong else 0)


if __name__ == "__main__":
    main()
