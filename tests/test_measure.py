"""What becomes of an automaton that is wounded: each fate by its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

from nca_helpers.measure import robustness
from nca_helpers.model import NCA, seed_state

KEY = np.array([0, 5], np.uint32)


def idle_nca():
    """An untrained automaton: it leaves what lives as it is."""
    return NCA(hidden=3, rngs=nnx.Rngs(0))


ROBUSTNESS_WOUNDS = {
    "none": lambda states, key: states,
    "all gone": lambda states, key: 0 * states,
    "all alive": lambda states, key: 0 * states + 1,
    "not a number": lambda states, key: states * jnp.nan,
    "half of them gone": lambda states, key: states.at[:2].set(0),
    "half of them not a number": lambda states, key: states.at[:2].multiply(jnp.nan),
}


def test_robustness_names_what_becomes_of_each_wound():
    target = np.asarray(seed_state(8, 8))[..., :4]
    rows = robustness(
        idle_nca(), target, ROBUSTNESS_WOUNDS, jax.random.key(0),
        wound_step=3, recovery_steps=2, num_rollouts=4,
    )  # fmt: skip
    fates = {
        row["wound"]: (row["survived"], row["died"], row["overgrew"], row["nan"]) for row in rows
    }
    assert fates["none"] == (1, 0, 0, 0)
    assert fates["all gone"] == (0, 1, 0, 0)
    assert fates["all alive"] == (0, 0, 1, 0)
    # A cell whose alpha is NaN is not dead: what explodes must not look like what died.
    assert fates["not a number"] == (0, 0, 0, 1)
    assert fates["half of them gone"] == (0.5, 0.5, 0, 0)
    assert fates["half of them not a number"] == (0.5, 0, 0, 0.5)
    assert all(row["wound_step"] == 3 for row in rows)


def test_robustness_loss_is_the_log_of_the_mean_over_rollouts():
    target = np.zeros((8, 8, 4), np.float32)
    (row,) = robustness(
        idle_nca(), target, {"none": ROBUSTNESS_WOUNDS["none"]}, jax.random.key(0),
        wound_step=1, recovery_steps=1, num_rollouts=3,
    )  # fmt: skip
    # The seed's one cell differs in alpha alone, by 1, of 8 x 8 cells with four channels.
    assert row["log10_loss"] == pytest.approx(np.log10(1 / (8 * 8 * 4)))


def test_robustness_reports_a_state_that_is_not_a_number():
    wounds = {"not a number": ROBUSTNESS_WOUNDS["not a number"]}
    target = np.zeros((8, 8, 4), np.float32)
    (row,) = robustness(
        idle_nca(), target, wounds, jax.random.key(0), wound_step=1, recovery_steps=0
    )
    assert (row["survived"], row["died"], row["nan"]) == (0, 0, 1)
    assert np.isnan(row["log10_loss"])


@pytest.mark.parametrize("channel", [0, 3, 9])
def test_a_rollout_that_is_not_a_number_in_any_channel_is_told(channel):
    """Hidden channels count too: with the next step all others follow."""
    target = np.asarray(seed_state(8, 8))[..., :4]
    wounds = {"one number": lambda states, key: states.at[:3, 4, 4, channel].set(jnp.nan)}
    (row,) = robustness(
        idle_nca(), target, wounds, KEY, wound_step=1, recovery_steps=0, num_rollouts=4
    )
    assert (row["survived"], row["died"], row["overgrew"], row["nan"]) == (0.25, 0, 0, 0.75)


class OwnRule(NCA):
    """The rule of `NCA`, as a reader would change it."""

    def step(self, state, fire, **frame):
        return super().step(state, fire, **frame)


@pytest.mark.parametrize(("make", "hidden"), [(NCA, 64), (NCA, 3), (OwnRule, 3)])
def test_finite_weights_that_explode_are_told_from_death(make, hidden):
    """Every cell sees itself and adds a multiple of it, until that is more than float32 holds."""
    nca = make(hidden=hidden, rngs=nnx.Rngs(0))
    nca.hidden.kernel[...] = jnp.zeros((48, hidden)).at[:16].set(1e15)
    nca.update.kernel[...] = jnp.full((hidden, 16), 1e15)
    target = np.asarray(seed_state(8, 8))[..., :4]
    (row,) = robustness(
        nca, target, {"none": ROBUSTNESS_WOUNDS["none"]}, KEY,
        wound_step=20, recovery_steps=20, num_rollouts=2,
    )  # fmt: skip
    assert (row["survived"], row["died"], row["overgrew"], row["nan"]) == (0, 0, 0, 1)
    assert np.isnan(row["log10_loss"])


TARGET = np.zeros((8, 8, 4), np.float32)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("target", TARGET[0], "(8, 4)"),
        ("target", TARGET[..., :3], "(8, 8, 3)"),
        ("target", TARGET[None], "(1, 8, 8, 4)"),
        ("target", TARGET + np.nan, "NaN or infinity 256 times"),
        *(("wound_step", value, repr(value)) for value in (-1, 2.0, None, True)),
        *(("recovery_steps", value, repr(value)) for value in (-1, 2.5, None)),
        *(("num_rollouts", value, repr(value)) for value in (0, -1, 2.0)),
    ],
)
def test_robustness_refuses(name, value, shown):
    def wound(states, key):
        raise AssertionError("wounded")

    given = {"nca": idle_nca(), "target": TARGET, "wounds": {"any": wound}, "key": KEY}
    given |= {"wound_step": 1, "recovery_steps": 1, "num_rollouts": 1, name: value}
    reference.refuses(lambda: robustness(**given), name, shown)
