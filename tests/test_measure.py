"""What becomes of an automaton that is wounded, and how near a picture is to its target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import scipy.ndimage
from flax import nnx

from nca_helpers.emoji import BUNDLED, load_emoji
from nca_helpers.measure import blur_like, impostors, robustness
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


@pytest.mark.parametrize(
    ("move", "fates"),
    [((0, 0), (1, 1)), ((2, -1), (0, 1)), ((-2, 2), (0, 1)), ((3, 0), (0, 0)), ((0, -3), (0, 0))],
)
def test_a_body_beside_its_place_is_whole(move, fates):
    """`survived` asks for the place, `survived_nearby` for a place at most two cells away."""
    target = np.zeros((16, 12, 4), np.float32)
    target[6:9, 4:7] = 1
    wounds = {"moved": lambda states, key: states.at[..., :4].set(jnp.roll(target, move, (0, 1)))}
    (row,) = robustness(
        idle_nca(), target, wounds, KEY, wound_step=1, recovery_steps=0, num_rollouts=2
    )
    assert (row["survived"], row["survived_nearby"]) == fates


def test_a_body_at_the_edge_is_compared_with_what_of_the_target_is_on_the_grid():
    """A target that leaves the grid on one side does not come in on the other."""
    target = np.zeros((16, 12, 4), np.float32)
    target[:, 0] = target[:, 5] = 1
    wounds = {"moved": lambda states, key: states.at[..., :4].set(jnp.roll(target, -1, 1))}
    (row,) = robustness(
        idle_nca(), target, wounds, KEY, wound_step=1, recovery_steps=0, num_rollouts=1
    )
    assert row["survived_nearby"] == 0


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
    assert row["survived_nearby"] == 0.25


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


# How near is a picture


@pytest.fixture(scope="module")
def lizard():
    return np.asarray(load_emoji("🦎", 16, 2, offline=True))


def nearest(picture, album):
    return min(album, key=lambda name: np.square(picture - album[name]).mean())


@pytest.mark.parametrize("blur", [0.0, 0.6, 0.9, 2.0])
def test_a_loss_is_a_blur(lizard, blur):
    # Against a Gaussian of our own, by its values at whole cells.
    width = np.arange(-9, 10)
    kernel = np.exp(-(width**2) / (2 * max(blur, 1e-3) ** 2))
    matrix = np.array([np.convolve(row, kernel / kernel.sum(), "same") for row in np.eye(20)])
    blurred = np.einsum("ij,kl,jlc->ikc", matrix, matrix, lizard)
    loss = np.square(blurred - lizard).mean()
    assert blur_like(loss, lizard) == pytest.approx(blur, abs=0.03)


def test_no_loss_is_no_blur_and_a_great_one_is_the_greatest(lizard):
    assert blur_like(0.0, lizard) == 0
    assert blur_like(1e9, lizard) == 5


def test_impostors_are_what_they_are_called(lizard):
    found = impostors(lizard)
    np.testing.assert_array_equal(found["turned by 90°"], np.rot90(lizard))
    np.testing.assert_array_equal(found["mirrored"][:, 3], lizard[:, 16])
    ellipse = found["an ellipse"]
    inside = ellipse[..., 3] > 0
    assert len(np.unique(ellipse[inside], axis=0)) == 1
    assert 0.1 < inside.mean() < 0.6
    middle = np.argwhere(inside).mean(0)
    wanted = np.average(np.indices((20, 20)).reshape(2, -1).T, 0, lizard[..., 3].ravel())
    np.testing.assert_allclose(middle, wanted, atol=0.5)
    assert all(picture.shape == lizard.shape for picture in found.values())


def test_an_album_with_impostors_in_it_tells_a_lizard_from_a_decoy(lizard):
    others = {emoji: np.asarray(load_emoji(emoji, 16, 2, offline=True)) for emoji in BUNDLED}
    album = others | impostors(lizard)
    decoys = impostors(lizard)
    decoys["a smaller ellipse"] = np.roll(decoys["an ellipse"], 1, 0) * 0.9
    decoys["blurred by 1.5 px"] = scipy.ndimage.gaussian_filter(lizard, (1.5, 1.5, 0))
    decoys["faint"] = 0.2 * lizard
    for name, decoy in decoys.items():
        assert nearest(decoy, album) != "🦎", name
    # Without the impostors in it the album is fooled.
    assert nearest(decoys["an ellipse"], others) == "🦎"
    sharp = scipy.ndimage.gaussian_filter(lizard, (0.6, 0.6, 0))
    assert nearest(lizard, album) == nearest(sharp, album) == "🦎"
