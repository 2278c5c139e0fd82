"""The work as CAX does it: its perception, its update and its loop, trained as its notebook trains.

After examples/40_growing_nca.ipynb of CAX 0.4.4 (https://github.com/maxencefaldor/cax), with and
without its `remat`; or of 0.3.3, the last for Python 3.11, which has no `remat`. Here and in the
other contestants, `check` computes what must be equal, and each workload returns a function
that does it once.
"""

import itertools
from collections.abc import Callable
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cax.core import ComplexSystem
from cax.core.perceive import ConvPerceive
from cax.core.update import NCAUpdate
from cax.nn.pool import Pool
from evojax.algo import PGPE
from flax import nnx
from jax.flatten_util import ravel_pytree

HAS_REMAT = not version("cax").startswith("0.3.")
UPDATE = nnx.All(nnx.Param, nnx.PathContains("update"))

# CAX has RGBA last, and for each channel the gradient along y before that along x.
CHANNELS = np.r_[4:16, 0:4]
FEATURES = np.array([16 * block + channel for channel in CHANNELS for block in (0, 2, 1)])
SOBEL = np.outer([-1, 0, 1], [1, 2, 1]) / 8
FILTERS = np.stack([np.diag([0, 1, 0]), SOBEL, SOBEL.T], axis=-1)


def choose(variant: str) -> None:
    """Chooses `remat`: the gradient computes each step again, in place of keeping it."""
    assert variant == "remat" and HAS_REMAT
    GrowingNCA.remat = True


class GrowingNCA(ComplexSystem):
    """The notebook's system."""

    def __init__(self, weights: dict):
        """Takes over weights in the layout of this project's checkpoints."""
        sizes = dict(channel_size=16, perception_size=48, rngs=nnx.Rngs(0))
        self.perceive = ConvPerceive(**sizes, feature_group_count=16)
        # Its dropout doubles the updates that are not dropped; half a step is this project's step.
        self.update = NCAUpdate(
            **sizes, hidden_layer_sizes=(128,), cell_dropout_rate=0.5, step_size=0.5
        )
        self.perceive.conv.kernel[...] = jnp.tile(jnp.float32(FILTERS), 16)[:, :, None]
        hidden, last = self.update.layers
        hidden.kernel[...] = weights["hidden/kernel"][FEATURES][None, None]
        hidden.bias[...] = weights["hidden/bias"]
        last.kernel[...] = weights["update/kernel"][:, CHANNELS][None, None]
        last.bias[...] = weights["update/bias"][CHANNELS]

    def _step(self, state, input=None, *, sow=False):
        state = self.update(state, self.perceive(state), input)
        if sow:  # Up to 0.3.3.
            self.sow(nnx.Intermediate, "state", state)
        return state

    def trajectories(self, states, num_steps):
        """Returns all states of all samples, (batch, num_steps, height, width, channels)."""
        axes = nnx.StateAxes({nnx.RngState: 0, nnx.Intermediate: 0, ...: None})
        how = {"return_states": True} if HAS_REMAT else {"sow": True}

        def run(system, state):
            return system(state, num_steps=num_steps, **how)

        run = nnx.split_rngs(splits=len(states))(nnx.vmap(run, in_axes=(axes, 0)))
        if HAS_REMAT:
            return run(self, states)[1]
        run(self, states)
        (trajectories,) = nnx.pop(self, nnx.Intermediate).state.get_value()
        return trajectories


class Given(nnx.Module):
    """In place of the dropout: these cells fire, and their update is doubled as dropout does."""

    def __init__(self, fire):
        """Takes (batch, height, width)."""
        self.fire = nnx.data(fire)

    def __call__(self, update):
        return 2 * update * self.fire[..., None]


def to_cax(states: np.ndarray) -> jax.Array:
    """Returns states of this project in the order of CAX."""
    return jnp.asarray(states[..., CHANNELS])


def check(problem: dict) -> dict[str, np.ndarray]:
    """Returns the states after the given masks, and the gradient of their loss, in our layout."""
    states = to_cax(problem["states"])
    graph, weights, rest = nnx.split(GrowingNCA(problem), UPDATE, ...)

    @jax.jit
    def loss(weights, after):
        for fire in jnp.asarray(problem["masks"]):
            system = nnx.merge(graph, weights, rest)
            system.update.dropout = Given(fire)
            after = system._step(after)
        return jnp.mean(jnp.square(after[..., -4:] - problem["target"])), after

    gradient, after = jax.grad(loss, has_aux=True)(weights, states)
    hidden, last = (gradient["update"]["layers"][i] for i in (0, 1))
    return {
        "states": np.asarray(after)[..., np.argsort(CHANNELS)],
        "hidden/kernel": np.asarray(hidden["kernel"][...])[0, 0][np.argsort(FEATURES)],
        "hidden/bias": np.asarray(hidden["bias"][...]),
        "update/kernel": np.asarray(last["kernel"][...])[0, 0][:, np.argsort(CHANNELS)],
        "update/bias": np.asarray(last["bias"][...])[np.argsort(CHANNELS)],
    }


def train(problem: dict) -> Callable:
    """A train step of the notebook."""
    target, first = jnp.asarray(problem["target"]), to_cax(problem["first"])
    shortest, longest = problem["lengths"]
    batch_size = int(problem["batch_size"])

    def mse(state):
        return jnp.mean(jnp.square(state[..., -4:] - target))

    def loss_function(system, states, key):
        trajectories = system.trajectories(states, int(longest))
        ends = jax.random.randint(key, (batch_size,), shortest - 1, longest)
        states = trajectories[jnp.arange(batch_size), ends]
        return mse(states), states

    @nnx.jit
    def train_step(system, optimizer, pool, key):
        sample_key, loss_key = jax.random.split(key)
        places, batch = pool.sample(sample_key, batch_size=batch_size)
        order = jnp.argsort(jax.vmap(mse)(batch["state"]), descending=True)
        before = batch["state"][order].at[0].set(first)
        gradient_of = nnx.value_and_grad(
            loss_function, argnums=nnx.DiffState(0, UPDATE), has_aux=True
        )
        (loss, after), gradient = gradient_of(system, before, loss_key)
        optimizer.update(system, gradient)
        return loss, pool.update(places[order], {"state": after})

    system = GrowingNCA(problem)
    schedule = optax.linear_schedule(2e-3, 2e-4, 2_000)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    optimizer = nnx.Optimizer(system, adam, wrt=UPDATE)
    pool = Pool.create({"state": to_cax(problem["states"])})
    keys = iter(jax.random.split(jax.random.key(0), 1_000))

    def once():
        loss, _ = train_step(system, optimizer, pool, next(keys))
        return float(loss)

    return once


def generation(problem: dict) -> Callable:
    """A generation of EvoJAX's PGPE with this system for its candidates."""
    graph, centre, rest = nnx.split(GrowingNCA(problem), UPDATE, ...)
    vector, unravel = ravel_pytree(centre)
    target, first = jnp.asarray(problem["target"]), to_cax(problem["first"])
    size, loss_steps = int(problem["population_size"]), tuple(map(int, problem["loss_steps"]))
    solver = PGPE(size, len(vector), init_params=vector, optimizer="adam", init_stdev=0.008, seed=1)

    @jax.jit
    def fitness(vector, key):
        # Copied, for what is made outside cannot be changed in here.
        system = nnx.merge(graph, unravel(vector), jax.tree.map(jnp.copy, rest))
        system.update.dropout.rngs = nnx.Rngs(key)
        state, loss = first, 0.0
        for start, end in itertools.pairwise((0, *loss_steps)):
            state = system(state, num_steps=end - start)
            loss += jnp.mean(jnp.square(state[..., -4:] - target))
        return -loss

    score = jax.jit(jax.vmap(fitness))

    def once():
        keys = jax.random.split(jax.random.key(0), size)
        solver.tell(score(solver.ask(), keys))
        solver.best_params.block_until_ready()

    return once


def inference(problem: dict) -> Callable:
    """A rollout without a gradient."""
    system, states = GrowingNCA(problem), to_cax(problem["states"])

    def once():
        system(states, num_steps=int(problem["num_steps"])).block_until_ready()

    return once
