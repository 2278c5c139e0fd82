"""Checkpoints: a trained automaton as one small file, and those that come with the package.

    save_nca("lizard.npz", nca, emoji="🦎", regime="growing")
    nca = load_nca("lizard.npz")
    nca = pretrained("🦎", "growing")

A checkpoint is a NumPy `.npz` that is read without pickle: the arrays `hidden/kernel`
`(3 * channels, hidden)`, whose rows are in the order of `perceive` (block * channels + channel),
`hidden/bias`, `update/kernel` `(hidden, channels)` and `update/bias`, all float32, and `meta`, a
JSON string. It has no checksum of its own, so that other tools can write it.
"""

import io
import json
import math
import numbers
import os
import zipfile
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from flax import nnx

from nca_helpers.emoji import emoji_name
from nca_helpers.model import NCA
from nca_helpers.video import replace_file

__all__ = ["bundled", "load_meta", "load_nca", "pretrained", "pretrained_meta", "save_nca"]

# Raised when a reader of the old format would misread the new one.
_FORMAT = 1

_REGIMES = ("growing", "persistent", "regenerating", "evolved")

Source = str | os.PathLike | Traversable | BinaryIO


def save_nca(path: str | os.PathLike, nca: NCA, **meta: Any) -> Path:
    """Writes a checkpoint. The same automaton and `meta` give the same bytes.

    Args:
        path: Where to; a missing folder is made, and a write that fails leaves the old file.
        nca: What to save.
        **meta: What else to note, as JSON knows it (NumPy's scalars and arrays are converted).
            A training notes `emoji, size, padding, regime, train_steps, num_steps` (the longest
            trained rollout) and `log10_loss`. `versions` of what made it is filled in. `format,
            channels, hidden, fire_rate` and `alive_threshold` are `nca`'s own and may be repeated,
            not changed.

    Returns:
        The path.

    Raises:
        ValueError: A weight is not float32 or not finite, or a value of `meta` is not JSON's or
            contradicts `nca`; nothing has been written then.
        TypeError: `nca` is no NCA.
    """
    if not isinstance(nca, NCA):
        raise TypeError(f"nca must be an NCA, got {type(nca).__name__}")
    arrays = {
        f"{layer}/{name}": np.asarray(getattr(getattr(nca, layer), name)[...])
        for layer in ("hidden", "update")
        for name in ("kernel", "bias")
    }
    own = {
        "format": _FORMAT,
        "channels": nca.channels,
        "hidden": nca.hidden_size,
        "fire_rate": nca.fire_rate,
        "alive_threshold": nca.alive_threshold,
    }
    _check_arrays(arrays, own)
    for name, value in own.items():
        if meta.get(name, value) != value:
            raise ValueError(f"{name} is the automaton's own, {value!r}, got {meta[name]!r}")
    meta = own | {"versions": _versions()} | meta
    text = json.dumps({name: _plain(name, value) for name, value in meta.items()})
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.array(text), **arrays)
    replace_file(path, buffer.getvalue())
    return Path(path)


def load_nca(source: Source) -> NCA:
    """Reads a checkpoint.

    Args:
        source: A path, a file opened in binary mode, or a resource of a package.

    Returns:
        The automaton, its weights bit for bit as they were saved.

    Raises:
        ValueError: The file is not a whole checkpoint of this format; says what is wrong with it.
        OSError: It cannot be read; FileNotFoundError if there is none.
    """
    arrays, meta = _read(source)
    nca = NCA(
        channels=meta["channels"],
        hidden=meta["hidden"],
        fire_rate=meta["fire_rate"],
        alive_threshold=meta["alive_threshold"],
        rngs=nnx.Rngs(0),
    )
    for name, array in arrays.items():
        layer, parameter = name.split("/")
        getattr(getattr(nca, layer), parameter)[...] = jnp.asarray(array)
    return nca


def load_meta(source: Source) -> dict[str, Any]:
    """Reads what a checkpoint says of itself: all of its `meta`, keys unknown here included.

    Args:
        source: A path, a file opened in binary mode, or a resource of a package.

    Raises:
        ValueError: The file is not a whole checkpoint of this format; says what is wrong with it.
        OSError: It cannot be read; FileNotFoundError if there is none.
    """
    return _read(source)[1]


def pretrained(emoji: str, regime: str) -> NCA:
    """Loads an automaton that comes with the package.

    Args:
        emoji: What it grows.
        regime: How it was trained: `"growing"`, `"persistent"`, `"regenerating"` (Distill's
            three) or `"evolved"`.

    Raises:
        ValueError: There is none; lists those that there are.
    """
    return load_nca(_pretrained_file(emoji, regime))


def pretrained_meta(emoji: str, regime: str) -> dict[str, Any]:
    """Reads the `meta` of an automaton that comes with the package (see `pretrained`)."""
    return load_meta(_pretrained_file(emoji, regime))


def bundled() -> list[tuple[str, str]]:
    """Lists the emoji and regimes of the automata that come with the package (see `pretrained`)."""
    return sorted(_bundled_files())


def _pretrained_folder() -> Traversable:
    return resources.files("nca_helpers") / "data" / "pretrained"


def _bundled_files() -> dict[tuple[str, str], Traversable]:
    folder = _pretrained_folder()
    files = {}
    for file in folder.iterdir() if folder.is_dir() else []:
        # 1f98e_growing.npz is 🦎 growing.
        *codes, regime = file.name.removesuffix(".npz").split("_")
        if regime in _REGIMES:
            files["".join(chr(int(code, 16)) for code in codes), regime] = file
    return files


def _pretrained_file(emoji: str, regime: str) -> Traversable:
    emoji_name(emoji)  # Refuses what is no emoji at all.
    files = _bundled_files()
    file = files.get((emoji.replace("\ufe0f", ""), regime))
    if file is None:
        there_are = ", ".join(map(" ".join, sorted(files))) or "none"
        raise ValueError(
            f"no automaton comes with the package for emoji={emoji!r}, regime={regime!r} "
            f"(of {', '.join(_REGIMES)}); there are: {there_are}"
        )
    return file


def _read(source: Source) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the meta of a checkpoint, or raises one ValueError that names it."""
    if hasattr(source, "read"):
        return _parse(source, str(getattr(source, "name", "the open file")))
    if not hasattr(source, "open"):
        source = Path(source)
    with source.open("rb") as file:
        return _parse(file, str(source))


def _parse(file: BinaryIO, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        return _checked_content(file)
    # A damaged file makes zipfile, NumPy and json raise nearly anything.
    except Exception as error:
        raise ValueError(f"{name} is not a checkpoint that can be read: {error}") from error


def _checked_content(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not an .npz, or not a whole one")
    file.seek(0)
    with np.load(file, allow_pickle=False) as content:
        if "meta" not in content:
            raise ValueError(f"it has no 'meta', only {', '.join(content) or 'nothing'}")
        meta = json.loads(str(content["meta"]))
        _check_meta(meta)
        missing = [name for name in _shapes(meta) if name not in content]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        arrays = {name: content[name] for name in _shapes(meta)}
    _check_arrays(arrays, meta)
    return arrays, meta


def _shapes(meta: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    channels, hidden = meta["channels"], meta["hidden"]
    return {
        "hidden/kernel": (3 * channels, hidden),
        "hidden/bias": (hidden,),
        "update/kernel": (hidden, channels),
        "update/bias": (channels,),
    }


def _check_meta(meta: Any) -> None:
    meta = meta if isinstance(meta, dict) else {}
    for name in ("format", "channels", "hidden", "fire_rate", "alive_threshold"):
        value = meta.get(name)
        kind = numbers.Real if name in ("fire_rate", "alive_threshold") else numbers.Integral
        if not isinstance(value, kind) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"its meta needs a number {name!r}, got {value!r:.60}")
    if meta["format"] > _FORMAT:
        raise ValueError(
            f"it has format {meta['format']}, newer than {_FORMAT}, the newest that is known "
            "here: update nca_helpers"
        )
    limits = {
        "format": meta["format"] >= 1,
        "channels": meta["channels"] >= 4,
        "hidden": meta["hidden"] >= 1,
        "fire_rate": 0 <= meta["fire_rate"] <= 1,
    }
    for name, is_met in limits.items():
        if not is_met:
            raise ValueError(f"its {name} is out of range, got {meta[name]}")


def _check_arrays(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    for name, shape in _shapes(meta).items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"the weights {name} must be float32 of shape {shape}, "
                f"got {array.dtype} of shape {array.shape}"
            )
        bad = ~np.isfinite(array)
        if bad.any():
            raise ValueError(
                f"the weights {name} must be finite, got NaN or infinity {bad.sum()} times"
            )


def _plain(name: str, value: Any) -> Any:
    """Returns `value` as JSON keeps it."""
    try:
        text = json.dumps(value, allow_nan=False, default=lambda array: np.asarray(array).tolist())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"meta {name!r} must be what JSON can hold, got {value!r:.60}") from error
    return json.loads(text)


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("nca_helpers", "jax", "flax", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # used from a checkout that is not installed
            continue
    return versions
