"""What the experiments of notebook 02 rest on: EvoJAX's Adam as it is, and the evolved lizard."""

import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nca_helpers import (
    NCA,
    halve,
    impostors,
    load_emoji,
    pretrained,
    pretrained_meta,
    rollout,
    seed_state,
)
from nca_helpers.emoji import BUNDLED

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def evolution():
    """The script as a module."""
    with pytest.MonkeyPatch.context() as patch:
        # It chooses the notebook's preset for its whole process.
        patch.setenv("NCA_PRESET", "laptop")
        patch.setenv("NCA_EMOJI", "🦎")
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("evolution", BENCHMARKS / "evolution.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "evolution", module)
        spec.loader.exec_module(module)
        yield module


def test_evojax_adam_is_evojax_adam(evolution):
    from evojax.algo import PGPE

    start = np.linspace(-1.0, 1.0, 8).astype(np.float32)
    solver = PGPE(
        pop_size=8,
        param_size=8,
        init_params=start,
        optimizer="adam",
        center_learning_rate=0.05,
        stdev_learning_rate=0.0,
        init_stdev=0.1,
        optimizer_config={"center_lr_decay_steps": 3},
    )
    # Its generation is divided by 1,000, or by what its configuration says.
    optimizer = evolution.evojax_adam(0.05, count_divisor=3)
    centre, state = jnp.asarray(start), optimizer.init(jnp.asarray(start))
    for i in range(10):
        population = solver.ask()
        fitness = -jnp.sum((population - 0.3 * i) ** 2, axis=1)
        noise = solver._scaled_noises
        ranks = jnp.argsort(jnp.argsort(fitness)) / 7 - 0.5
        gradient = (0.5 * (ranks[::2] - ranks[1::2])[:, None] * noise).mean(0)
        updates, state = optimizer.update(-gradient, state)
        centre = optax.apply_updates(centre, updates)
        solver.tell(fitness)
        np.testing.assert_allclose(centre, solver.best_params, atol=1e-6)


@pytest.fixture(scope="module")
def lizard():
    """Twenty rollouts of the evolved lizard, and how it was made."""
    nca, meta = pretrained("🦎", "evolved"), pretrained_meta("🦎", "evolved")
    grid = meta["size"] + 2 * meta["padding"]
    seeds = jnp.broadcast_to(seed_state(grid, grid), (20, grid, grid, 16))
    states = rollout(nca, seeds, jax.random.key(4321), meta["num_steps"])
    return np.asarray(states[..., :4]), meta


def test_evolved_lizard_is_small_but_whole(lizard):
    _, meta = lizard
    assert meta["size"] >= 16 and meta["padding"] <= 2
    assert meta["regime"] == "evolved"
    nca = pretrained("🦎", "evolved")
    assert isinstance(nca, NCA) and (nca.fire_rate, nca.alive_threshold) == (0.5, 0.1)


def share_of_empty(pictures, meta):
    target = load_emoji("🦎", meta["size"], meta["padding"], offline=True)
    return np.square(pictures - target).mean((1, 2, 3)) / np.square(target).mean()


def test_evolved_lizard_has_at_most_a_twentieth_of_the_empty_loss(lizard):
    assert np.mean(share_of_empty(*lizard)) <= 0.05


def test_evolved_lizard_is_nearer_to_a_lizard_than_to_any_impostor(lizard):
    pictures, meta = lizard
    sizes = meta["size"], meta["padding"]
    album = {emoji: load_emoji(emoji, *sizes, offline=True) for emoji in BUNDLED}
    album |= impostors(album["🦎"])  # tests/test_measure.py shows that decoys fail.
    pages = np.stack([np.asarray(page) for page in album.values()])
    distances = np.square(pictures[:, None] - pages).mean((2, 3, 4))
    assert [list(album)[i] for i in distances.argmin(1)] == ["🦎"] * 20


def test_evolved_lizard_is_no_worse_at_four_times_its_horizon_and_heals_a_half():
    nca, meta = pretrained("🦎", "evolved"), pretrained_meta("🦎", "evolved")
    grid, horizon = meta["size"] + 2 * meta["padding"], meta["num_steps"]
    seeds = jnp.broadcast_to(seed_state(grid, grid), (20, grid, grid, 16))
    grown = rollout(nca, seeds, jax.random.key(1), horizon)
    later = rollout(nca, grown, jax.random.key(2), 3 * horizon)
    healed = rollout(nca, halve(grown, "left"), jax.random.key(3), 2 * horizon)
    cut = share_of_empty(halve(grown, "left")[..., :4], meta)
    young, old = (share_of_empty(states[..., :4], meta) for states in (grown, later))
    assert (old <= young).sum() >= 18
    assert np.median(share_of_empty(healed[..., :4], meta)) <= 0.05 < 0.3 < np.median(cut)
