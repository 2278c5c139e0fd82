"""Time, fast: the rollout of `NCA`'s own rule on a CPU, and its gradient.

`rollouts.py` says what a rollout means; this gives the same states and gradients for the one rule
that it is proven for, up to the order of float32 sums. What makes it fast:

- Each sample takes its whole rollout in turn, so that its hidden layer stays in cache, and the
  samples are spread over the devices.
- A step computes a window around what lives: all else is zero and stays zero.
- In it the network runs only for the cells that fire, some hundreds at a time.
- The gradient keeps the state of every step and replays the steps backwards, exactly as many as
  were taken: little memory, and one compilation for every length. (Chen et al. 2016, "Training deep
  nets with sublinear memory cost", with a segment for each step.)

benchmarks/NOTES.md says what each of these brings. The gradient is reverse mode alone.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from nca_helpers.devices import AnyMesh, in_turn, spread
from nca_helpers.model import NCA, fire_mask, living_mask, mature, perceive, widen
from nca_helpers.rollout_planes import rollout_planes

# The windows that a step may be computed in, in twelfths of the grid's height and width.
WINDOW_TWELFTHS = (4, 8, 12)
# The cells of the smallest window that saves more than it takes to compile.
SMALLEST_WINDOW = 500
# How many cells the network takes at a time: its hidden layer then stays in cache.
BLOCK = 128
# Finding the cells that fire costs more than a smaller network that runs for all.
SMALLEST_HIDDEN = 64
# On a larger grid a rollout from a seed gains more by windows than by the channels first.
MOST_PLANE_CELLS = 2_500


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def rollout_cpu(
    graph: nnx.GraphDef,
    capacity: int,
    mesh: AnyMesh | None,
    weights: nnx.State,
    states: Array,
    key: Array,
    lengths: Array,
    settings: dict[str, Any],
) -> Array:
    """Returns the last states, `(n, height, width, channels)`: each sample after its own length.

    Args:
        graph: Of an `NCA` without a rule of its own (`has_own_rule`).
        capacity: The steps that a gradient has room for, at least the longest.
        mesh: The devices that the samples are spread over, or None.
        weights: The automaton's.
        states: `(n, height, width, channels)`, float32.
        key: A threefry key. With another kind a sample's draw would depend on its neighbours'.
        lengths: `(n,)` int32.
        settings: "fire_rate", and "angle" and "step_size" where they are not the defaults.
    """
    return _forward(graph, 0, mesh, weights, states, key, lengths, settings)[0]


def _forward(graph, capacity, mesh, weights, states, key, lengths, settings):
    """Returns the last states, and for the backward pass the states before each step."""

    def run(place, sample, kept, shared):
        index, state, length = sample
        weights, key, settings = shared
        nca = nnx.merge(graph, weights)
        is_small = nca.hidden_size < SMALLEST_HIDDEN
        step = functools.partial(_step if is_small else _sparse_step, nca, settings)

        def draw(t):
            step_key = jax.random.fold_in(key, t)
            return fire_mask(step_key, index, settings["fire_rate"], (height, width))

        if is_small and height * width <= MOST_PLANE_CELLS and not capacity:
            return rollout_planes(nca, state, draw, length, settings), kept

        def advance(t, carry):
            state, kept = carry
            fire = draw(t)
            (following, alive), _ = _in_window(nca, step, state, fire)

            def write(kept, now):
                # Where .at[place, t].set() scatters, this is known to stay in place.
                start = (place, t, *(jnp.int32(0) for _ in now.shape))
                return jax.lax.dynamic_update_slice(kept, now[None, None], start)

            if capacity:
                kept = jax.tree.map(write, kept, (state, jnp.stack([fire, alive])))
            return following, kept

        return jax.lax.fori_loop(0, length, advance, (state, kept))

    def share(indices, samples, shared):
        states, lengths = samples
        lengths = jnp.where(indices < count, lengths, 0)  # A sample that fills up does nothing.
        # One array for both masks: beside two, XLA copies what is kept in every step.
        masks = jnp.zeros((len(indices), capacity, 2, height, width), bool)
        kept = jnp.zeros((len(indices), capacity, *states.shape[1:]), states.dtype), masks
        return in_turn(run, (indices, states, lengths), kept, shared)

    count, height, width, _ = states.shape
    states, kept = spread(share, mesh, (states, lengths), (weights, key, settings))
    return states, (kept, lengths, weights, settings)


def _backward(graph, capacity, mesh, residuals, cotangents):
    """Replays the steps backwards and adds up each step's share of the gradient."""
    kept, lengths, weights, settings = residuals
    count = len(lengths)

    def replay(place, sample, kept, shared):
        length, cotangent = sample
        weights, settings = shared
        nca = nnx.merge(graph, weights)
        pull_back = _pull_back if nca.hidden_size < SMALLEST_HIDDEN else _sparse_pull_back
        pull_back = functools.partial(pull_back, graph, weights, settings)

        def retreat(i, carry):
            cotangent, sums = carry
            state, (fire, alive) = jax.tree.map(lambda kept: kept[place, length - 1 - i], kept)
            (preceding,), shares = _in_window(nca, pull_back, state, fire, alive, cotangent)
            return preceding, jax.tree.map(jnp.add, sums, shares)

        sums = jax.tree.map(jnp.zeros_like, [weights, settings])
        return jax.lax.fori_loop(0, length, retreat, (cotangent, sums)), kept

    def share(indices, samples, shared):
        lengths, cotangents, kept = samples
        lengths = jnp.where(indices < count, lengths, 0)
        results, _ = in_turn(replay, (lengths, cotangents), kept, shared)
        return results, ()

    (cotangents, sums), _ = spread(share, mesh, (lengths, cotangents, kept), (weights, settings))
    of_weights, of_settings = jax.tree.map(lambda share: share.sum(0), sums)
    return of_weights, cotangents, None, None, of_settings


rollout_cpu.defvjp(_forward, _backward)


# A step returns the next state and which cells live in it. What takes it back for the gradient
# returns the cotangent of the state, and those of weights and settings.


def _step(nca, settings, state, fire):
    return (nca.step(state, fire, **_frame(settings)), fire), ()


def _pull_back(graph, weights, settings, state, fire, _, cotangent):
    def step(state, weights, settings):
        return nnx.merge(graph, weights).step(state, fire, **_frame(settings))

    _, transposed = jax.vjp(step, state, weights, settings)
    cotangent, *shares = transposed(cotangent)
    return (cotangent,), shares


def _sparse_step(nca, settings, state, fire):  # The network runs only where it matters.
    frame = _frame(settings)
    before = living_mask(state, nca.alive_threshold)
    seen = _flat(perceive(state, frame.get("angle", 0.0)))
    # A cell beside the living can mature and so keep a neighbour alive.
    blocks, count = _blocks_of_rows(fire & widen(before))

    def update(i, cells):
        rows = blocks[i]
        update = _network(nca, settings, _take(seen, rows))
        return cells.at[rows].add(update, mode="drop", indices_are_sorted=True)

    state = jax.lax.fori_loop(0, count, update, _flat(state)).reshape(state.shape)
    alive = before & living_mask(state, nca.alive_threshold)
    return (jnp.where(alive[..., None], state, 0.0), alive), ()


def _sparse_pull_back(graph, weights, settings, state, fire, alive, cotangent):
    def look(state, settings):
        return _flat(perceive(state, _frame(settings).get("angle", 0.0)))

    def respond(seen, weights, settings):
        return _network(nnx.merge(graph, weights), settings, seen)

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
    sums = jax.lax.fori_loop(0, count, pull_back, nothing)
    seen_cotangent, (weights_share, settings_share) = sums
    around, turned = look_back(seen_cotangent)
    return (cotangent + around,), [weights_share, jax.tree.map(jnp.add, settings_share, turned)]


def _frame(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "fire_rate"}


def _network(nca: NCA, settings: dict[str, Any], seen: Array) -> Array:
    return settings.get("step_size", 1.0) * nca.update(nnx.relu(nca.hidden(seen)))


def _flat(grid: Array) -> Array:
    return grid.reshape(-1, grid.shape[-1])


def _blocks_of_rows(cells: Array) -> tuple[Array, Array]:
    """Returns the indices of the cells that are set, in blocks, and how many blocks they fill."""
    block = min(BLOCK, max(64, cells.size // 4))
    capacity = -(-cells.size // block) * block
    rows = jnp.flatnonzero(cells, size=capacity, fill_value=cells.size)
    return rows.reshape(-1, block), -(-cells.sum(dtype=jnp.int32) // block)


def _take(cells: Array, rows: Array) -> Array:
    return cells.at[rows].get(mode="fill", fill_value=0, indices_are_sorted=True)


def _in_window(nca: NCA, function: Callable, state: Array, *grids: Array) -> Any:
    """Calls `function` on the smallest window of its arguments that holds all that lives.

    Exact: a step empties every cell that has no mature cell beside it. A cell two away from a
    mature one can still mature itself and so keep a neighbour alive, and it sees one cell further:
    a margin of three cells decides all. The grids that come back are put into empty ones.
    """
    height, width, _ = state.shape
    shapes = [(-(-height * k // 12), -(-width * k // 12)) for k in WINDOW_TWELFTHS]
    shapes = [shape for shape in shapes[:-1] if math.prod(shape) >= SMALLEST_WINDOW] + shapes[-1:]
    is_mature = mature(state, nca.alive_threshold)
    top, rows = _extent(is_mature.any(1))
    left, columns = _extent(is_mature.any(0))

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


def _extent(lines: Array) -> tuple[Array, Array]:
    """Returns the first line and how many there are around those set, with a margin of three."""
    first = jnp.maximum(jnp.argmax(lines) - 3, 0)
    end = jnp.minimum(len(lines) - jnp.argmax(lines[::-1]) + 3, len(lines))
    return first, jnp.where(lines.any(), end - first, 0)
