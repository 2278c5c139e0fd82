"""What is accepted: one vocabulary of refusals.

    size = check_integer("size", size, minimum=1)
    require(side in SIDES, "side", f"one of {', '.join(SIDES)}", side)

A refusal is a ValueError of one line: the argument's name, what it must be, and what was given,
shortened. Of traced values only shapes and types can be checked.
"""

import contextlib
import math
import numbers
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = float(np.finfo(np.float32).max)
_LONGEST = 200  # characters of what was given


def require(condition: bool, name: str, accepted: str, given: Any) -> None:
    """Raises ValueError unless the condition holds: `name` must be `accepted`, got `given`."""
    if not condition:
        raise ValueError(f"{name} must be {accepted}, got {shown(given)}")


def shown(value: Any) -> str:
    """Returns what an error says of a value: at most 200 characters, never an array's insides."""
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:  # Of a class it is a property.
        of_type = f" of {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{kind}{of_type}, shape {tuple(shape)}"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes that begin with {bytes(value[:16])!r}"
    if is_container := isinstance(value, list | tuple | dict | set):
        kind += f" of {len(value)}"
    text = f"a {kind}"
    if not is_container or len(value) <= 8:
        with contextlib.suppress(Exception):  # A repr of someone else's may do anything.
            text = " ".join(repr(value).split())
    may_hold_arrays = shape is None and not isinstance(value, str)
    if may_hold_arrays and re.search(r"rray\(|tensor\(|\bb['\"]", text):
        text = f"a {kind}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Returns `value`; raises ValueError unless it is an integer in that range."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    range_ = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    highest = math.inf if maximum is None else maximum
    require(is_integer and minimum <= value <= highest, name, f"an integer {range_}", value)
    return int(value)


def check_number(
    name: str, value: Any, minimum: float = -math.inf, maximum: float = math.inf
) -> None:
    """Raises ValueError unless `value` is one number of that range that float32 can hold.

    An array without axes is one too.
    """
    dtype = getattr(value, "dtype", type(value))
    is_number = (
        isinstance(value, int | float | np.generic | np.ndarray | jax.Array)
        and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
        and np.ndim(value) == 0
    )
    if is_number and not isinstance(value, jax.core.Tracer):
        is_number = minimum <= float(value) <= maximum and abs(float(value)) <= _LARGEST
    require(is_number, name, f"a finite number in [{minimum}, {maximum}]", value)


def check_state(state: Any, channels: int | None = None) -> None:
    """Raises ValueError unless `state` is `(..., height, width, channels)` of floats.

    If `channels` is None, any number from 4 on will do.
    """
    wanted = "at least 4" if channels is None else str(channels)
    is_array = isinstance(state, np.ndarray | jax.Array) and state.ndim >= 3
    given = state.shape[-1] if is_array and jnp.issubdtype(state.dtype, jnp.floating) else 0
    is_as_wanted = given >= 4 if channels is None else given == channels
    accepted = f"an array (..., height, width, channels) of floats, with {wanted} channels"
    require(is_as_wanted, "state", accepted, state)


def check_finite(name: str, values: Any) -> None:
    """Raises ValueError if there is a NaN or an infinity among the values."""
    bad = 0 if isinstance(values, jax.core.Tracer) else int((~np.isfinite(values)).sum())
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or infinity {bad} times")


def check_key(name: str, key: Any) -> None:
    """Raises ValueError unless `key` is one random key, as of `jax.random.key` or `PRNGKey`."""
    is_array = isinstance(key, np.ndarray | jax.Array)
    is_typed = is_array and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()
    is_old = is_array and key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
    require(is_typed or is_old, name, "one random key, as jax.random.key(0) makes it", key)
