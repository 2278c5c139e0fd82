"""Space: which cores and devices there are, and work spread over them.

    jax.set_mesh(use_every_core())  # in a notebook, before anything else runs

JAX takes the whole processor for one device. Two halves of a batch on two cores are faster than
both halves on a device of two threads, so a notebook makes a device of each core. Work is spread in
one place, `spread`: over the mesh in force (`jax.set_mesh`) or given, or over all devices.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nca_helpers.checks import require

AnyMesh = Mesh | AbstractMesh


def usable_cores(system: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc")) -> int:
    """Returns how many cores this process may use, at least 1.

    That is `PYTHON_CPU_COUNT` if it is set, as in Python 3.13. Else it is the cores that the
    process may run on, but no more than a container's quota of processor time (cgroup v1 or v2)
    keeps busy. `os.cpu_count()` knows of neither: in a container it counts the host's cores.
    `system` and `process` are where the cgroup and the process file system are mounted.
    """
    asked = os.environ.get("PYTHON_CPU_COUNT") or "default"
    if asked != "default":
        is_count = asked.isdecimal() and int(asked) >= 1
        require(is_count, "PYTHON_CPU_COUNT", "an integer of at least 1", asked)
        return int(asked)
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    # A quota of 1.5 cores keeps one core busy; two would wait for each other.
    return max(1, int(min([cores, *_quotas(system, process)])))


def _quotas(system: Path, process: Path) -> Iterator[float]:
    """Yields the processor time that each of the process's cgroups allows, in cores."""
    groups, files = "", []
    with contextlib.suppress(OSError):  # Not Linux.
        groups = (process / "self/cgroup").read_text(errors="replace")
    for line in groups.splitlines():
        _, controllers, path = [*line.split(":", 2), "?", ""][:3]
        # In a container the path is the host's, and what is mounted is the container's own.
        path = Path(path.strip("/"))
        for folder in (path, *path.parents, Path()):
            if not controllers:  # Version 2.
                files.append([system / folder / "cpu.max"])
            elif "cpu" in controllers.split(","):
                for mount in (system / controllers / folder, system / "cpu" / folder):
                    files.append([mount / "cpu.cfs_quota_us", mount / "cpu.cfs_period_us"])
    for parts in files:
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # None there, or "max".
            quota, period = map(int, " ".join(file.read_text() for file in parts).split())
            if quota > 0:  # -1 is no limit.
                yield quota / period


def use_every_core() -> Mesh:
    """Makes a JAX device of each core that this process may use, and says what it did.

    For a notebook's first cell, before JAX has run anything. Where JAX runs already, it goes on
    with the devices there are. `JAX_NUM_CPU_DEVICES`, and `XLA_FLAGS` with a number of host
    devices, are left as they are. On an accelerator nothing is changed.

    `jax.set_mesh` puts the mesh of all local devices, which is returned, in force: a rollout inside
    a train step's jit then spreads its batch, and arrays lie on all devices from the beginning, so
    that the second step compiles nothing.

    On several devices of a CPU a loop has to look at a number now and then, as `Progress` and the
    solvers' `tell` do: see `keep_pace`.
    """
    before = jax.config.jax_num_cpu_devices
    given = before >= 1 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    cores = usable_cores()
    with contextlib.suppress(RuntimeError):  # What is there stays.
        # Any change is refused once JAX runs, which no public function tells.
        jax.config.update("jax_num_cpu_devices", max(before, 0) + 1)
        jax.config.update("jax_num_cpu_devices", before if given else cores)
        # One program at a time where XLA can; where it cannot, `keep_pace`.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    devices = jax.local_devices()
    print(f"{len(devices)} × {devices[0].device_kind}, JAX {jax.__version__}")
    if devices[0].platform == "cpu" and len(devices) != cores and not given:
        print(
            f"JAX ran before this cell and goes on with what it had. To use the {cores} cores of "
            "this process, restart the kernel and run this cell first."
        )
    return Mesh(np.array(devices), ("device",))


def keep_pace(function: Callable) -> Callable:
    """Has a function wait for its arguments, so that a loop of such calls does not run ahead.

    XLA launches and runs the programs of several CPU devices on the same threads, one a core. Once
    32 programs wait, launches of further ones hold all threads, for ever; XLA ends the process
    after 40 seconds (JAX 0.7.2 and 0.10.2). A GPU or TPU is not waited for.
    """

    @functools.wraps(function)
    def waits(*args, **kwargs):
        if jax.default_backend() == "cpu":
            jax.block_until_ready((args, kwargs))
        return function(*args, **kwargs)

    return waits


def find_mesh(arrays: Any, mesh: Mesh | None = None, *, inside_jit: bool) -> AnyMesh | None:
    """Returns the devices that work on `arrays` is spread over; None if it stays where it is.

    Args:
        arrays: All arrays that the work reads, a tree.
        mesh: Given by the caller. None takes the one in force, else all devices, unless the arrays
            are pinned to one.
        inside_jit: Whether all devices are taken inside a caller's jit as well. There the arrays
            cannot be asked where they are, and JAX refuses those that are pinned to one device.
    """
    require(isinstance(mesh, Mesh | None), "mesh", "a jax.sharding.Mesh, or None", mesh)
    in_force = jax.sharding.get_abstract_mesh()
    if in_force.manual_axes:  # Already spread, by a caller's shard_map.
        return None
    if not in_force.empty:
        # JAX runs everything on the mesh in force, and refuses another one.
        is_that = mesh is None or dict(mesh.shape) == dict(in_force.shape)
        require(is_that, "mesh", f"the mesh in force, {dict(in_force.shape)}", mesh)
        return in_force if in_force.size > 1 else None
    if mesh is not None:
        return Mesh(mesh.devices, mesh.axis_names)  # Those of jax.make_mesh have explicit axes.
    traced, places = _is_traced(arrays), set()
    if not traced:
        leaves = [leaf for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array)]
        places = {frozenset(leaf.devices()) for leaf in leaves if leaf.committed}
    if [*map(len, places)] == [1] or (traced and not inside_jit):
        return None
    devices = jax.devices() if inside_jit else jax.local_devices()
    return Mesh(np.array(devices), ("device",)) if len(devices) > 1 else None


def move(arrays: Any, mesh: AnyMesh | None) -> Any:
    """Returns the arrays where work on `mesh` can read them, whichever devices they were on."""
    if _is_traced(arrays):
        return arrays
    # What is in force is known as an abstract mesh; a new array lies on its devices.
    everywhere = NamedSharding(mesh, P()) if isinstance(mesh, Mesh) else None
    if isinstance(mesh, AbstractMesh):
        everywhere = jnp.zeros(()).sharding

    def moved(leaf):
        if isinstance(leaf, np.ndarray | np.generic):
            return jax.device_put(leaf)  # Which `jax_transfer_guard` lets pass.
        if mesh is None or not isinstance(leaf, jax.Array) or not leaf.committed:
            return leaf
        if not leaf.is_fully_addressable and leaf.is_fully_replicated:
            leaf = leaf.addressable_data(0)  # This process's own copy.
        is_there = getattr(leaf.sharding, "mesh", None) == everywhere.mesh
        return leaf if is_there else jax.device_put(leaf, everywhere)

    return jax.tree.map(moved, arrays)


def spread(
    function: Callable[[Array, Any, Any], tuple[Any, Any]],
    mesh: AnyMesh | None,
    shares: Any,
    shared: Any,
    *,
    total: bool = False,
) -> tuple[Any, Any]:
    """Has each device do its share of some pieces of work.

    Args:
        function: `function(indices, shares, shared)` returns `(results, kept)`, two trees of arrays
            with a row for each index. Where the devices do not divide the pieces, the last piece is
            given again, under indices beyond the last; those results are dropped.
        mesh: The devices; None does all where it is.
        shares: A tree of arrays with a row for each piece of work.
        shared: A tree of arrays that every device is given whole.
        total: The results are sums over a device's share, to be added up.

    Returns:
        The results, on every device, or their totals; and what is kept, each device's own where it
        is, filled up, to be given back among the `shares`.
    """
    count = min(len(leaf) for leaf in jax.tree.leaves(shares))
    if mesh is None:
        return function(jnp.arange(count, dtype=jnp.int32), shares, shared)
    axes = mesh.axis_names
    filled = -(-count // mesh.size) * mesh.size
    rows = np.minimum(np.arange(filled), count - 1)
    # Indexed, not concatenated: the compiler would cut the pieces up among the devices.
    shares = jax.tree.map(lambda x: x if len(x) == filled else x[rows], shares)
    shares = jnp.arange(filled, dtype=jnp.int32), shares
    if AxisType.Explicit in mesh.axis_types:
        shares, shared = jax.sharding.reshard((shares, shared), (P(axes), P()))

    def work(shares, shared):
        results, kept = function(*shares, shared)
        if total:
            return jax.lax.psum(results, axes), kept
        # Gathered here, or the compiler would spread what follows too.
        return jax.lax.all_gather(results, axes, tiled=True), kept

    results, kept = jax.shard_map(
        work, mesh=mesh, in_specs=(P(axes), P()), out_specs=(P(), P(axes)), check_vma=False
    )(shares, shared)
    return results if total else jax.tree.map(lambda x: x[:count], results), kept


def in_turn(function: Callable, samples: Any, kept: Any, shared: Any) -> tuple[Any, Any]:
    """Maps `function(place, sample, kept, shared)` over the leading axis of `samples`.

    It returns a result and `kept`, arrays with room for every sample, where the sample's own is at
    `place`. Handed on from one sample to the next they are written in place, never copied.
    """

    @jax.custom_batching.custom_vmap
    def each(samples, kept, shared):
        def turn(kept, at):
            place, sample = at
            result, kept = function(place, sample, kept, shared)
            return kept, result

        count = len(jax.tree.leaves(samples)[0])
        places = jnp.arange(count, dtype=jnp.int32)
        kept, results = jax.lax.scan(turn, kept, (places, samples))
        return results, kept

    # A vmap from outside, over a population say, must not batch the loop.
    @each.def_vmap
    def one_by_one(_, is_batched, *arguments):
        flags, (leaves, structure) = jax.tree.leaves(is_batched), jax.tree.flatten(arguments)
        if not any(flags):  # What a derivative of a derivative batches are tangents alone.
            results = each.fun(*arguments)
            return results, jax.tree.map(lambda _: False, results)

        def one(batched):
            batched = iter(batched)
            pairs = zip(leaves, flags, strict=True)
            return each(*structure.unflatten(next(batched) if flag else x for x, flag in pairs))

        batched = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
        results = jax.lax.map(one, batched)
        return results, jax.tree.map(lambda _: True, results)

    return each(samples, kept, shared)


def _is_traced(tree: Any) -> bool:
    """Returns whether an array is traced, or a caller's jit, which also traces new arrays."""
    new = jax.device_put(np.float32(0))  # Put, as `jax_transfer_guard` lets pass.
    return any(isinstance(leaf, jax.core.Tracer) for leaf in (*jax.tree.leaves(tree), new))
