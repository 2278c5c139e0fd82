"""Evolves a lizard by its pictures, notebook 02's solver, at three sizes; keeps the curves.

    python experiments/evolve_pictures.py 16 --key 0
    python experiments/evolve_pictures.py 24 --hidden 24
    python experiments/evolve_pictures.py 40 --hidden 24        the EvoJAX notebook's problem
    python experiments/evolve_pictures.py 40 --recipe evojax --hidden 128       its own solver on it

From a random rule the cells at 40 pixels do not get farther than a green cloud, whose border moves
too slowly to reach the loss steps (0.68 of an empty grid's loss). So a lizard climbs a ladder: each
rung begins with what the one before has evolved. Five things make it work, each seen once, by hand,
on one core of an Intel Xeon:

* Four pixels apart. From 16 pixels straight to 24 the loss begins at 0.48 and is 0.160 after ten
  generations; by way of 20 it begins at 0.24 and is 0.093.
* The loss steps grow with the size, so that the border never has to become faster. From one rule
  of 24 pixels, ten generations at 32: with loss after 30, 50 and 70 steps 0.166, after 40, 56 and
  72 steps 0.137.
* Neither too long on a rung nor too short. With 200 generations at 16 pixels (0.025) in place of 60
  (0.071) the loss at 32 was 0.122 in place of 0.103. With 10 at 20 and at 24 pixels in place of 20
  it was 0.145 in place of 0.116 after ten at 36. One run each: some of this may be luck.
* 24 hidden units. With 16 the same ladder was at 0.103 at 32 pixels, with 24 it is at 0.075; at 40
  pixels, after 50, 70 and 90 steps, at 0.135 and 0.094.
* Speed last, and on shorter lives. The EvoJAX notebook asks for loss after 30, 60 and 90 steps.
  Told so at once, 16 hidden units stood still at 0.208, for after 30 steps the body was not there
  yet (0.37). Twenty generations with loss after 30, 45 and 60 steps brought that to 0.29, and the
  whole to 0.197.

How far it comes. At 24 pixels 0.065, in 7 minutes. At 40, with loss after 50, 70 and 90 steps,
0.094 in 30 minutes; after the EvoJAX notebook's 30, 60 and 90 steps 0.142 in 43, and the last ten
generations brought 0.001 of that. The EvoJAX notebook's recipe with its 8,336 weights is at 0.50
after as many CPU seconds. By hand, of the rule at 40 pixels: after 30 steps its border is still on
the way (0.22; at step 90 it is at 0.11). All 20 held-out bodies are nearest to the target, and not
to one of `nca_helpers.impostors`. But it has not learnt to stay: after 180 steps it is at 0.48.

evolve_pictures.csv beside this file has what was seen: 16 pixels with keys 1 and 2 on both cores,
alone on the machine; the way to 40 pixels on one core each (`taskset -c 0`), with other work on the
other core and at times on the same one: that is in `seconds`, not in `cpu_seconds`. The recipe, and
40 pixels with 16 hidden units (before the ladder had shorter lives), were stopped by hand.
40px_pictures.png (24 hidden units) and 40px_evojax.png are what had grown in the end.

Writes into out/evolve_pictures whenever it has looked: rows of a table (those of the same problem
and key are replaced), the automaton and eight grown bodies.
`seconds` are of the wall clock, `cpu_seconds` of all cores together; both count evolution alone,
not compilation and not the looks.
"""

import argparse
import contextlib
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
from nca_helpers import GaussNewton, population_fitness, population_residuals, rollout
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


LADDER = [
    Stage(16, 2, (20, 30, 40), 60),
    Stage(20, 4, (25, 35, 45), 20),
    Stage(24, 4, (30, 42, 54), 20),
    Stage(28, 4, (35, 49, 63), 20),
    Stage(32, 4, (40, 56, 72), 20),
    Stage(36, 4, (45, 63, 81), 20),
    Stage(40, 4, (50, 70, 90), 20),
    Stage(40, 4, (30, 45, 60), 20),
    Stage(40, 4, (30, 60, 90), 20),  # The EvoJAX notebook's own.
]
PROBLEMS = {"16": [LADDER[0]._replace(generations=200)], "24": LADDER[:3], "40": LADDER}


def main() -> None:
    """Evolves what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--key", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--recipe", choices=("pictures", "evojax"), default="pictures")
    parser.add_argument("--minutes", type=float, default=60, help="of evolution, at most")
    options = parser.parse_args()
    nca_helpers.use_every_core()
    OUT.mkdir(parents=True, exist_ok=True)
    spent = {"generation": 0, "candidates": 0, "seconds": 0.0, "cpu_seconds": 0.0}
    about = {name: getattr(options, name) for name in ("problem", "hidden", "key", "recipe")}
    name, rows = "{problem}px_hidden{hidden}_key{key}_{recipe}".format(**about), []
    for evolved, row, grown in run(options, spent):
        rows.append(about | row)
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep="  ", flush=True)
        write(about, rows)
        nca_helpers.save_nca(OUT / f"{name}.npz", evolved, emoji="🦎")
        picture = nca_helpers.tile(nca_helpers.to_rgb(grown), columns=4)
        picture = (255 * np.asarray(picture)).round().astype(np.uint8)
        Image.fromarray(picture.repeat(6, 0).repeat(6, 1)).save(OUT / f"{name}.png")
        if spent["seconds"] > 60 * options.minutes:
            break


def run(options, spent):
    """Goes through the stages; yields whenever it has looked."""
    nca = nca_helpers.NCA(hidden=options.hidden, rngs=nnx.Rngs(options.key))
    stages = PROBLEMS[options.problem]
    if options.recipe == "evojax":
        yield from evolve_by_numbers(nca, stages[-1], options.key, spent)
    for stage in stages:
        for look in evolve(nca, stage, options.key, spent):
            yield look
        nca = look[0]


class Problem:
    """What is to be grown in a stage."""

    def __init__(self, nca, stage: Stage):
        """Takes the first rule."""
        self.size, self.loss_steps = stage.size, stage.loss_steps
        self.target = nca_helpers.load_emoji("🦎", size=stage.size, padding=stage.padding)
        self.first = nca_helpers.seed_state(*self.target.shape[:2])
        self.graph, self.weights = nnx.split(nca)
        self.centre, self.unravel = ravel_pytree(self.weights)
        self.held_out = jax.random.split(jax.random.key(1_000_000), 20)
        self.grow_held_out = jax.jit(jax.vmap(self.grow, (None, 0)))

    def grow(self, vector, key):
        """Returns the last state, and what the pictures lack at the loss steps."""
        candidate, state, missing = self.nca(vector), self.first, []
        for i, (start, end) in enumerate(itertools.pairwise((0, *self.loss_steps))):
            state = rollout(candidate, state, jax.random.fold_in(key, i), end - start)
            missing.append(state[..., :4] - self.target)
        return state, jnp.stack(missing)

    def nca(self, vector):
        """Returns the rule with these weights."""
        return nnx.merge(self.graph, self.unravel(vector))

    def look(self, centre, spent):
        """Returns the automaton, a row of the table and eight bodies."""
        grown, missing = self.grow_held_out(centre, self.held_out)
        empty = jnp.mean(jnp.square(self.target))
        shares = jnp.mean(jnp.square(missing), axis=(0, 2, 3, 4)) / empty
        row = {"size": self.size, "loss_steps": " ".join(map(str, self.loss_steps))}
        row |= {name: round(value, 1) for name, value in spent.items()}
        row |= {"share": f"{shares.mean():.4f}", "horizon_share": f"{shares[-1]:.4f}"}
        return self.nca(centre), row, grown[:8]


def evolve(nca, stage, key, spent):
    """Evolves one stage; looks every ten generations."""
    problem = Problem(nca, stage)
    centre, weights = problem.centre, problem.weights

    def evaluate(vectors, keys):
        return population_residuals(lambda v, k: problem.grow(v, k)[1].reshape(-1), vectors, keys)

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

    generation.lower(state).compile()
    for done in range(1, stage.generations + 1):
        with counted(spent, solver.population_size):
            state = jax.block_until_ready(generation(state))
        if done % 10 == 0:
            yield problem.look(state.centre, spent)


def evolve_by_numbers(nca, stage, key, spent):
    """The EvoJAX notebook's recipe, without end: EvoJAX's PGPE, its settings, its first centre.

    Each candidate has coin flips of its own, as there. Looks every ten generations.
    """
    from evojax.algo import PGPE

    problem = Problem(nca, stage)
    solver = PGPE(
        pop_size=128,
        param_size=len(problem.centre),
        optimizer="adam",
        center_learning_rate=0.004,
        stdev_learning_rate=0.0008,
        init_stdev=0.008,
        seed=key,
    )

    def fitness(vector, key):
        return -jnp.square(problem.grow(vector, key)[1]).mean((1, 2, 3)).sum()

    score = jax.jit(lambda vectors, keys: population_fitness(fitness, vectors, keys))
    score.lower(solver.ask(), jax.random.split(jax.random.key(key), 128)).compile()
    for done in itertools.count(1):
        with counted(spent, solver.pop_size):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(key), done), 128)
            solver.tell(score(solver.ask(), keys))
            centre = jax.block_until_ready(solver.best_params)
        if done % 10 == 0:
            yield problem.look(jnp.asarray(centre), spent)


@contextlib.contextmanager
def counted(spent, candidates):
    """Adds a generation to what is spent."""
    start, busy = time.perf_counter(), time.process_time()
    yield
    spent["seconds"] += time.perf_counter() - start
    spent["cpu_seconds"] += time.process_time() - busy
    spent["generation"] += 1
    spent["candidates"] += candidates


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
