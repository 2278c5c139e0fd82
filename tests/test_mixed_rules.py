"""Notebook 04's step for several rules on one grid, and what that notebook refuses."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_interrupt import code_cells

import nca_helpers
from nca_helpers import NCA

CELLS = code_cells(Path(__file__).parent.parent / "notebooks" / "04_beyond_one_lizard.ipynb")
CODES = {"emojis": ["🦎", "🐠"], "codes": jnp.array([[1.0, 1.0], [1.0, -1.0]])}


@pytest.fixture(scope="module")
def names():
    """What the cells of the seed's code and of the mixed step define."""
    found = CODES | {"height": 4, "width": 5, "first": nca_helpers.seed_state(4, 5)}
    exec(CELLS["imports"].replace("jax.set_mesh(", "("), found)
    for name in ("seeds", "code-of", "two-step", "two-live"):
        exec(CELLS[name].partition("\nseed_states =")[0], found)
    return found


def rule(seed, **settings):
    """A rule that changes every channel."""
    nca = NCA(channels=5, hidden=8, rngs=nnx.Rngs(seed), **settings)
    nca.update.kernel[...] = jax.random.normal(jax.random.key(seed), (8, 5))
    return nca


def test_each_cell_follows_its_own_rule(names):
    rules = [rule(seed, alive_threshold=-1e9) for seed in range(3)]  # All live, all mature.
    state = jax.random.normal(jax.random.key(3), (2, 6, 7, 5))
    which = jax.random.randint(jax.random.key(4), (2, 6, 7), 0, 3)
    key = jax.random.key(5)
    fire = jax.random.bernoulli(key, 0.5, which.shape)
    alone = np.stack([each.step(state, fire) for each in rules])
    mixed, same = names["mixed_step"](rules, state, which, key)
    expected = np.take_along_axis(alone, np.asarray(which)[None, ..., None], 0)[0]
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    np.testing.assert_array_equal(same, which)


@pytest.mark.parametrize(
    ("alphas", "taken"),
    [
        ((0.5, 0.0, 0.4), 0),
        ((0.4, 0.0, 0.5), 1),
        ((0.5, 0.0, 0.5), 0),  # Equally strong: the smaller index.
        ((0.0, 0.09, 0.3), 1),  # It is not mature, and changes over.
        ((0.3, 0.2, 0.9), 1),  # It is mature, and keeps its rule.
        ((0.1, 0.0, 0.2), 1),  # The other is not mature.
    ],
)
def test_a_new_cell_follows_its_strongest_neighbour(names, alphas, taken):
    still = [NCA(channels=4, hidden=1, rngs=nnx.Rngs(0))] * 2
    state = jnp.zeros((3, 3, 4)).at[1, :, 3].set(jnp.array(alphas))
    which = jnp.array([[0, 0, 0], [0, 1, 1], [0, 0, 0]])
    _, which = names["mixed_step"](still, state, which, jax.random.key(0))
    assert which[1, 1] == taken


def test_rules_of_different_channels_are_refused(names):
    rules = {"🦎": rule(0), "small": NCA(channels=4, rngs=nnx.Rngs(0))}
    state, which = jnp.zeros((4, 4, 5)), jnp.zeros((4, 4), int)
    message = "rules must be of equally many channels, got {'🦎': 5, 'small': 4}"
    with pytest.raises(ValueError, match=re.escape(message)):
        names["live"](rules, state, which, jax.random.key(0), 1)
    with pytest.raises(ValueError, match=r"state must be .* with 5 channels"):
        names["live"]({"🦎": rule(0)}, state[..., :4], which, jax.random.key(0), 1)


def test_codes_that_were_not_trained_are_refused(names):
    seed = names["seed_with"](names["code_of"]("🐠"))
    np.testing.assert_array_equal(seed[2, 2], [0] * 3 + [1] * 12 + [-1])
    with pytest.raises(ValueError, match="emoji must be one of those trained, 🦎 🐠, got '🦋'"):
        names["code_of"]("🦋")
    for code in (1.0, [1.0], [1.0, 1.1], [1.0, float("nan")], [[0, 0], [0, 2]]):
        with pytest.raises(ValueError, match="code must be two numbers from -1 to 1"):
            names["seed_with"](code)
