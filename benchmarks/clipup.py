"""ClipUp, one of the optimisers that notebook 02's experiments compare."""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from nca_helpers.checks import check_number, require


def clipup(
    learning_rate: float, momentum: float = 0.9, max_speed: float | None = None
) -> optax.GradientTransformation:
    """ClipUp: normalised gradients, momentum, and a limit to the speed.

    All parameters count as one vector. A gradient of zero adds nothing, where EvoJAX's ClipUp
    divides by its length. Source: Toklu, Liskowski & Srivastava, "ClipUp: a simple and powerful
    optimizer for distribution-based policy evolution", PPSN 2020, arXiv:2008.02387.

    Args:
        learning_rate: the length that every gradient is scaled to.
        momentum: the fraction of the velocity that is kept.
        max_speed: the largest length of an update; None is twice the learning rate.

    Raises:
        ValueError: if an argument is out of range.
    """
    check_number("learning_rate", learning_rate, minimum=0)
    require(learning_rate > 0, "learning_rate", "above 0", learning_rate)
    check_number("momentum", momentum, minimum=0, maximum=1)
    require(momentum < 1, "momentum", "below 1", momentum)
    max_speed = 2 * learning_rate if max_speed is None else max_speed
    check_number("max_speed", max_speed, minimum=0)
    require(max_speed > 0, "max_speed", "above 0", max_speed)

    def init(params):
        return optax.TraceState(trace=jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        gradient, unravel = ravel_pytree(gradient)
        length = jnp.linalg.norm(gradient)
        velocity = momentum * ravel_pytree(state.trace)[0]
        velocity -= learning_rate * gradient / jnp.where(length > 0, length, 1.0)
        velocity /= jnp.maximum(1.0, jnp.linalg.norm(velocity) / max_speed)
        updates = unravel(velocity)
        return updates, optax.TraceState(trace=updates)

    return optax.GradientTransformation(init, update)
