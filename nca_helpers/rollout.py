"""Time: an automaton run for many steps, fast and differentiable.

    state = rollout(nca, seed_state(72, 72), jax.random.key(0), 96)
    frames = rollout_frames(nca, seed_state(72, 72), jax.random.key(0), 96)

Both give what a plain Python loop over `nca(state, jax.random.fold_in(key, t))` gives.

How `rollout` is fast. On a CPU each sample takes its whole rollout in turn, so that its hidden
layer stays in cache, on as many cores as there are CPU devices; on a GPU or TPU the batch steps
together. On a CPU a step computes only a window around what lives, since all else is zero and stays
zero, and in it the network runs only for the cells that fire, some hundreds at a time. The gradient
keeps the state of every step and replays the steps backwards, exactly as many as were taken: little
memory, and one compilation for every length. benchmarks/NOTES.md says what each of these brings.
"""

import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from nca_helpers.checks import check_integer, check_state
from nca_helpers.model import (
    NCA,
    check_settings,
    living_mask,
    perceive,
    widen,
)

# Gradients of lengths up to the same multiple of this share one compilation.
_LENGTH_MULTIPLE = 32
# The windows that a step may be computed in, in twelfths of the grid's height and width.
_WINDOW_TWELFTHS = (3, 4, 6, 8, 12)
# How many cells the network takes at a time: its hidden layer then stays in cache.
_BLOCK = 512
# Finding the cells that fire costs more than a smaller network that runs for all.
_SMALLEST_HIDDEN = 64


def rollout(
    nca: NCA,
    state: Array,
    key: Array,
    num_steps: int | Array,
    *,
    max_steps: int | None = None,
    fire_rate: float | Array | None = None,
    angle: float | Array = 0.0,
    step_size: float | Array = 1.0,
) -> Array:
    """Runs the automaton and returns the last state.

    Differentiable with respect to the weights, `state`, `angle` and `step_size`. The length is
    a run-time value: one compilation serves every length.

    Args:
        nca: The automaton.
        state: `(..., height, width, channels)`.
        key: Random key; step `t` uses `jax.random.fold_in(key, t)`.
        num_steps: How many steps to take: an integer of at least 0, a traced integer (then give
            `max_steps`), or one integer for each sample of the leading batch axis.
        max_steps: The most steps that the gradient has room for. A concrete `num_steps` above
            it is refused, a traced one is clamped.
        fire_rate: In place of the automaton's own, in [0, 1].
        angle: Turns every cell's frame, in radians.
        step_size: Multiplies the update.

    Returns:
        The state after `num_steps` steps, of the same shape.

    Raises:
        ValueError: An argument is not what is accepted. Nothing has been compiled then.
    """
    _check(nca, state, fire_rate, angle, step_size)
    lengths, capacity = _check_lengths(num_steps, max_steps, jnp.shape(state))
    graph, weights = nnx.split(nca)
    inputs = (weights, state, key, lengths, _settings(nca, fire_rate, angle, step_size))
    leaves = jax.tree.leaves(inputs)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        capacity = 0  # Nothing differentiates this call, so that it needs no room at all.
    num_devices = 1 if any(map(_is_pinned, leaves)) else len(jax.local_devices())
    return _rollout(graph, capacity, num_devices, *inputs)


def rollout_frames(
    nca: NCA,
    state: Array,
    key: Array,
    num_steps: int,
    *,
    fire_rate: float | Array | None = None,
    angle: float | Array = 0.0,
    step_size: float | Array = 1.0,
) -> Array:
    """Runs the automaton and returns every state, the first included.

    Args:
        nca: The automaton.
        state: `(..., height, width, channels)`.
        key: Random key; step `t` uses `jax.random.fold_in(key, t)`.
        num_steps: How many steps to take, an integer of at least 0, not traced.
        fire_rate: In place of the automaton's own, in [0, 1].
        angle: Turns every cell's frame, in radians.
        step_size: Multiplies the update.

    Returns:
        `(num_steps + 1, ..., height, width, channels)`.

    Raises:
        ValueError: An argument is not what is accepted. Nothing has been compiled then.
    """
    _check(nca, state, fire_rate, angle, step_size)
    num_steps = check_integer("num_steps", num_steps, 0)
    graph, weights = nnx.split(nca)
    settings = _settings(nca, fire_rate, angle, step_size)
    return _rollout_frames(graph, num_steps, weights, state, key, settings)


def _check(nca, state, *settings):
    if not isinstance(nca, NCA):
        raise ValueError(f"nca must be an NCA, got {type(nca).__name__}")
    if type(nca).__call__ is not NCA.__call__:
        raise ValueError(
            f"nca is a {type(nca).__name__} with a __call__ of its own, which a rollout would not "
            "run; override step instead"
        )
    check_state(state, nca.channels)
    if jnp.result_type(state).itemsize < 4:
        raise ValueError(f"state must hold float32 numbers, got {jnp.result_type(state)}")
    check_settings(*settings)


def _check_lengths(num_steps, max_steps, state_shape: tuple[int, ...]):
    """Returns the lengths as an int32 array or tracer, and the room that a gradient needs."""
    if max_steps is not None:
        max_steps = check_integer("max_steps", max_steps, 0)
    if isinstance(num_steps, jax.core.Tracer):
        if max_steps is None:
            raise ValueError("num_steps is traced, so max_steps must be given, got None")
        _check_lengths_array(num_steps, state_shape)
        return jnp.clip(num_steps, 0, max_steps).astype(jnp.int32), max(max_steps, 1)
    if np.ndim(num_steps) == 0:
        num_steps = check_integer("num_steps", np.asarray(num_steps)[()], 0)
    lengths = np.asarray(num_steps)
    _check_lengths_array(lengths, state_shape)
    longest = int(lengths.max(initial=0))
    most = np.iinfo(np.int32).max if max_steps is None else max_steps
    if lengths.min(initial=0) < 0 or longest > most:
        limit = "" if max_steps is None else " (max_steps)"
        raise ValueError(
            f"num_steps must be at least 0 and at most {most}{limit}, got {num_steps!r}"
        )
    if max_steps is None:
        max_steps = -(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return lengths.astype(np.int32), max(max_steps, 1)


def _check_lengths_array(lengths, state_shape: tuple[int, ...]) -> None:
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(f"num_steps must hold integers, got {lengths.dtype}")
    batch = state_shape[:-3]
    if lengths.ndim and (not batch or lengths.shape != batch[:1]):
        raise ValueError(
            "num_steps must be one integer, or one for each sample of state's leading axis, "
            f"got shape {lengths.shape} for a state of shape {state_shape}"
        )


def _settings(nca, fire_rate, angle, step_size):
    """Returns (fire rate, angle, step size) as floats or float arrays."""
    fire_rate = nca.fire_rate if fire_rate is None else fire_rate
    if isinstance(angle, numbers.Real) and angle == 0:
        angle = None  # Part of the structure, not of the values: an upright frame costs nothing.
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32) if isinstance(x, jax.Array) else float(x),
        (fire_rate, angle, step_size),
    )


def _is_pinned(leaf) -> bool:
    """Returns whether an array was put on one device, which its computation may then not leave."""
    is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return is_array and leaf.committed and len(leaf.devices()) == 1


def _frame(settings):
    """Returns the keyword arguments of a step."""
    _, angle, step_size = settings
    return {"angle": 0.0 if angle is None else angle, "step_size": step_size}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _rollout_frames(graph, num_steps, weights, state, key, settings):
    nca = nnx.merge(graph, weights)

    def advance(state, t):
        step_key = jax.random.fold_in(key, t)
        state = nca(state, step_key, fire_rate=settings[0], **_frame(settings))
        return state, state

    _, frames = jax.lax.scan(advance, state, jnp.arange(num_steps))
    return jnp.concatenate([state[None], frames])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rollout(graph, capacity, num_devices, weights, state, key, lengths, settings):
    states = state.reshape(-1, *state.shape[-3:])
    if lengths.ndim:
        lengths = jnp.repeat(lengths, len(states) // max(len(lengths), 1))
    lengths = jnp.broadcast_to(lengths, len(states))
    states = _run(graph, capacity, num_devices, weights, states, key, lengths, settings)
    return states.reshape(state.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(graph, capacity, num_devices, weights, states, key, lengths, settings):
    return _run_forward(graph, 0, num_devices, weights, states, key, lengths, settings)[0]


def _run_forward(graph, capacity, num_devices, weights, states, key, lengths, settings):
    """Returns the last states, and for the backward pass the states before each step."""

    def run(place, sample, kept, shared):
        index, state, length = sample
        weights, key, longest, settings = shared
        nca = nnx.merge(graph, weights)
        step = functools.partial(_step_and_pull_back(nca)[0], nca, settings)

        def advance(t, carry):
            state, kept = carry
            fire = _fire(key, t, index, settings, state)
            (following, alive), _ = _in_window(nca, step, state, fire)
            if capacity:
                kept = _write(kept, (place, t), (state, jnp.stack([fire, alive])))
            # One at a time each sample takes its own number of steps, no more.
            over = False if _one_at_a_time() else t >= length
            return _unless(over, following, state), kept

        steps = length if _one_at_a_time() else longest
        return jax.lax.fori_loop(0, steps, advance, (state, kept))

    count, height, width, _ = states.shape
    # One array for both masks: beside two, XLA copies what is kept in every step.
    masks = jnp.zeros((count, capacity, 2, height, width), bool)
    kept = jnp.zeros((count, capacity, *states.shape[1:]), states.dtype), masks
    samples = (jnp.arange(count), states, lengths)
    shared = (weights, key, lengths.max(initial=0), settings)
    states, kept = _for_each_sample(run, samples, kept, shared, num_devices)
    return states, (kept, lengths, shared)


def _run_backward(graph, capacity, num_devices, residuals, cotangents):
    """Replays the steps backwards and adds up each step's share of the gradient."""
    kept, lengths, shared = residuals

    def replay(place, sample, kept, shared):
        length, cotangent = sample
        weights, _, longest, settings = shared
        nca = nnx.merge(graph, weights)
        pull_back = functools.partial(_step_and_pull_back(nca)[1], graph, weights, settings)
        steps = length if _one_at_a_time() else longest

        def retreat(i, carry):
            cotangent, sums = carry
            t = steps - 1 - i
            state, (fire, alive) = _read(kept, (place, t))
            (preceding,), shares = _in_window(nca, pull_back, state, fire, alive, cotangent)
            over = False if _one_at_a_time() else t >= length
            sums = jax.tree.map(lambda sum, share: _unless(over, sum + share, sum), sums, shares)
            return _unless(over, preceding, cotangent), sums

        sums = jax.tree.map(jnp.zeros_like, [weights, settings])
        return jax.lax.fori_loop(0, steps, retreat, (cotangent, sums)), kept

    samples = (lengths, cotangents)
    (cotangents, sums), _ = _for_each_sample(replay, samples, kept, shared, num_devices)
    weights_cotangent, settings_cotangent = jax.tree.map(lambda share: share.sum(0), sums)
    return weights_cotangent, cotangents, None, None, settings_cotangent


_run.defvjp(_run_forward, _run_backward)


def _step_and_pull_back(nca) -> tuple[Callable, Callable]:
    """Returns how this automaton takes a step here, and how the gradient takes it back.

    The step, of (nca, settings, state, fire), returns the next state and which cells live in it.
    Its counterpart, of (graph, weights, settings, state, fire, alive, cotangent), returns the
    cotangent of the state, and those of weights and settings.
    """
    own_rule = type(nca).step is not NCA.step
    if own_rule or not _one_at_a_time() or nca.hidden_size < _SMALLEST_HIDDEN:
        return _step, _pull_back
    return _sparse_step, _sparse_pull_back


def _step(nca, settings, state, fire):
    return (nca.step(state, fire, **_frame(settings)), fire), ()


def _pull_back(graph, weights, settings, state, fire, _, cotangent):
    def step(state, weights, settings):
        return nnx.merge(graph, weights).step(state, fire, **_frame(settings))

    _, transposed = jax.vjp(step, state, weights, settings)
    cotangent, *shares = transposed(cotangent)
    return (cotangent,), shares


def _sparse_step(nca, settings, state, fire):
    """Takes the same step as `NCA.step`, with the network run only where it matters."""
    frame = _frame(settings)
    before = living_mask(state, nca.alive_threshold)
    seen = _flat(perceive(state, frame["angle"]))
    # A cell beside the living can mature and so keep a neighbour alive.
    blocks, count = _blocks_of_rows(fire & widen(before))

    def update(i, cells):
        rows = blocks[i]
        update = frame["step_size"] * _network(nca, _take(seen, rows))
        return cells.at[rows].add(update, mode="drop", indices_are_sorted=True)

    state = jax.lax.fori_loop(0, count, update, _flat(state)).reshape(state.shape)
    alive = before & living_mask(state, nca.alive_threshold)
    return (jnp.where(alive[..., None], state, 0.0), alive), ()


def _sparse_pull_back(graph, weights, settings, state, fire, alive, cotangent):
    def look(state, settings):
        return _flat(perceive(state, _frame(settings)["angle"]))

    def respond(seen, weights, settings):
        return _frame(settings)["step_size"] * _network(nnx.merge(graph, weights), seen)

    cotangent = jnp.where(alive[..., None], cotangent, 0.0)
    seen, look_back = jax.vjp(look, state, settings)
    blocks, count = _blocks_of_rows(fire & alive)

    def pull_back(i, carry):
        seen_cotangent, sums = carry
        rows = blocks[i]
        _, transposed = jax.vjp(respond, _take(seen, rows), weights, settings)
        share, *shares = transposed(_take(_flat(cotangent), rows))
        seen_cotangent = seen_cotangent.at[rows].set(share, mode="drop", indices_are_sorted=True)
        return seen_cotangent, jax.tree.map(jnp.add, sums, shares)

    nothing = jnp.zeros_like(seen), jax.tree.map(jnp.zeros_like, [weights, settings])
    seen_cotangent, (weights_share, settings_share) = jax.lax.fori_loop(
        0, count, pull_back, nothing
    )
    around, turned = look_back(seen_cotangent)
    return (cotangent + around,), [weights_share, jax.tree.map(jnp.add, settings_share, turned)]


def _network(nca, seen: Array) -> Array:
    return nca.update(nnx.relu(nca.hidden(seen)))


def _flat(grid: Array) -> Array:
    return grid.reshape(-1, grid.shape[-1])


def _blocks_of_rows(cells: Array) -> tuple[Array, Array]:
    """Returns the indices of the cells that are set, in blocks, and how many blocks they fill."""
    block = min(_BLOCK, max(64, cells.size // 4))
    capacity = -(-cells.size // block) * block
    rows = jnp.flatnonzero(cells, size=capacity, fill_value=cells.size)
    return rows.reshape(-1, block), -(-cells.sum() // block)


def _take(cells: Array, rows: Array) -> Array:
    return cells.at[rows].get(mode="fill", fill_value=0, indices_are_sorted=True)


def _fire(key, t, index, settings, state):
    """Draws the fire mask of one sample's step, the same as calling the automaton does."""
    key = jax.random.fold_in(jax.random.fold_in(key, t), index)
    return jax.random.bernoulli(key, settings[0], state.shape[:2])


def _one_at_a_time() -> bool:
    """Returns whether samples run one after the other, each for its own number of steps."""
    return jax.default_backend() == "cpu"


def _for_each_sample(function: Callable, samples, kept, shared, num_devices: int):
    """Maps `function(place, sample, kept, shared)` over the leading axis of `samples`.

    It returns a result and `kept`, arrays with room for every sample, where the sample's own is at
    `place`. Handed on from one sample to the next they are written in place, never copied.
    """
    if not _one_at_a_time():

        def alone(sample, kept, shared):
            result, kept = function(0, sample, jax.tree.map(lambda x: x[None], kept), shared)
            return result, jax.tree.map(lambda x: x[0], kept)

        return jax.vmap(alone, (0, 0, None))(samples, kept, shared)

    # A vmap from outside, over a population say, must not batch the loop either.
    @jax.custom_batching.sequential_vmap
    def in_turn(samples, kept, shared):
        def turn(kept, at):
            place, sample = at
            result, kept = function(place, sample, kept, shared)
            return kept, result

        count = len(jax.tree.leaves(samples)[0])
        kept, results = jax.lax.scan(turn, kept, (jnp.arange(count), samples))
        return results, kept

    count = math.gcd(len(jax.tree.leaves(samples)[0]), num_devices)
    if count == 1 or jax.sharding.get_abstract_mesh().manual_axes:
        return in_turn(samples, kept, shared)
    mesh = Mesh(jax.local_devices()[:count], ("device",))
    spread = P("device")
    return jax.shard_map(
        in_turn, mesh=mesh, in_specs=(spread, spread, P()), out_specs=spread, check_vma=False
    )(samples, kept, shared)


def _write(kept, place: tuple, now):
    """Returns `kept` with the arrays `now` at `place`, an index of two axes."""

    def write(kept, now):
        start = (*place, *(0 for _ in now.shape))
        return jax.lax.dynamic_update_slice(kept, now[None, None], start)

    return jax.tree.map(write, kept, now)


def _read(kept, place: tuple):
    """Returns what `_write` has put at `place`."""

    def read(kept):
        rest = kept.shape[2:]
        start = (*place, *(0 for _ in rest))
        return jax.lax.dynamic_slice(kept, start, (1, 1, *rest))[0, 0]

    return jax.tree.map(read, kept)


def _in_window(nca, function: Callable, state: Array, *grids: Array):
    """Calls `function` on the smallest window of its arguments that holds all that lives.

    Exact: a step empties every cell that has no mature cell beside it. A cell two away from a
    mature one can still mature itself and so keep a neighbour alive, and it sees one cell further:
    a margin of three cells decides all. The grids that come back are put into empty ones.
    """
    if not _one_at_a_time():
        return function(state, *grids)
    height, width, _ = state.shape
    shapes = sorted({(-(-height * k // 12), -(-width * k // 12)) for k in _WINDOW_TWELFTHS})
    mature = state[..., 3] > nca.alive_threshold
    top, rows = _extent(mature.any(1))
    left, columns = _extent(mature.any(0))

    def in_window(shape, *grids):
        corner = jnp.minimum(top, height - shape[0]), jnp.minimum(left, width - shape[1])

        def cut(grid):
            rest = grid.shape[2:]
            return jax.lax.dynamic_slice(grid, (*corner, *(0 for _ in rest)), (*shape, *rest))

        windows, rest = function(*map(cut, grids))
        return tuple(map(functools.partial(put, corner), windows)), rest

    def put(corner, window):
        grid = jnp.zeros((height, width, *window.shape[2:]), window.dtype)
        return jax.lax.dynamic_update_slice(grid, window, (*corner, *(0 for _ in grid.shape[2:])))

    heights, widths = np.array(shapes).T
    smallest = jnp.argmax((heights >= rows) & (widths >= columns))
    branches = [functools.partial(in_window, shape) for shape in shapes]
    return jax.lax.switch(smallest, branches, state, *grids)


def _extent(mature: Array) -> tuple[Array, Array]:
    """Returns the first index and the length of what is mature, with a margin of three cells."""
    size = len(mature)
    first = jnp.maximum(jnp.argmax(mature) - 3, 0)
    end = jnp.minimum(size - jnp.argmax(mature[::-1]) + 3, size)
    return first, jnp.where(mature.any(), end - first, 0)


def _unless(over: bool | Array, new: Array, old: Array) -> Array:
    return new if over is False else jnp.where(over, old, new)
