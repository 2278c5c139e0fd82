"""Runs: all that a training needs to go on after a stop, as one file in a folder of its own.

    save_run("lizard_run", state, step=100, seed=0)
    state, step = restore_run("lizard_run", state, seed=0)

The file, `run.npz`, is read without pickle: `about`, a JSON string, has the step, the `meta`, and
name, type and shape of each leaf, whose arrays are `0`, `1`, ... in that order. Types that NumPy
does not know, as bfloat16, stand there as unsigned integers of the same bits.
"""

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from nca_helpers.checkpoint import as_json, open_npz
from nca_helpers.checks import check_integer, require, shown
from nca_helpers.files import as_path, claim, is_claimed_by_another, replace_file


def save_run(folder: str | os.PathLike, run: Any, *, step: int, **meta: Any) -> Path:
    """Writes all that a training needs to go on later, in place of the run saved there before.

    Of flax's objects save `nnx.state(nca)` and `nnx.state(optimizer)`; `nnx.update(nca, ...)` puts
    back what `restore_run` returns. A kill or an interrupt at any moment leaves the old run or the
    new one, whole; until the new one is, the disk holds both. What else is in the folder stays.
    Of a cluster's processes each saves for itself, to a folder of its own. If another process that
    still runs has saved there since this one last did, its run is replaced, with a warning.

    Args:
        folder: Where to, for this run alone. It is what is returned.
        run: A tree of numbers and of arrays of numbers, NumPy's or JAX's, on any devices of this
            process.
        step: Steps that are done.
        **meta: What must be the same when the run goes on (preset, seed, ...), as JSON knows it.
    """
    folder, arrays, meta = _checked(folder, "run", run, meta)
    leaves = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    about = {"step": check_integer("step", step, 0), "meta": meta, "leaves": leaves}
    content = {"about": np.array(json.dumps(about))}
    for number, array in enumerate(arrays.values()):
        is_foreign = array.dtype.isbuiltin == 2  # bfloat16, int4, ...: .npy keeps none of these.
        content[str(number)] = array.view(f"u{array.itemsize}") if is_foreign else array
    is_anothers = is_claimed_by_another(folder / "run.npz")
    replace_file(folder / "run.npz", lambda file: np.savez(file, **content))
    claim(folder / "run.npz")
    if is_anothers:
        warnings.warn(
            f"another program that still runs, a second kernel perhaps, has saved in {folder}: its "
            "run is replaced by this one; give one of the two another folder",
            stacklevel=2,
        )
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
        ValueError: The run there has other `meta`, is not like `like`, is damaged, or was saved by
            a version of the package that wrote another format.
        OSError: It cannot be read.
    """
    folder, wanted, meta = _checked(folder, "like", like, meta)
    try:
        file = (folder / "run.npz").open("rb")
    except FileNotFoundError:
        if any(folder.glob("nca_run_" + 8 * "[0-9]")):
            older = "was saved by an older version of nca_helpers and cannot go on with this one"
            raise ValueError(f"the run in {folder} {older}") from None
        return None
    with file:
        try:
            about, saved = _read(file)
        except Exception as error:  # Damage makes zipfile, NumPy and json raise nearly anything.
            raise ValueError(f"the run in {folder} cannot be read: {error!s:.200}") from error
    others = [
        f"{name} is {shown(about['meta'].get(name))} there, {shown(value)} here"
        for name, value in meta.items()
        if name not in about["meta"] or about["meta"][name] != value
    ]
    if others:
        raise ValueError(f"{folder} holds another run: {'; '.join(others)}")
    leaves = dict(zip(wanted, jax.tree.leaves(like), strict=True))
    for name in saved | wanted:
        is_numpy = isinstance(leaves.get(name), np.ndarray)
        has, got = (_kind(arrays.get(name), is_numpy) for arrays in (saved, wanted))
        if has != got:
            raise ValueError(f"like{name} must be {has} as in {folder}, got {got}")
    restored = [_as_leaf(leaf, saved[name]) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), restored), about["step"]


def _checked(
    folder: str | os.PathLike, argument: str, run: Any, meta: dict[str, Any]
) -> tuple[Path, dict[str, np.ndarray], dict[str, Any]]:
    """Returns the folder, the arrays of the leaves by name, and the meta as JSON keeps it."""
    folder = as_path(folder)
    require(folder.is_dir() or not folder.exists(), "folder", "a folder", str(folder))
    leaves = jax.tree_util.tree_leaves_with_path(run)
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
    arrays = {name: _as_array(argument + name, leaf) for name, leaf in named}
    require(len(arrays) == len(named), argument, "a tree whose leaves differ in name", run)
    return folder, arrays, {name: as_json(f"meta {name!r}", value) for name, value in meta.items()}


def _as_array(name: str, leaf: Any) -> np.ndarray:
    array = np.array(None)
    is_number = type(leaf) in (bool, int, float, complex)
    if is_number or isinstance(leaf, np.ndarray | np.generic | jax.Array):
        # Of a random key, of an integer that is too large, of an array that others hold a part of.
        with contextlib.suppress(TypeError, OverflowError, RuntimeError):
            array = np.asarray(jax.device_get(leaf), type(leaf) if is_number else None)
    is_accepted = array.dtype == bool or jnp.issubdtype(array.dtype, np.number)
    require(is_accepted, name, "a number or an array of numbers that this process holds", leaf)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_leaf(like: Any, array: np.ndarray) -> Any:
    if isinstance(like, jax.Array):
        return jax.device_put(array)
    return array if isinstance(like, np.ndarray) else type(like)(array[()])


def _kind(array: np.ndarray | None, is_numpy: bool) -> str:
    if array is None:
        return "missing"
    shape = "(n,)" if is_numpy and array.ndim == 1 else array.shape
    return f"{array.dtype.name} of shape {shape}"


def _read(file: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns `about` and the arrays by name; raises nearly anything if the file is damaged."""
    arrays = {}
    with open_npz(file) as content:
        about = json.loads(str(content["about"]))
        for number, (name, (dtype, shape)) in enumerate(about["leaves"].items()):
            array, is_foreign = content[str(number)], np.dtype(dtype).isbuiltin == 2
            arrays[name] = array.view(dtype) if is_foreign else array
            # The zip's checksum is of whole arrays: one that seems shorter would pass it.
            if [arrays[name].dtype.name, list(arrays[name].shape)] != [dtype, shape]:
                raise ValueError(f"{name} is {_kind(array, False)}")
    return about, arrays
