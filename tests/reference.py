"""What the tests compare with: a neural cellular automaton in plain NumPy, in float64.

    weights = random_weights(channels=6, hidden=10, seed=0)
    fires = np.ones(state.shape[:-1], bool)
    after = step(weights, state, fires, angle=0.3)

Nothing above the last section knows of JAX, and nothing here knows of the package.
"""

import contextlib
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

ALPHA = 3
SOBEL_X = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
SOBEL_Y = SOBEL_X.T


class Weights(NamedTuple):
    """The two dense layers: hidden (3·channels → hidden), update (hidden → channels)."""

    hidden_kernel: np.ndarray
    hidden_bias: np.ndarray
    update_kernel: np.ndarray
    update_bias: np.ndarray


def random_weights(channels: int, hidden: int, seed: int, scale: float = 0.3) -> Weights:
    """Weights that make cells live and die: float32 values, kept in float64."""
    random = np.random.default_rng(seed)
    shapes = (3 * channels, hidden), (hidden,), (hidden, channels), (channels,)
    return Weights(*(rounded(scale * random.normal(size=shape)) for shape in shapes))


def random_state(shape: tuple[int, ...], seed: int, alive: float = 0.4) -> np.ndarray:
    """A state in which about `alive` of the cells are opaque; the others hold less than 0.1."""
    random = np.random.default_rng(seed)
    state = random.normal(size=shape)
    opaque = random.uniform(size=shape[:-1]) < alive
    state[..., ALPHA] = np.where(
        opaque, random.uniform(0.3, 1.0, shape[:-1]), random.uniform(-0.2, 0.05, shape[:-1])
    )
    return rounded(state)


def rounded(array: np.ndarray) -> np.ndarray:
    """The nearest float32 values, in float64, so that both sides start from the same numbers."""
    return np.asarray(array, np.float32).astype(np.float64)


def neighbourhoods(array: np.ndarray, outside: float) -> np.ndarray:
    """(..., h, w) → (..., h, w, 3, 3), with `outside` beyond the edge of the grid."""
    margins = [(0, 0)] * (array.ndim - 2) + [(1, 1), (1, 1)]
    padded = np.pad(array, margins, constant_values=outside)
    return sliding_window_view(padded, (3, 3), axis=(-2, -1))


def living_mask(state: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """(..., h, w, c) → (..., h, w), True where a cell or a neighbour exceeds the threshold."""
    return neighbourhoods(state[..., ALPHA], -np.inf).max(axis=(-2, -1)) > threshold


def perceive(state: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """(..., h, w, c) → (..., h, w, 3c): the state, its x gradient, its y gradient."""
    windows = neighbourhoods(np.moveaxis(state, -1, 0), 0.0)
    x, y = (
        np.moveaxis(np.einsum("...ij,ij->...", windows, sobel), 0, -1)
        for sobel in (SOBEL_X, SOBEL_Y)
    )
    turned_x = np.cos(angle) * x - np.sin(angle) * y
    turned_y = np.sin(angle) * x + np.cos(angle) * y
    return np.concatenate([state, turned_x, turned_y], axis=-1)


def step(
    weights: Weights,
    state: np.ndarray,
    fires: np.ndarray,
    angle: float = 0.0,
    step_size: float = 1.0,
    threshold: float = 0.1,
) -> np.ndarray:
    """One step of (..., h, w, c), in which the cells of `fires` (..., h, w) are updated."""
    before = living_mask(state, threshold)
    hidden = np.maximum(perceive(state, angle) @ weights.hidden_kernel + weights.hidden_bias, 0.0)
    update = step_size * (hidden @ weights.update_kernel + weights.update_bias)
    grown = state + np.where(fires[..., None], update, 0.0)
    alive = before & living_mask(grown, threshold)
    return np.where(alive[..., None], grown, 0.0)


def rollout(weights: Weights, state: np.ndarray, fires: np.ndarray, **options) -> np.ndarray:
    """All states of a rollout, the first included; `fires` is (num_steps, ..., h, w)."""
    frames = [state]
    for mask in fires:
        frames.append(step(weights, frames[-1], mask, **options))
    return np.stack(frames)


def margin(weights: Weights, state: np.ndarray, fires: np.ndarray, **options) -> float:
    """How near any alpha that a rollout compares with the threshold comes to it.

    Where this is large against float32's rounding, both precisions agree on who is alive.
    """
    threshold = options.get("threshold", 0.1)
    nearest = np.inf
    for mask in fires:
        # Nothing dies below a threshold of -inf: this is the state before cells are removed.
        grown = step(weights, state, mask, **{**options, "threshold": -np.inf})
        for compared in (state, grown):
            nearest = min(nearest, np.abs(compared[..., ALPHA] - threshold).min())
        state = step(weights, state, mask, **options)
    return float(nearest)


def central_difference(function, point: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """The gradient of a scalar function of one array, one element at a time."""
    gradient = np.empty_like(point)
    for index in np.ndindex(point.shape):
        there, back = point.copy(), point.copy()
        there[index] += epsilon
        back[index] -= epsilon
        gradient[index] = (function(there) - function(back)) / (2 * epsilon)
    return gradient


def assert_near(actual, expected, relative: float) -> None:
    """Compares with the largest element, as gradients are: single elements may be tiny."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())


# Bridges between these references and the JAX side of a test.


def set_weights(nca, weights: Weights):
    """Writes the weights into an NCA, as float32, and returns it."""
    import jax.numpy as jnp

    for layer, kernel, bias in (
        (nca.hidden, weights.hidden_kernel, weights.hidden_bias),
        (nca.update, weights.update_kernel, weights.update_bias),
    ):
        layer.kernel[...] = jnp.asarray(kernel, jnp.float32)
        layer.bias[...] = jnp.asarray(bias, jnp.float32)
    return nca


@contextlib.contextmanager
def compilations():
    """Yields a list that receives one item for each program that XLA compiles meanwhile."""
    import jax

    seen, listening = [], [True]

    def listen(event: str, duration: float, **_) -> None:
        if listening and event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    # A listener cannot be taken back through the public interface, so it is made deaf.
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        listening.clear()


def wait_until(frame, condition: str) -> None:
    """Waits until a condition in JavaScript holds in a page of a browser, or in a frame of one.

    Unlike the browser's own `wait_for_function`, which needs a page that may evaluate strings.
    """
    for _ in range(1500):
        if frame.evaluate(condition):
            return
        frame.wait_for_timeout(20)
    raise AssertionError(f"{condition} has not come true")


def refuses(call, argument: str, *shown: str) -> None:
    """Asserts that `call` raises, names the argument, shows the rest, and compiles nothing."""
    import pytest

    with compilations() as compiled, pytest.raises((TypeError, ValueError)) as error:
        call()
    for part in (argument, *shown):
        assert part in str(error.value)
    assert not compiled
