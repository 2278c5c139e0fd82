"""Evolves a lizard by its pictures, notebook 02's solver, at three sizes; keeps the curves.

    python experiments/evolve_pictures.py 16 --key 0
    python experiments/evolve_pictures.py 40 --key 0        an hour or more; see below

A larger lizard begins with what a smaller one has evolved, in steps that are not too large. From
a random rule the cells at 40 pixels do not get farther than a green cloud, whose border moves too
slowly to reach the loss steps (0.68 of an empty grid's loss). From the rule of 16 pixels the loss
stood at 0.33 after 20 generations and fell slowly; so 24 and 32 pixels come between.

evolve_pictures.csv beside this file has what was seen on two cores of an Intel Xeon: 16 pixels with
keys 1 and 2, alone on the machine, and a run to 40 pixels that was stopped on its way. Of that one
only the CPU seconds count: it was paused, and other work ran beside it. It reached 0.096 at 24
pixels, and at 32 it stood still at 0.169, where the next attempt should begin.

Writes into out/evolve_pictures whenever it has looked: rows of a table (those of the same problem
and key are replaced), the automaton and eight grown bodies.
`seconds` are of the wall clock, `cpu_seconds` of all cores together; both count evolution alone,
not compilation and not the looks.
"""

import argparse
import csv
import io
import itertools
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from PIL import Image

import nca_helpers
from nca_helpers import GaussNewton, population_residuals, rollout
from nca_helpers.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out" / "evolve_pictures"
TABLE = OUT / "curves.csv"


class Stage(NamedTuple):
    """A problem, and how long it is evolved."""

    size: int
    padding: int
    loss_steps: tuple[int, ...]
    generations: int


SMALL = Stage(16, 2, (20, 30, 40), 60)
PROBLEMS = {
    "16": [SMALL._replace(generations=200)],
    "24": [SMALL, Stage(24, 4, (30, 40, 50), 300)],
    "40": [
        SMALL,
        Stage(24, 4, (30, 40, 50), 80),
        Stage(32, 4, (30, 50, 70), 60),
        Stage(40, 4, (30, 60, 90), 300),
    ],
}


def main() -> None:
    """Evolves what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--key", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=16)
    options = parser.parse_args()
    nca_helpers.use_every_core()
    OUT.mkdir(parents=True, exist_ok=True)
    nca = nca_helpers.NCA(hidden=options.hidden, rngs=nnx.Rngs(options.key))
    spent = {"generation": 0, "candidates": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    name, rows = f"{options.problem}px_hidden{options.hidden}_key{options.key}", []
    about = {"problem": options.problem, "hidden": options.hidden, "key": options.key}
    for stage in PROBLEMS[options.problem]:
        for evolved, row, grown in evolve(nca, stage, options.key, spent):
            rows.append(about | row)
            print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
            write(about, rows)
            nca_helpers.save_nca(
                OUT / f"{name}.npz", evolved, emoji="🦎", num_steps=stage.loss_steps[-1]
            )
            picture = nca_helpers.tile(nca_helpers.to_rgb(grown), columns=4)
            picture = (255 * np.asarray(picture)).round().astype(np.uint8)
            Image.fromarray(picture.repeat(6, 0).repeat(6, 1)).save(OUT / f"{name}.png")
        nca = evolved


def evolve(nca, stage, key, spent):
    """Evolves one stage; yields every ten generations the automaton, a row and eight bodies."""
    target = nca_helpers.load_emoji("🦎", size=stage.size, padding=stage.padding)
    first = nca_helpers.seed_state(*target.shape[:2])
    graph, weights = nnx.split(nca)
    centre, unravel = ravel_pytree(weights)

    def grow(vector, key):
        candidate, state, missing = nnx.merge(graph, unravel(vector)), first, []
        for i, (start, end) in enumerate(itertools.pairwise((0, *stage.loss_steps))):
            state = rollout(candidate, state, jax.random.fold_in(key, i), end - start)
            missing.append(state[..., :4] - target)
        return state, jnp.stack(missing)

    def evaluate(vectors, keys):
        return population_residuals(lambda v, k: grow(v, k)[1].reshape(-1), vectors, keys)

    solver = GaussNewton(
        population_size=len(centre) + 1,
        forgetting=optax.exponential_decay(0.3, stage.generations, 0.1),
        factors=(0.2, 1.0, 5.0, 30.0, 200.0),
    )
    stdev = jax.tree.map(lambda weight: jnp.full_like(weight, 1.2e-5), weights)
    stdev["hidden"]["kernel"][...] = jnp.full_like(weights["hidden"]["kernel"][...], 1e-4)
    state = solver.init(centre, jax.random.key(key), init_stdev=ravel_pytree(stdev)[0])

    @jax.jit
    def generation(state):
        residuals = evaluate(solver.ask(state), solver.keys(state))
        return solver.tell(state, residuals, evaluate)

    held_out = jax.random.split(jax.random.key(1_000_000), 20)
    grow_held_out = jax.jit(jax.vmap(grow, (None, 0)))
    empty = jnp.mean(jnp.square(target))
    generation.lower(state).compile()
    for done in range(1, stage.generations + 1):
        start, busy = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(generation(state))
        spent["seconds"] += time.perf_counter() - start
        spent["cpu_seconds"] += time.process_time() - busy
        spent["generation"] += 1
        spent["candidates"] += solver.population_size
        if done % 10 == 0:
            grown, missing = grow_held_out(state.centre, held_out)
            shares = jnp.mean(jnp.square(missing), axis=(0, 2, 3, 4)) / empty
            row = {"size": stage.size} | {k: round(v, 1) for k, v in spent.items()}
            row |= {"share": f"{shares.mean():.4f}", "horizon_share": f"{shares[-1]:.4f}"}
            yield nnx.merge(graph, unravel(state.centre)), row, grown[:8]


def write(about, rows) -> None:
    """Puts the rows of a run into the table in place of the last run's."""
    about, kept = {key: str(value) for key, value in about.items()}, []
    if TABLE.exists():
        with TABLE.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if not about.items() <= row.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept + rows)
    replace_file(TABLE, text.getvalue().encode())


if __name__ == "__main__":
    main()
