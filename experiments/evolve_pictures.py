"""Grows notebook 02's emoji by evolution that looks at pictures; no gradient of a rollout.

    python experiments/evolve_pictures.py --key 0 --generations 350

A generation is the centre and one candidate for each weight, all grown under the same coin flips.
Writes a table, the centre and a picture of what it grows; prints the held-out loss as a share of an
empty grid's, summed over the loss steps.
"""

import argparse
import csv
import functools
import itertools
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from picture_solver import PictureSolver
from PIL import Image

import nca_helpers

CHANNELS = 16
HIDDEN = 16


def make_grow(height: int, width: int, moments: tuple[int, ...], fire_rate: float = 0.5):
    """Returns `draw(key) -> fires` and `grow(vector, fires) -> (len(moments), 4, height, width)`.

    The rule of `nca_helpers.NCA`, written for a small hidden layer: channels first, and the rows of
    the grid one behind the other with an empty cell between, so that a neighbour is a shift and a
    layer one product. Who lives is two products with a band matrix: not the fewest operations, but
    the compiler would work a maximum out again for every channel.
    """
    row = width + 1
    cells = height * row
    inside = np.tile(np.arange(row) < width, height)
    band = [np.abs(np.subtract.outer(range(n), range(n))) <= 1 for n in (height, row)]
    down, along = (matrix.astype(np.float32) for matrix in band)

    def neighbours(grid):
        around = jnp.pad(grid, ((0, 0), (row + 1, row + 1)))
        return lambda dy, dx: jax.lax.slice_in_dim(
            around, (1 + dy) * row + 1 + dx, (1 + dy) * row + 1 + dx + cells, axis=1
        )

    def living(state):
        mature = (state[3] > nca_helpers.model.ALIVE_THRESHOLD).astype(jnp.float32)
        return (down @ (mature.reshape(height, row) @ along)).reshape(cells) > 0

    def step(weights, state, fire):
        hidden_kernel, hidden_bias, update_kernel, update_bias = weights
        at = neighbours(state)
        falling, rising = at(1, 1) - at(-1, -1), at(-1, 1) - at(1, -1)
        along_x = falling + rising + 2 * (at(0, 1) - at(0, -1))
        along_y = falling - rising + 2 * (at(1, 0) - at(-1, 0))
        seen = jnp.concatenate([state, along_x, along_y])
        update = update_kernel @ jax.nn.relu(hidden_kernel @ seen + hidden_bias) + update_bias
        after = state + jnp.where(fire, update, 0.0)
        return jnp.where(living(state) & living(after) & inside, after, 0.0)

    def draw(key):
        fires = jax.random.bernoulli(key, fire_rate, (moments[-1], height, row))
        return fires.reshape(-1, cells) & inside

    def grow(vector, fires):
        sizes = np.cumsum([HIDDEN, 3 * CHANNELS * HIDDEN, CHANNELS])
        hidden_bias, hidden_kernel, update_bias, update_kernel = jnp.split(vector, sizes)
        eighth = np.repeat([1, 1 / 8, 1 / 8], CHANNELS).astype(np.float32)  # Sobel's.
        hidden_kernel = (hidden_kernel.reshape(-1, HIDDEN) * eighth[:, None]).T
        update_kernel = update_kernel.reshape(HIDDEN, CHANNELS).T
        weights = hidden_kernel, hidden_bias[:, None], update_kernel, update_bias[:, None]
        seed = jnp.pad(nca_helpers.seed_state(height, width, CHANNELS), ((0, 0), (0, 1), (0, 0)))
        state = seed.transpose(2, 0, 1).reshape(-1, cells)
        pictures = []
        for start, end in itertools.pairwise((0, *moments)):
            state, _ = jax.lax.scan(
                lambda state, fire: (step(weights, state, fire), None), state, fires[start:end]
            )
            pictures.append(state[:4].reshape(4, height, row)[:, :, :width])
        return jnp.stack(pictures)

    return draw, grow


def spread(grow, vectors, fires):
    """Grows each vector under each of the fires: (vectors, fires, moments, 4, height, width).

    The vectors are spread over the devices, and each takes one rollout at a time.
    """
    mesh = Mesh(np.array(jax.devices()), ("device",))
    count = len(vectors)
    fill = np.minimum(np.arange(count + -count % mesh.size), count - 1)

    def share(vectors, fires):
        each = lambda vector: jax.lax.map(lambda fire: grow(vector, fire), fires)  # noqa: E731
        return jax.lax.all_gather(jax.lax.map(each, vectors), "device", tiled=True)

    specs = {"in_specs": (P("device"), P()), "out_specs": P()}
    mapped = jax.shard_map(share, mesh=mesh, check_vma=False, **specs)
    return mapped(vectors[fill], fires)[:count]


def stdev_of(size: float, ratio: float) -> jax.Array:
    """Noise of each weight: `size` in the first layer's kernel, `ratio` of it elsewhere."""
    kernel = 3 * CHANNELS * HIDDEN
    return (
        jnp.full(HIDDEN + kernel + CHANNELS + HIDDEN * CHANNELS, ratio * size)
        .at[HIDDEN : HIDDEN + kernel]
        .set(size)
    )


def falling(start: float, end: float, generations: int):
    """From `start` to `end` in equal factors, then constant."""
    return lambda t: start * (end / start) ** jnp.minimum(1.0, t / generations)


def main() -> None:
    """Evolves, with the settings of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", type=int, default=0)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--moments", type=int, nargs="+", default=[20, 30, 40])
    parser.add_argument("--generations", type=int, default=350)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--noise", type=float, default=1e-4, help="of the hidden kernel's weights")
    parser.add_argument("--ratio", type=float, default=0.12, help="of the other weights' to that")
    parser.add_argument("--forget", type=float, nargs=2, default=[0.3, 0.03], help="first, last")
    parser.add_argument("--coins", type=int, default=16, help="on which the steps are tried")
    parser.add_argument("--devices", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("out/evolve_pictures"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    options.out.mkdir(parents=True, exist_ok=True)

    target = nca_helpers.load_emoji("🦎", size=options.size, padding=2)
    goal = target.transpose(2, 0, 1)
    draw, grow = make_grow(*target.shape[:2], tuple(options.moments))
    empty = float(jnp.mean(jnp.square(goal)))
    nca = nca_helpers.NCA(hidden=HIDDEN, rngs=nnx.Rngs(options.key))
    centre, _ = ravel_pytree(nnx.state(nca, nnx.Param))
    forget = falling(*options.forget, options.generations)
    solver = PictureSolver(
        population_size=len(centre) + 1,
        memory=lambda t: 1 - forget(t),
    )
    stdev = stdev_of(options.noise, options.ratio)
    state = solver.init(centre, jax.random.key(options.key), init_stdev=stdev)

    def loss(centres, key):
        fires = jax.vmap(draw)(jax.random.split(key, options.coins))
        return jnp.mean(jnp.square(spread(grow, centres, fires) - goal), axis=(1, 2, 3, 4, 5))

    @functools.partial(jax.jit, donate_argnums=0)
    def generation(state):
        fires = draw(solver.keys(state)[0])[None]
        residuals = spread(grow, solver.ask(state), fires) - goal
        return solver.tell(state, residuals.reshape(len(residuals), -1), loss)

    held_out = jax.vmap(draw)(jax.random.split(jax.random.key(1_000_000), 64))

    @jax.jit
    def look(centre):
        pictures = spread(grow, centre[None], held_out)[0]
        return pictures, jnp.mean(jnp.square(pictures - goal), axis=(0, 2, 3, 4)) / empty

    rows, seconds = [], 0.0
    name = f"{options.size}px_key{options.key}"
    generation.lower(state).compile()
    while int(state.generation) < options.generations and seconds < options.seconds:
        start = time.perf_counter()
        state = jax.block_until_ready(generation(state))
        seconds += time.perf_counter() - start
        done = int(state.generation)
        if done % 10 == 0 or done == options.generations:
            pictures, shares = look(state.centre)
            rows.append(
                dict(
                    arm="pictures",
                    key=options.key,
                    generation=done,
                    candidates=done * solver.population_size,
                    seconds=round(seconds, 2),
                    loss=float(shares.mean()) * empty,
                    horizon_loss=float(shares[-1]) * empty,
                    empty_loss=empty,
                )
            )
            print(
                f"{done} generations, {seconds:.0f} s: {shares.mean():.4f} of an empty grid's, "
                f"{shares[-1]:.4f} at the horizon",
                flush=True,
            )
            with (options.out / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            np.save(options.out / f"{name}.npy", state.centre)
    pictures, _ = look(state.centre)
    grown = pictures[:8].transpose(1, 0, 3, 4, 2).reshape(-1, *target.shape)
    images = nca_helpers.to_rgb(
        jnp.concatenate([grown, jnp.broadcast_to(target, (8, *target.shape))])
    )
    tiled = np.asarray(images).reshape(-1, 8, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    tiled = tiled.reshape(tiled.shape[0] * tiled.shape[1], -1, 3).repeat(5, 0).repeat(5, 1)

    Image.fromarray((tiled * 255).round().astype(np.uint8)).save(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
