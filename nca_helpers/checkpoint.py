"""Checkpoints: a trained automaton as one small file, those of the package, a run in a folder.

    save_nca("lizard.npz", nca, emoji="🦎", regime="growing")
    nca = load_nca("lizard.npz")
    nca = pretrained("🦎", "growing")

    save_run("lizard_run", state, step=100, seed=0)
    state, step = restore_run("lizard_run", state, seed=0)

A checkpoint is a NumPy `.npz` that is read without pickle: the arrays `hidden/kernel`
`(3 * channels, hidden)`, whose rows are in the order of `perceive` (block * channels + channel),
`hidden/bias`, `update/kernel` `(hidden, channels)` and `update/bias`, all float32, and `meta`, a
JSON string. It has no checksum of its own, so that other tools can write it.

A run is what a training has to remember: orbax writes it, for `restore_run` alone.
"""

import contextlib
import io
import json
import logging
import math
import numbers
import os
import shutil
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from nca_helpers.checks import check_integer
from nca_helpers.emoji import emoji_name
from nca_helpers.files import replace_file
from nca_helpers.model import (
    NCA,
    has_own_rule,
    set_weights,
    weight_shapes,
    weights_of,
)

__all__ = [
    "bundled",
    "load_meta",
    "load_nca",
    "pretrained",
    "pretrained_meta",
    "restore_run",
    "save_nca",
    "save_run",
]

# Raised when a reader of the old format would misread the new one.
_FORMAT = 1

_REGIMES = ("growing", "persistent", "regenerating", "evolved")

_RUN = "nca_run_"

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
        TypeError: `nca` is no NCA, or has a rule of its own.
    """
    if not isinstance(nca, NCA):
        raise TypeError(f"nca must be an NCA, got {type(nca).__name__}")
    if has_own_rule(nca):
        raise TypeError(
            f"nca is a {type(nca).__name__} with a rule of its own; a checkpoint keeps weights only"
        )
    arrays = weights_of(nca)
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
    set_weights(nca, arrays)
    return nca


def load_meta(source: Source) -> dict[str, Any]:
    """Reads what a checkpoint says of itself: all of its `meta`, keys unknown here included.

    Args:
        source: A path, a file opened in binary mode, or a resource of a package.

    Returns:
        The `meta`, by key.

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

    Returns:
        The automaton.

    Raises:
        ValueError: There is none; lists those that there are.
    """
    return load_nca(_pretrained_file(emoji, regime))


def pretrained_meta(emoji: str, regime: str) -> dict[str, Any]:
    """Reads the `meta` of an automaton that comes with the package (see `pretrained`).

    Raises:
        ValueError: There is none; lists those that there are.
    """
    return load_meta(_pretrained_file(emoji, regime))


def bundled() -> list[tuple[str, str]]:
    """Lists the emoji and regimes of the automata that come with the package (see `pretrained`)."""
    return sorted(_bundled_files())


def save_run(folder: str | os.PathLike, run: Any, *, step: int, **meta: Any) -> Path:
    """Writes all that a training needs to go on later, in place of the run saved there before.

    Of flax's objects save `nnx.state(nca)` and `nnx.state(optimizer)`; `nnx.update(nca, ...)` puts
    back what `restore_run` returns. A kill at any moment leaves the old run or the new one, whole;
    until the new one is, the disk holds both. What else is in the folder stays.

    Args:
        folder: Where to, for this run alone; a missing one is made.
        run: A tree of numbers and of arrays of numbers, NumPy's or JAX's.
        step: Steps that are done.
        **meta: What must be the same when the run goes on (preset, seed, ...), as JSON knows it.

    Returns:
        The folder.

    Raises:
        ValueError: An argument is not what is accepted; nothing has been written then.
        OSError: The run cannot be written; the old one is still there.
    """
    folder, arrays, meta = _checked_run(folder, "run", run, meta)
    step = check_integer("step", step, 0)
    leaves = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    about = json.dumps({"step": step, "meta": meta, "leaves": leaves})
    # Orbax refuses empty arrays, and gives those without axes back as numbers.
    filled = [np.atleast_1d(array) for array in arrays.values() if array.size]
    content = {"about": np.frombuffer(about.encode(), np.uint8), "arrays": filled}
    content["checksums"] = _checksums(content)
    older = _saved_runs(folder)
    number = int(older[-1].name.removeprefix(_RUN)) + 1 if older else 0
    try:
        _orbax("save", folder / f"{_RUN}{number:08}", content)
    except Exception as error:
        raise OSError(f"the run cannot be written to {folder}: {error!s:.200}") from error
    finally:
        cut_short = folder.glob(f"{_RUN}*.orbax-checkpoint-tmp*")
        for path in cut_short:
            shutil.rmtree(path, ignore_errors=True)
    for path in older:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def restore_run(folder: str | os.PathLike, like: Any, **meta: Any) -> tuple[Any, int] | None:
    """Reads the run that was saved last, bit for bit.

    Args:
        folder: Where `save_run` wrote to.
        like: A run of the same structure, as before its first step, say. Each leaf becomes what
            it is here: a number, a NumPy array, or a JAX array, which is bound to no device. Types
            and shapes must be equal, but NumPy arrays of one axis, histories, have any length.
        **meta: What must be as it was saved.

    Returns:
        The run and its step; None if the folder holds none.

    Raises:
        ValueError: The run there has other `meta`, is not like `like`, or is damaged.
    """
    folder, wanted, meta = _checked_run(folder, "like", like, meta)
    if not _saved_runs(folder):
        return None
    about, saved = _read_run(folder)
    there = about["meta"]
    others = [name for name in meta if name not in there or there[name] != meta[name]]
    if others:
        pairs = (f"{name} is {there.get(name)!r} there, {meta[name]!r} here" for name in others)
        raise ValueError(f"{folder} holds another run: {'; '.join(pairs)}")
    leaves = dict(zip(wanted, jax.tree.leaves(like), strict=True))
    for name in saved | wanted:
        is_numpy = isinstance(leaves.get(name), np.ndarray)
        has, got = (_description(arrays.get(name), is_numpy) for arrays in (saved, wanted))
        if has != got:
            raise ValueError(f"like{name} must be {has} as in {folder}, got {got}")
    restored = [_as_leaf(leaf, saved[name]) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored), about["step"]


def _checked_run(
    folder: str | os.PathLike, argument: str, run: Any, meta: dict[str, Any]
) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder must be a folder, got the file {folder}")
    leaves, _ = jax.tree_util.tree_flatten_with_path(run)
    named = ((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)
    arrays = {name: _as_array(argument + name, leaf) for name, leaf in named}
    return folder, arrays, {name: _plain(name, value) for name, value in meta.items()}


def _as_array(name: str, leaf: Any) -> np.ndarray:
    import tensorstore

    is_number = type(leaf) in (bool, int, float, complex)
    if is_number or isinstance(leaf, np.ndarray | np.generic | jax.Array):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            array = np.asarray(leaf, type(leaf) if is_number else None)
            return array.astype(tensorstore.dtype(array.dtype.name).numpy_dtype, copy=False)
    raise ValueError(f"{name} must be a number or an array of numbers, got {leaf!r:.60}")


def _as_leaf(like: Any, array: np.ndarray) -> Any:
    if isinstance(like, jax.Array):
        return jnp.asarray(array)
    return array if isinstance(like, np.ndarray) else type(like)(array[()])


def _description(array: np.ndarray | None, is_numpy: bool) -> str:
    if array is None:
        return "missing"
    shape = "(n,)" if is_numpy and array.ndim == 1 else array.shape
    return f"{array.dtype.name} of shape {shape}"


def _saved_runs(folder: Path) -> list[Path]:
    return sorted(folder.glob(_RUN + 8 * "[0-9]"))


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    # There is more than one only if the old one's deletion was cut short.
    for path in reversed(_saved_runs(folder)):
        try:
            content = _orbax("restore", path)
            if not np.array_equal(content.pop("checksums"), _checksums(content)):
                raise ValueError("its checksums differ")
            about, arrays = json.loads(content["about"].tobytes()), iter(content["arrays"])
            return about, {
                name: np.empty(shape, dtype) if 0 in shape else next(arrays).reshape(shape)
                for name, (dtype, shape) in about["leaves"].items()
            }
        except Exception as error:  # Damage makes orbax raise nearly anything.
            damage = error
    raise ValueError(f"the run in {folder} cannot be read: {damage!s:.200}") from damage


def _checksums(content: dict[str, Any]) -> np.ndarray:
    arrays = map(np.ascontiguousarray, jax.tree.leaves(content))
    return np.array([zlib.crc32(array.view(np.uint8)) for array in arrays], np.uint32)


def _orbax(method: str, *arguments: Any) -> Any:
    """Calls a method of orbax's checkpointer without its log, away from a notebook's event loop."""
    import orbax.checkpoint as ocp

    # A process saves for itself: it does not wait for the others of a cluster.
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process_{me}"
    )
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
        with (
            ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer,
            ThreadPoolExecutor(1) as thread,
        ):
            return thread.submit(getattr(checkpointer, method), *arguments).result()
    finally:
        log.setLevel(level)


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
        names = weight_shapes(0, 0)
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"it has no {', '.join(missing)}")
        arrays = {name: content[name] for name in names}
    _check_arrays(arrays, meta)
    return arrays, meta


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
    for name, shape in weight_shapes(meta["channels"], meta["hidden"]).items():
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
