"""Time: an automaton run for many steps, differentiable.

    state = rollout(nca, seed_state(72, 72), jax.random.key(0), 96)
    frames = rollout_frames(nca, seed_state(72, 72), jax.random.key(0), 96)

A rollout is a loop: step `t` calls the automaton with `jax.random.fold_in(key, t)`. `_plain` below
is that loop, and what runs on a GPU or TPU, and everywhere for a rule of a reader's own. On a CPU
`NCA`'s own rule runs faster, in `nca_helpers.rollout_cpu`, to the same states and gradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.interpreters.ad import JVPTracer
from jax.sharding import Mesh

from nca_helpers.checks import check_integer, check_key, check_state, require
from nca_helpers.devices import find_mesh, move
from nca_helpers.model import NCA, Number, check_settings, has_own_rule
from nca_helpers.rollout_cpu import rollout_cpu

# Gradients of lengths up to the same multiple of this share one compilation.
LENGTH_MULTIPLE = 32


def rollout(
    nca: NCA,
    state: Array,
    key: Array,
    num_steps: int | Array,
    *,
    max_steps: int | None = None,
    fire_rate: Number | None = None,
    angle: Number = 0.0,
    step_size: Number = 1.0,
) -> Array:
    """Returns the state after `num_steps` steps, of the same shape.

    Differentiable with respect to the weights, `state`, `angle` and `step_size`, any number of
    times. But in a `jit` of its own inside the derivative, on a CPU, JAX refuses `jax.jvp` alone
    and a gradient of a gradient. One compilation serves every length.

    On a CPU the samples of a batch are spread over the devices: over the mesh in force
    (`jax.set_mesh`), else, outside of `jit`, over all local devices. The result does not depend on
    how many there are.

    Args:
        nca: The automaton, with any rule: a subclass's own `step` or `__call__` is what is run.
        state: `(..., height, width, channels)`.
        key: Random key; step `t` uses `jax.random.fold_in(key, t)`.
        num_steps: An integer of at least 0, a traced integer (then give `max_steps`), or one
            integer for each sample of the leading batch axis.
        max_steps: The most steps that the gradient has room for. A concrete `num_steps` above
            it is refused, a traced one is clamped.
        fire_rate: In place of the automaton's own, in [0, 1].
        angle: Turns every cell's frame, in radians.
        step_size: Multiplies the update.
    """
    options = _check(nca, state, key, fire_rate, angle, step_size)
    lengths, capacity = _check_lengths(num_steps, max_steps, jnp.shape(state))
    graph, weights = nnx.split(nca)
    inputs = (weights, state, key, lengths, options)
    tracers = [leaf for leaf in jax.tree.leaves(inputs) if isinstance(leaf, jax.core.Tracer)]
    if not tracers:
        capacity = 0  # Nothing differentiates this call, so that it needs no room at all.
    mesh = find_mesh(inputs, inside_jit=False)
    inputs = move(inputs, mesh)
    if _is_fast(nca, state, key) and not any(map(_is_beyond_reverse_mode, tracers)):
        states = _fast(graph, capacity, mesh, *inputs)
        # An array that lies on all devices cannot be indexed in everybody's shard_map: a plain one.
        return jnp.asarray(np.asarray(states)) if isinstance(mesh, Mesh) else states
    return _plain(graph, capacity, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _plain(graph, capacity, weights, state, key, lengths, options):
    """What a rollout means: a loop over the automaton, for each sample as long as its length."""
    nca = nnx.merge(graph, weights)
    longest = lengths.max(initial=0)
    lengths = lengths.reshape(lengths.shape + (1,) * (state.ndim - lengths.ndim))

    def advance(t, state):
        following = nca(state, jax.random.fold_in(key, t), **options)
        return jnp.where(t < lengths, following, state)

    if not capacity:
        return jax.lax.fori_loop(0, longest, advance, state)

    # A loop of a fixed length can be differentiated, any number of times. What is over costs
    # nothing, and a step is computed again rather than kept.
    @jax.checkpoint
    def advance_unless_over(t, state):
        return jax.lax.cond(t < longest, advance, lambda t, state: state, t, state)

    return jax.lax.fori_loop(0, capacity, advance_unless_over, state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fast(graph, capacity, mesh, weights, state, key, lengths, options):
    """The same, each sample by itself."""
    states = state.reshape(-1, *state.shape[-3:])
    if lengths.ndim:
        each = len(states) // max(len(lengths), 1)
        lengths = jnp.broadcast_to(lengths[:, None], (len(lengths), each)).reshape(-1)
    lengths = jnp.broadcast_to(lengths, len(states))
    settings = {"fire_rate": nnx.merge(graph, weights).fire_rate} | options
    states = rollout_cpu(graph, capacity, mesh, weights, states, key, lengths, settings)
    return states.reshape(state.shape)


def _is_fast(nca: NCA, state: Array, key: Array) -> bool:
    """Returns whether `rollout_cpu` is proven for this rule, and pays."""
    is_old = key.dtype == jnp.uint32
    is_threefry = key.shape == (2,) if is_old else "threefry" in str(jax.random.key_impl(key))
    is_float32 = jnp.result_type(state) == jnp.float32
    return jax.default_backend() == "cpu" and is_threefry and is_float32 and not has_own_rule(nca)


def rollout_frames(
    nca: NCA,
    state: Array,
    key: Array,
    num_steps: int,
    *,
    fire_rate: Number | None = None,
    angle: Number = 0.0,
    step_size: Number = 1.0,
) -> Array:
    """Returns every state, the first included: `(num_steps + 1, ..., height, width, channels)`.

    The arguments are those of `rollout`, but `num_steps` is one integer, not traced.
    """
    options = _check(nca, state, key, fire_rate, angle, step_size)
    num_steps = check_integer("num_steps", num_steps, 0)
    graph, weights = nnx.split(nca)
    inputs = (weights, state, key, options)
    inputs = move(inputs, find_mesh(inputs, inside_jit=False))
    return _frames(graph, num_steps, *inputs)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _frames(graph, num_steps, weights, state, key, options):
    nca = nnx.merge(graph, weights)

    def advance(state, t):
        state = nca(state, jax.random.fold_in(key, t), **options)
        return state, state

    _, frames = jax.lax.scan(advance, state, jnp.arange(num_steps))
    return jnp.concatenate([state[None], frames])


def _check(nca, state, key, fire_rate, angle, step_size) -> dict[str, Any]:
    """Returns the options of a step that are not its defaults, in float32."""
    require(isinstance(nca, NCA), "nca", "an NCA", nca)
    check_state(state, nca.channels)
    require(jnp.result_type(state).itemsize >= 4, "state", "float32", state)
    check_key("key", key)
    check_settings(fire_rate, angle, step_size)
    # Part of the structure, not of the values: an upright frame costs nothing.
    options = {"fire_rate": (fire_rate, None), "angle": (angle, 0), "step_size": (step_size, 1)}
    return {
        name: jnp.asarray(value, jnp.float32) if isinstance(value, jax.Array) else np.float32(value)
        for name, (value, default) in options.items()
        if isinstance(value, jax.Array) or value != default
    }


def _is_beyond_reverse_mode(tracer: Any) -> bool:
    """Returns whether a tracer stands for forward mode, or for a derivative of a derivative.

    What lies outside of a `jit` around it cannot be seen.
    """
    levels = 0
    while isinstance(tracer, jax.core.Tracer):
        if isinstance(tracer, JVPTracer):
            return True
        levels += "Linearize" in type(tracer).__name__
        tracer = getattr(tracer, "primal", getattr(tracer, "val", None))
    return levels > 1


def _check_lengths(num_steps, max_steps, state_shape: tuple[int, ...]):
    """Returns the lengths as an int32 array or tracer, and the room that a gradient needs."""
    is_traced, is_bounded = isinstance(num_steps, jax.core.Tracer), max_steps is not None
    most = check_integer("max_steps", max_steps, 0) if is_bounded else np.iinfo(np.int32).max
    require(is_bounded or not is_traced, "max_steps", "given where num_steps is traced", max_steps)
    lengths = num_steps if is_traced else np.asarray(num_steps)
    is_integer = jnp.issubdtype(lengths.dtype, jnp.integer)
    is_as_wanted = is_integer and lengths.shape in ((), state_shape[:-3][:1])
    accepted = f"one integer, or one for each sample of a state of shape {state_shape}"
    require(is_as_wanted, "num_steps", accepted, num_steps)
    if is_traced:
        return jnp.clip(lengths, 0, most).astype(jnp.int32), max(most, 1)
    shortest, longest = int(lengths.min(initial=0)), int(lengths.max(initial=0))
    for length in (shortest, longest):
        check_integer("num_steps", length, 0, most)
    room = most if is_bounded else -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    return lengths.astype(np.int32), max(room, 1)
