"""The rollout with the channels first, against a loop over the automaton."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nca_helpers import NCA, rollout

OPTIONS = [
    {},
    {"angle": 0.7},
    {"step_size": 0.5, "fire_rate": 1.0},
    {"fire_rate": 0.3, "angle": -2.0, "step_size": 1.5},
]


def living_rule(alive_threshold, channels=5, hidden=7):
    nca = NCA(channels=channels, hidden=hidden, alive_threshold=alive_threshold, rngs=nnx.Rngs(1))
    kernel = nca.update.kernel
    kernel[...] = 0.1 * jax.random.normal(jax.random.key(2), kernel[...].shape)
    return nca


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("alive_threshold", [0.1, -0.2])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 8)])
def test_states_are_those_of_a_loop(shape, alive_threshold, options):
    nca, key = living_rule(alive_threshold), jax.random.key(3)
    states = jax.random.uniform(jax.random.key(4), (2, *shape, 5))
    for num_steps in (0, 1, 4, 7):  # Coins are drawn four steps at a time.
        looped = states
        for t in range(num_steps):
            looped = nca(looped, jax.random.fold_in(key, t), **options)
        found = rollout(nca, states, key, num_steps, **options)
        np.testing.assert_allclose(found, looped, rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(found - states)).max() > 0.01


def test_what_is_not_a_number_is_not_dead():
    nca, state = living_rule(0.1), jnp.zeros((5, 5, 5)).at[2, 2].set(jnp.nan)
    assert np.isnan(np.asarray(rollout(nca, state, jax.random.key(0), 3))).any()
