"""Checkpoints: a trained automaton as one small file, and those that come with the package.

    save_nca("lizard.npz", nca, emoji="🦎", regime="growing")
    nca = load_nca("lizard.npz")
    nca = pretrained("🦎", "growing")

A checkpoint is a NumPy `.npz` that is read without pickle: the arrays `hidden/kernel`
`(3 * channels, hidden)`, whose rows are in the order of `perceive` (block * channels + channel),
`hidden/bias`, `update/kernel` `(hidden, channels)` and `update/bias`, all float32, and `meta`, a
JSON string. It has no checksum of its own, so that other tools can write it.
"""

import contextlib
import json
import os
import zipfile
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax import nnx

from nca_helpers.checks import check_finite, check_integer, check_number, require, shown
from nca_helpers.emoji import emoji_name
from nca_helpers.files import as_path, replace_file
from nca_helpers.model import NCA, has_own_rule, set_weights, weight_shapes, weights_of

# Raised when a reader of the old format would misread the new one.
_FORMAT = 1

_PRETRAINED = resources.files("nca_helpers") / "data" / "pretrained"
_REGIMES = ("growing", "persistent", "regenerating", "evolved", "many")

Source = str | os.PathLike | Traversable | BinaryIO


def save_nca(path: str | os.PathLike, nca: NCA, **meta: Any) -> Path:
    """Writes a checkpoint, and returns its path. The same automaton and `meta` give the same bytes.

    Args:
        path: Where to.
        nca: What to save. Its weights must be finite.
        **meta: What else to note, as JSON knows it (NumPy's scalars and arrays are converted).
            A training notes `emoji, size, padding, regime, train_steps, num_steps` (the longest
            trained rollout) and `log10_loss`. `versions` of what made it is filled in. `format,
            channels, hidden, fire_rate` and `alive_threshold` are `nca`'s own and may be repeated,
            not changed.

    Raises:
        TypeError: `nca` is no NCA, or has a rule of its own.
    """
    if not isinstance(nca, NCA):
        raise TypeError(f"nca must be an NCA, got {shown(nca)}")
    if has_own_rule(nca):
        kind = type(nca).__name__
        raise TypeError(f"nca is a {kind} with a rule of its own; a checkpoint keeps weights only")
    arrays = weights_of(nca)
    own = {"format": _FORMAT, "channels": nca.channels, "hidden": nca.hidden_size}
    own |= {"fire_rate": nca.fire_rate, "alive_threshold": nca.alive_threshold}
    _check_arrays(arrays, own)
    meta = {name: as_json(f"meta {name!r}", value) for name, value in meta.items()}
    for name in own.keys() & meta.keys():
        require(meta[name] == own[name], name, f"the automaton's own, {own[name]}", meta[name])
    text = json.dumps(own | {"versions": _versions()} | meta)
    return replace_file(path, lambda file: np.savez(file, meta=np.array(text), **arrays))


def load_nca(source: Source) -> NCA:
    """Reads a checkpoint: the automaton, its weights bit for bit as they were saved.

    Args:
        source: A path, a file opened in binary mode, or a resource of a package.

    Raises:
        ValueError: The file is not a whole checkpoint of this format; says what is wrong with it.
        OSError: It cannot be read; FileNotFoundError if there is none.
    """
    arrays, meta = _read(source)
    settings = {name: meta[name] for name in ("channels", "hidden", "fire_rate", "alive_threshold")}
    nca = NCA(**settings, rngs=nnx.Rngs(0))
    set_weights(nca, arrays)
    return nca


def load_meta(source: Source) -> dict[str, Any]:
    """Reads all of a checkpoint's `meta`, by key; for source and errors see `load_nca`."""
    return _read(source)[1]


def pretrained(emoji: str, regime: str) -> NCA:
    """Loads an automaton that comes with the package, by what it grows and how it was trained.

    Regimes are `"growing"`, `"persistent"`, `"regenerating"` (Distill's three), `"evolved"`, and
    `"many"`, which grows others too, from seeds that hold their `codes`, in its meta. Where there
    is no such automaton, the error lists those that there are.
    """
    return load_nca(_pretrained_file(emoji, regime))


def pretrained_meta(emoji: str, regime: str) -> dict[str, Any]:
    """Reads the `meta` of an automaton that comes with the package; see `pretrained`."""
    return load_meta(_pretrained_file(emoji, regime))


def bundled() -> list[tuple[str, str]]:
    """Lists the emoji and regimes of the automata that come with the package; see `pretrained`."""
    return sorted(_bundled_files())


def as_json(name: str, value: Any) -> Any:
    """Returns `value` as JSON keeps it; raises ValueError if it cannot."""
    try:
        text = json.dumps(value, allow_nan=False, default=lambda array: np.asarray(array).tolist())
    except (TypeError, ValueError, RecursionError):
        require(False, name, "what JSON can hold", value)
    return json.loads(text)


def open_npz(file: BinaryIO) -> np.lib.npyio.NpzFile:
    """Opens a NumPy `.npz` that holds no pickle; raises ValueError if it is none."""
    if not zipfile.is_zipfile(file):
        raise ValueError("it is not an .npz, or not a whole one")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def _bundled_files() -> dict[tuple[str, str], Traversable]:
    files = {}
    for file in _PRETRAINED.iterdir() if _PRETRAINED.is_dir() else []:
        # 1f98e_growing.npz is 🦎 growing.
        *codes, regime = file.name.removesuffix(".npz").split("_")
        if regime in _REGIMES:
            files["".join(chr(int(code, 16)) for code in codes), regime] = file
    return files


def _pretrained_file(emoji: str, regime: str) -> Traversable:
    emoji_name(emoji)  # Refuses what is no emoji at all.
    model, files = (emoji.replace("\ufe0f", ""), regime), _bundled_files()
    there_are = ", ".join(map(" ".join, sorted(files))) or "none"
    require(model in files, "emoji and regime", f"those of a model here ({there_are})", model)
    return files[model]


def _read(source: Source) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the arrays and the meta of a checkpoint, or raises one ValueError that names it."""
    source = as_path(source) if isinstance(source, str | os.PathLike) else source
    is_open = hasattr(source, "read")
    is_source = is_open or hasattr(source, "open")
    require(is_source, "source", "a path or a file open in binary mode", source)
    name = getattr(source, "name", "the open file") if is_open else source
    with contextlib.nullcontext(source) if is_open else source.open("rb") as file:
        try:
            with open_npz(file) as content:
                meta = json.loads(str(content["meta"]))
                _check_meta(meta)
                arrays = {name: content[name] for name in weight_shapes(0, 0)}
            _check_arrays(arrays, meta)
        except Exception as error:  # Damage makes zipfile, NumPy and json raise nearly anything.
            reason = f"is not a checkpoint that can be read: {error!s:.200}"
            raise ValueError(f"{name} {reason}") from error
    return arrays, meta


def _check_meta(meta: Any) -> None:
    require(isinstance(meta, dict), "meta", "an object of JSON", meta)
    check_integer("format", meta.get("format"), 1)
    if meta["format"] > _FORMAT:
        raise ValueError(f"its format {meta['format']} is newer than {_FORMAT}: update nca_helpers")
    check_integer("channels", meta.get("channels"), 4)
    check_integer("hidden", meta.get("hidden"), 1)
    check_number("fire_rate", meta.get("fire_rate"), 0, 1)
    check_number("alive_threshold", meta.get("alive_threshold"))


def _check_arrays(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    for name, shape in weight_shapes(meta["channels"], meta["hidden"]).items():
        is_right = arrays[name].shape == shape and arrays[name].dtype == np.float32
        require(is_right, name, f"float32 of shape {shape}", arrays[name])
        check_finite(name, arrays[name])


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("nca_helpers", "jax", "flax", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):  # A checkout, not installed.
            versions[package] = metadata.version(package)
    return versions
