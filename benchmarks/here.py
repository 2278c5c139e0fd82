"""The work as this project does it: the cells of notebooks 01 and 02, and `rollout`."""

import os

os.environ |= {"NCA_PRESET": "paper", "NCA_EMOJI": "🦎", "NCA_REGIME": "persistent"}

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from notebook_cells import SHOWN, run_cells

from nca_helpers import NCA, population_fitness, rollout, rollout_cpu, use_every_core
from nca_helpers.model import set_weights, weights_of

jax.set_mesh(use_every_core())

CHECK_KEY = 5

# Of a larger population an accelerator's memory cannot hold all hidden layers.
MOST_AT_ONCE = 4_096


def choose(variant: str) -> None:
    """Chooses `general`: a small network is rolled out as a large one is."""
    assert variant == "general"
    rollout_cpu.MOST_PLANE_CELLS = 0


def to_nca(weights: dict) -> NCA:
    """Returns an automaton with weights in the layout of the checkpoints."""
    nca = NCA(hidden=len(weights["hidden/bias"]), rngs=nnx.Rngs(0))
    set_weights(nca, weights)
    return nca


def masks(num_steps: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the fire masks, (num_steps, batch, height, width), that `check` draws."""

    def mask(t, sample):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(CHECK_KEY), t), sample)
        return jax.random.bernoulli(key, 0.5, shape[1:])

    steps, samples = jnp.arange(num_steps), jnp.arange(shape[0])
    return np.asarray(jax.vmap(lambda t: jax.vmap(lambda i: mask(t, i))(samples))(steps))


def check(problem: dict) -> dict[str, np.ndarray]:
    """Returns the states after some steps, and the gradient of their loss."""
    states, num_steps = jnp.asarray(problem["states"]), len(problem["masks"])

    @nnx.jit
    def loss(nca):
        after = rollout(nca, states, jax.random.key(CHECK_KEY), num_steps)
        return jnp.mean(jnp.square(after[..., :4] - problem["target"])), after

    nca = to_nca(problem)
    gradient, after = nnx.grad(loss, has_aux=True)(nca)
    return {"states": np.asarray(after)} | weights_of(nnx.merge(nnx.graphdef(nca), gradient))


def train(problem: dict, preset: str = "paper") -> Callable:
    """Notebook 01's train step, with this problem's weights and states.

    Only `laptop` goes on from what grew: at the first learning rate of `paper` a trained rule
    overgrows within a few train steps, and the pool would not be one of lizards any more.
    """

    def set_config(names):
        shortest, longest = map(int, problem["lengths"])
        size = dict(batch_size=int(problem["batch_size"]), pool_size=len(problem["states"]))
        names["config"] = names["presets"][preset] | dict(steps=(shortest, longest), **size)

    def set_weights(names):
        names["nca"] = to_nca(problem)

    def set_first(names):
        names["first"] = jnp.asarray(problem["first"])

    def set_target(names):
        names["target"] = jnp.asarray(problem["target"])

    after = {
        "config": set_config,
        "target": set_target,
        "state": set_first,
        "model": set_weights,
    }
    names = run_cells("01_growing_with_gradients.ipynb", "train-step", after, SHOWN)
    pool, train_step = np.array(problem["states"]), names["train_step"]
    results = pool if preset == "laptop" else pool.copy()
    nca, optimizer = names["nca"], names["optimizer"]
    task = [names[name] for name in ("target", "regime", "wound")]
    steps = itertools.count()

    def once():
        step = next(steps)
        random = np.random.default_rng((0, step))
        chosen = random.choice(len(pool), names["config"]["batch_size"], replace=False)
        key = jax.random.fold_in(jax.random.key(0), step)
        loss, _, _, after = train_step(nca, optimizer, pool[chosen], key, *task)
        results[chosen] = after
        return float(loss)

    return once


def race(problem: dict) -> Callable:
    """Notebook 01's train step at its preset `laptop`."""
    return train(problem, "laptop")


def score_in_parts(fitness: Callable, population: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns `population_fitness`, of a large population in parts."""
    if len(population) <= MOST_AT_ONCE:
        return population_fitness(fitness, population, keys)
    parts = [x.reshape(-1, MOST_AT_ONCE, *x.shape[1:]) for x in (population, keys)]
    scores = jax.lax.map(lambda part: population_fitness(fitness, *part), tuple(parts))
    return scores.reshape(-1)


def evolution_names(problem: dict) -> dict:
    """Returns the names of notebook 02, up to its generations, for this problem."""

    def set_config(names):
        names["population_fitness"] = score_in_parts
        names["config"] |= dict(
            hidden=len(problem["hidden/bias"]),
            loss_steps=tuple(map(int, problem["loss_steps"])),
            population_size=int(problem["population_size"]),
        )

    def set_first(names):
        names["first"] = jnp.asarray(problem["first"])
        names["target"] = jnp.asarray(problem["target"])

    def set_weights(names):
        names["graph"], names["weights"] = nnx.split(to_nca(problem))
        names["centre"], names["unravel"] = ravel_pytree(names["weights"])

    after = {"config": set_config, "target": set_first, "model": set_weights}
    without = ("ask-tell", "by-hand")
    return run_cells("02_growing_with_pgpe.ipynb", "generations", after, without)


def generation(problem: dict) -> Callable:
    """Notebook 02's generation, with the stdev of the EvoJAX notebook."""
    names = evolution_names(problem)
    evolve = names["make_evolve"](names["pgpe"], length=1)
    state = names["pgpe"].init(names["centre"], jax.random.key(0), init_stdev=0.008)

    def once():
        nonlocal state
        state, _ = evolve(state)
        state.centre.block_until_ready()

    return once


def inference(problem: dict) -> Callable:
    """A rollout without a gradient."""
    nca, states = to_nca(problem), jnp.asarray(problem["states"])
    num_steps = int(problem["num_steps"])
    return lambda: rollout(nca, states, jax.random.key(0), num_steps).block_until_ready()
