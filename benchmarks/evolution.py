"""Notebook 02's experiments: what makes evolution work, other solvers, and gradients beside it.

    python benchmarks/evolution.py                     all, two hours and more on two CPU cores
    python benchmarks/evolution.py recipes 0           one experiment with one key

The problem, target, cell, fitness and evaluation, is notebook 02's at its preset `laptop`: its own
cells are run. A run's rows go into nca_helpers/data/evolution.csv when it has ended; what is there
already is not run again, so that a stopped script goes on where it was; to measure anew, delete it.

Experiments:
    recipes: the EvoJAX notebook's recipe and this notebook's, with single changes added to the one
        and taken from the other, on the same budget of candidates.
    length: the closest of these at the notebook's full length.
    problems: this notebook's recipe on other sizes, cells and loss steps.
    solvers: other solvers of EvoJAX on that budget.
    scorecard: evolution as the notebook runs it, and gradients of the same fitness.
    minute: a minute of each of the solvers that are told pictures, of PGPE, EvoJAX's class, the
        EvoJAX notebook's recipe tuned, and of evosax (in `.venv-bench`, which `make bench` makes).
    survival: after equal loss, which of these two persists and which one regenerates
        (evolution_survival.csv); needs what the scorecard leaves in out/evolution.
"""

import csv
import io
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"NCA_PRESET": "laptop", "NCA_EMOJI": "🦎"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from clipup import clipup
from flax import nnx
from jax.flatten_util import ravel_pytree
from notebook_cells import run_cells

import nca_helpers
from nca_helpers import PGPE, GaussNewton, halve, hole, robustness
from nca_helpers.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "nca_helpers" / "data" / "evolution.csv"
SURVIVAL = TABLE.with_name("evolution_survival.csv")
CENTRES = ROOT / "out" / "evolution"

KEYS = (0, 1, 2)
SECONDS = 60
GENERATIONS = 3_000
CANDIDATES = 500 * 128
EVALUATIONS = 10
GRADIENT_STEPS = 4_000
GRADIENT_BATCH = 4

# A stdev is that of the first layer's kernel and that of all other weights. A learning rate per
# stdev moves each weight in proportion to its own.
THEIRS = {
    "init": "zeros",
    "optimizer": "evojax adam",
    "masks": "own",
    "stdev": (0.008, 0.008),
    "stdev_learning_rate": 0.0008,
    "learning_rate": 0.004,
    "per_stdev": False,
    "decay": False,
    "population_size": 128,
}
OURS = {
    "init": "flax",
    "optimizer": "adam",
    "masks": "pair",
    "stdev": "notebook",
    "stdev_learning_rate": 0.1,
    "learning_rate": 0.4,
    "per_stdev": True,
    "decay": True,
    "population_size": 128,
}
RECIPES = {
    "EvoJAX notebook": THEIRS,
    "EvoJAX notebook + masks shared in pairs": THEIRS | {"masks": "pair"},
    "EvoJAX notebook + flax centre": THEIRS | {"init": "flax"},
    "EvoJAX notebook + right Adam": THEIRS | {"optimizer": "adam"},
    "EvoJAX notebook + our stdev": THEIRS | {"stdev": "notebook", "stdev_learning_rate": 0.1},
    "ours": OURS,
    "ours, own masks": OURS | {"masks": "own"},
    "ours, centre of zeros": OURS | {"init": "zeros"},
    "ours, EvoJAX's Adam": OURS | {"optimizer": "evojax adam"},
    "ours, ClipUp": OURS
    | {"optimizer": "clipup", "learning_rate": 0.1, "per_stdev": False, "decay": False},
    "ours, learning rate constant": OURS | {"decay": False},
    "ours, learning rate 0.22 stdev": OURS | {"learning_rate": 0.22},
    "ours, learning rate 0.01 everywhere": OURS | {"learning_rate": 0.01, "per_stdev": False},
    "ours, stdev 0.015 everywhere": OURS | {"stdev": (0.015, 0.015)},
    "ours, stdev a third": OURS | {"stdev": (0.015, 0.005)},
    "ours, stdev threefold": OURS | {"stdev": (0.13, 0.045)},
    "ours, population 64": OURS | {"population_size": 64},
    "ours, population 256": OURS | {"population_size": 256},
}


AT_LENGTH = ("ours, population 64", "ours, learning rate constant")
PROBLEMS = {
    "8 hidden units": {"hidden": 8},
    "16 hidden units": {},
    "32 hidden units": {"hidden": 32},
    "loss after 30, 45, 60 steps": {"loss_steps": (30, 45, 60)},
    "24 pixels, loss after 30, 40, 50 steps": {"size": 24, "loss_steps": (30, 40, 50)},
}


def evojax_adam(
    learning_rate: float | optax.Schedule, count_divisor: int = 1_000
) -> optax.GradientTransformation:
    """EvoJAX's Adam: the generation that corrects its bias is divided by 1,000."""

    def init(params):
        return jnp.zeros((), jnp.int32), jnp.zeros_like(params), jnp.zeros_like(params)

    def update(gradient, state, params=None):
        count, mean, square = state
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        power = 1.0 + count // count_divisor
        unbiased = mean / (1 - 0.9**power), square / (1 - 0.999**power)
        step = -rate(count) * unbiased[0] / (jnp.sqrt(unbiased[1]) + 1e-8)
        return step, (count + 1, mean, square)

    rate = learning_rate if callable(learning_rate) else lambda count: learning_rate
    return optax.GradientTransformation(init, update)


OPTIMIZERS = {"adam": optax.adam, "evojax adam": evojax_adam, "clipup": clipup}


class Problem:
    """Notebook 02's problem, and how a vector is scored on it."""

    def __init__(self, **changes: Any):
        """Takes the notebook's configuration, with changes."""
        self.names = run_cells(
            "02_growing_with_pgpe.ipynb",
            last="held-out",
            after={"config": lambda names: names["config"].update(changes)},
            without=("ask-tell", "by-hand"),
        )
        self.cells = math.prod(self.names["first"].shape[:2])
        self.steps = self.names["loss_steps"][-1]
        self.empty_loss = self.names["empty"]

    def __getattr__(self, name: str) -> Any:
        return self.names[name]

    def first_centre(self, key: int) -> jax.Array:
        """Returns the initial weights of this key."""
        nca = nca_helpers.NCA(hidden=self.config["hidden"], rngs=nnx.Rngs(key))
        return ravel_pytree(nnx.state(nca, nnx.Param))[0]

    def losses(self, centre: jax.Array) -> tuple[float, float]:
        """The held-out loss, as a mean over the loss steps, and at the last of them alone."""
        losses = np.asarray(self.grow_held_out(centre, self.held_out_keys)[1])
        return float(losses.mean()), float(losses[:, -1].mean())

    def rows(self, run: Iterator[tuple[int, jax.Array]], updates: int) -> tuple[list[dict], list]:
        """Goes through a run and notes how its centres do. The clock stops while it looks.

        Args:
            run: Yields how many candidates (or gradient samples) were spent, and the centre.
            updates: What one of them costs, in cell updates.
        """
        rows, centres, seconds = [], [], 0.0
        next(run)  # Compiles, twice where arrays come back from several devices.
        while True:
            start = time.perf_counter()
            spent, centre = next(run, (None, None))
            if centre is None:
                return rows, centres
            jax.block_until_ready(centre)
            seconds += time.perf_counter() - start
            loss, horizon_loss = self.losses(centre)
            rows.append(
                {
                    "candidates": spent,
                    "cell_updates": spent * updates,
                    "seconds": round(seconds, 2),
                    "loss": loss,
                    "horizon_loss": horizon_loss,
                    "empty_loss": self.empty_loss,
                }
            )
            centres.append(centre)


def recipe_parts(
    problem: Problem, settings: dict, key: int, generations: int, stride: int
) -> tuple[Any, Callable]:
    """A recipe's first state, and what runs `stride` generations of it."""
    size, rate = settings["population_size"], settings["learning_rate"]
    if settings["decay"]:
        rate = optax.cosine_decay_schedule(rate, generations, alpha=0.05)
    optimizer = OPTIMIZERS[settings["optimizer"]](rate)
    stdev = settings["stdev"]
    stdev = problem.stdev if stdev == "notebook" else problem.stdev_by_layer(*stdev)
    if settings["per_stdev"]:
        optimizer = optax.chain(optimizer, optax.stateless(lambda updates, _: stdev * updates))
    pgpe = PGPE(
        population_size=size,
        optimizer=optimizer,
        stdev_learning_rate=settings["stdev_learning_rate"],
    )
    centre = problem.first_centre(key)
    centre = 0 * centre if settings["init"] == "zeros" else centre
    state = pgpe.init(centre, jax.random.key(key), init_stdev=stdev)

    def own_keys(state):
        seed = jax.random.wrap_key_data(state.key)
        return jax.random.split(jax.random.fold_in(seed, state.generation), size)

    keys = own_keys if settings["masks"] == "own" else pgpe.keys
    return state, problem.make_evolve(pgpe, keys, stride)


def recipe(
    problem: Problem, settings: dict, key: int, candidates: int = CANDIDATES
) -> Iterator[tuple[int, jax.Array]]:
    """A run of a recipe on a budget of candidates."""
    generations = candidates // settings["population_size"]
    stride = generations // EVALUATIONS
    state, evolve = recipe_parts(problem, settings, key, generations, stride)
    yield 0, evolve(evolve(state)[0])[0].centre
    for i in range(EVALUATIONS):
        state, _ = evolve(state)
        yield (i + 1) * stride * settings["population_size"], state.centre


def make_solvers(problem: Problem, key: int) -> dict[str, Callable[[], tuple[Any, Callable]]]:
    """Returns what makes each solver, and what gives the solution that it stands for."""
    from evojax import algo

    centre = problem.first_centre(key)
    some = {"param_size": len(centre), "pop_size": 128, "seed": key}
    best = lambda solver: solver.best_params  # noqa: E731

    def simple_ga():
        solver = algo.SimpleGA(**some, sigma=0.02)
        solver.best_params = centre
        return solver, best

    pgpe = partial(algo.PGPE, **some, init_params=centre, init_stdev=0.02)
    makers = {
        "PGPE, Adam": lambda: (pgpe(optimizer="adam", center_learning_rate=0.01), best),
        "PGPE, ClipUp": lambda: (
            pgpe(
                optimizer="clipup",
                center_learning_rate=0.1,
                optimizer_config={"max_speed": 0.2},
            ),
            best,
        ),
        "SimpleGA": simple_ga,
        # Its best_params is the luckiest candidate it has ever seen.
        "CRFMNES": lambda: (
            algo.CRFMNES(**some, init_params=centre, init_stdev=0.02),
            lambda solver: jnp.asarray(solver.crfm.m).ravel(),
        ),
    }
    for name in ("OpenES", "ARS", "CMA_ES", "Sep_CMA_ES", "CMA"):
        makers[name] = lambda name=name: (getattr(algo, name)(**some), best)
    return makers


def solve(problem: Problem, solver: Any, solution: Callable, key: int):
    score = jax.jit(lambda *args: nca_helpers.population_fitness(problem.fitness, *args))
    generations = CANDIDATES // 128
    seed = jax.random.key(key)

    def generation(i):
        # All candidates of a generation have the same coin flips, so that they can be compared.
        keys = jnp.broadcast_to(jax.random.fold_in(seed, i), 128)
        solver.tell(score(jnp.asarray(solver.ask()), keys))

    score(jnp.asarray(solver.ask()), jnp.broadcast_to(seed, 128))
    yield 0, solution
    for i in range(generations):
        generation(i)
        if (i + 1) % (generations // EVALUATIONS) == 0:
            yield (i + 1) * 128, solution(solver)


def evolution(problem: Problem, key: int) -> Iterator[tuple[int, jax.Array]]:
    """The notebook's PGPE, for 3,000 generations."""
    size = problem.config["population_size"]
    pgpe = PGPE(
        population_size=size,
        optimizer=problem.make_optimizer(GENERATIONS),
        stdev_learning_rate=0.1,
    )
    state = pgpe.init(problem.first_centre(key), jax.random.key(key), init_stdev=problem.stdev)
    evolve = problem.make_evolve(pgpe, length=100)
    yield 0, evolve(evolve(state)[0])[0].centre
    for generation in range(100, GENERATIONS + 1, 100):
        state, _ = evolve(state)
        yield generation * size, state.centre


def pictures(problem: Problem, key: int, **settings: Any) -> Callable:
    """The notebook's solver that is told pictures, with changes."""
    trial = settings.pop("trial", True)
    noise = settings.pop("noise", 1e-4)
    centre = problem.first_centre(key)

    def residuals(vector, key):
        return (problem.grow(vector, key)[1] - problem.target).ravel()

    def evaluate(vectors, keys):
        return nca_helpers.population_residuals(residuals, vectors, keys)

    def make(generations):
        solver = GaussNewton(
            **{
                "population_size": len(centre) + 1,
                "forgetting": optax.exponential_decay(0.3, generations, 0.1),
            }
            | settings
        )
        stdev = problem.stdev_by_layer(noise, 0.12 * noise)

        @jax.jit
        def generation(state):
            found = evaluate(solver.ask(state), solver.keys(state))
            return solver.tell(state, found, evaluate if trial else None)

        state = solver.init(centre, jax.random.key(key), init_stdev=stdev)
        return state, generation, lambda state: state.centre, solver.population_size

    return make


def numbers(problem: Problem, key: int, **changes: Any) -> Callable:
    """PGPE by one of the recipes, ten generations at a time."""
    settings = OURS | changes
    size = settings["population_size"]

    def make(turns):
        state, evolve = recipe_parts(problem, settings, key, 10 * turns, 10)
        return state, lambda state: evolve(state)[0], lambda state: state.centre, 10 * size

    return make


def evojax_class(problem: Problem, key: int) -> Callable:
    """EvoJAX's own class, with our settings as far as it takes them: one stdev, the lesser."""
    from evojax import algo

    centre = problem.first_centre(key)
    score = jax.jit(lambda *args: nca_helpers.population_fitness(problem.fitness, *args))

    def make(generations):
        solver = algo.PGPE(
            param_size=len(centre),
            pop_size=128,
            seed=key,
            init_params=centre,
            init_stdev=float(problem.stdev.min()),
            center_learning_rate=0.4 * float(problem.stdev.min()),
            stdev_learning_rate=0.1,
            optimizer="adam",
        )

        def generation(i):
            keys = nca_helpers.pair_keys(jax.random.fold_in(jax.random.key(key), i), 128)
            solver.tell(score(solver.ask(), keys))
            jax.block_until_ready(solver.best_params)
            return i + 1

        return 0, generation, lambda i: solver.best_params, 128

    return make


def evosax_solver(problem: Problem, key: int, name: str, **settings: Any) -> Callable:
    """One of evosax's solvers, from the same centre; all candidates share their coin flips."""
    import evosax.algorithms

    rate = settings.pop("learning_rate", None)
    centre = problem.first_centre(key)
    # With more noise than the least of our stdevs two of them lose every candidate.
    stdev = float(problem.stdev.min() if rate else problem.stdev.mean())
    if rate:
        settings["optimizer"] = optax.adam(rate)
    if name == "Open_ES":
        settings["std_schedule"] = optax.constant_schedule(stdev)
    solver = getattr(evosax.algorithms, name)(population_size=128, solution=centre, **settings)
    params = solver.default_params
    if hasattr(params, "std_init"):
        params = params.replace(std_init=stdev)

    @jax.jit
    def generation(carry):
        state, i = carry
        seed = jax.random.fold_in(jax.random.key(key), i)
        ask, tell, coins = jax.random.split(seed, 3)
        population, state = solver.ask(ask, state, params)
        scores = nca_helpers.population_fitness(
            problem.fitness, population, jnp.broadcast_to(coins, 128)
        )
        state, _ = solver.tell(tell, population, -scores, state, params)  # It minimises.
        return state, i + 1

    def make(generations):
        state = solver.init(jax.random.key(key), centre, params)
        return (state, 0), generation, lambda carry: solver.get_mean(carry[0]), 128

    return make


SCAN = {
    f"EvoJAX notebook, lr × {rate:g}, stdev × {stdev:g}": partial(
        numbers,
        **THEIRS
        | {
            "learning_rate": rate * THEIRS["learning_rate"],
            "stdev": (0.008 * stdev, 0.008 * stdev),
        },
    )
    for rate in (1, 3)
    for stdev in (0.4, 1, 2.5)
    if (rate, stdev) != (1, 1)
}
MINUTE = {
    "pictures": pictures,
    "pictures, no average": partial(pictures, forgetting=1.0),
    "pictures, no trial": partial(pictures, trial=False),
    "pictures, noise × 10": partial(pictures, noise=1e-3),
    "pictures, 128 candidates": partial(pictures, population_size=128, forgetting=0.1),
    "PGPE": numbers,
    "EvoJAX's class, settings of PGPE": evojax_class,
    "EvoJAX notebook": partial(numbers, **THEIRS),
    "evosax Open-ES": partial(evosax_solver, name="Open_ES", learning_rate=0.01),
    "evosax PGPE": partial(evosax_solver, name="PGPE", learning_rate=0.01),
    "evosax SNES": partial(evosax_solver, name="SNES"),
    "evosax Sep-CMA-ES": partial(evosax_solver, name="Sep_CMA_ES"),
}


def minute(make: Callable) -> Iterator[tuple[int, jax.Array]]:
    """A run of as many generations as fit into the time; the schedules end with it."""
    state, advance, _, _ = make(1_000)
    for _ in range(4):  # Some compile more than once.
        state = jax.block_until_ready(advance(state))
    start = time.perf_counter()
    for _ in range(4):
        state = jax.block_until_ready(advance(state))
    turns = max(EVALUATIONS, int(4 * SECONDS / (time.perf_counter() - start)))
    state, advance, centre_of, candidates = make(turns)
    yield 0, centre_of(advance(jax.block_until_ready(advance(state))))  # Compiles.
    for turn in range(1, turns + 1):
        state = jax.block_until_ready(advance(state))
        if turn % (turns // EVALUATIONS) == 0:
            yield turn * candidates, centre_of(state)


def gradients(problem: Problem, key: int) -> Iterator[tuple[int, jax.Array]]:
    """Adam on the gradient of the same fitness, divided by the norm of all weights together."""
    normalise = optax.stateless(lambda g, _: g / (jnp.linalg.norm(g) + 1e-8))
    schedule = optax.cosine_decay_schedule(2e-3, GRADIENT_STEPS, alpha=0.01)
    optimizer = optax.chain(normalise, optax.adam(schedule))
    first, seed = problem.first_centre(key), jax.random.key(key)

    def loss(centre, keys):
        return -nca_helpers.population_fitness(
            problem.fitness, jnp.broadcast_to(centre, (GRADIENT_BATCH, len(centre))), keys
        ).mean()

    def step(carry, i):
        centre, optimizer_state = carry
        keys = jax.random.split(jax.random.fold_in(seed, i), GRADIENT_BATCH)
        updates, optimizer_state = optimizer.update(jax.grad(loss)(centre, keys), optimizer_state)
        return (optax.apply_updates(centre, updates), optimizer_state), None

    some = 50
    steps = jax.jit(lambda carry, i: jax.lax.scan(step, carry, i + jnp.arange(some))[0])
    carry = first, optimizer.init(first)
    yield 0, steps(steps(carry, 0), 0)[0]
    for i in range(0, GRADIENT_STEPS, some):
        carry = steps(carry, i)
        yield (i + some) * GRADIENT_BATCH, carry[0]


def survival(problem: Problem, key: int) -> list[dict]:
    """What becomes of both after equal loss: left alone, and after wounds."""
    evolved = np.load(CENTRES / f"evolution_{key}.npz")
    final = float(evolved["loss"][-1])
    trained = np.load(CENTRES / f"gradients_{key}.npz")
    equal = int(np.argmax(trained["loss"] <= final))
    models = {
        "evolution": evolved["centre"][-1],
        "gradients, equal loss": trained["centre"][equal],
        "gradients, all steps": trained["centre"][-1],
    }
    size, steps, rows = problem.config["size"], problem.steps, []
    wounds = {
        "none": lambda states, key: states,
        "left half": lambda states, key: halve(states, "left"),
        "bottom half": lambda states, key: halve(states, "bottom"),
        "centre hole": lambda states, key: hole(states, size / 6),
    }
    for name, vector in models.items():
        nca = nnx.merge(problem.graph, problem.unravel(jnp.asarray(vector)))
        for recovery_steps in (0, steps, 3 * steps):
            found = robustness(
                nca,
                problem.target,
                wounds,
                jax.random.key(key),
                wound_step=steps,
                recovery_steps=recovery_steps,
            )
            rows += [
                {"model": name, "key": key, "recovery_steps": recovery_steps, **row}
                for row in found
            ]
    return rows


def read(table: Path) -> list[dict]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(table: Path, rows: list[dict]) -> None:
    """Adds a run's rows, all or none."""
    lines = io.StringIO(newline="")
    rows = read(table) + rows
    writer = csv.DictWriter(lines, fieldnames=rows[-1], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_file(table, lines.getvalue().encode())


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (cpuinfo.read_text().splitlines() if cpuinfo.exists() else ())
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} × {names[0] if names else platform.processor()}"


def run(problem: Problem, experiment: str, arm: str, key: int, start: Callable) -> None:
    """Runs one arm with one key unless its rows are there, and notes them."""
    if any(
        (row["experiment"], row["arm"], row["key"]) == (experiment, arm, str(key))
        for row in read(TABLE)
    ):
        return
    # A backward step counts as two forward ones.
    passes = 3 if arm == "gradients" else 1
    labels = {"experiment": experiment, "arm": arm, "key": key}
    hardware = {"machine": machine(), "jax": jax.__version__}
    rows, centres = problem.rows(start(), passes * problem.steps * problem.cells)
    if experiment == "scorecard":
        CENTRES.mkdir(parents=True, exist_ok=True)
        losses = [row["loss"] for row in rows]
        np.savez(CENTRES / f"{arm}_{key}.npz", centre=np.stack(centres), loss=losses)
    append(TABLE, [labels | row | hardware for row in rows])
    print(*labels.values(), f"{rows[-1]['loss']:.4f}", f"{rows[-1]['seconds']} s", flush=True)


def main() -> None:
    problem = Problem()
    chosen = sys.argv[1:2] or [
        "recipes",
        "length",
        "problems",
        "solvers",
        "minute",
        "scorecard",
        "survival",
    ]
    keys = [int(key) for key in sys.argv[2:]] or KEYS
    for key in keys:
        if "recipes" in chosen:
            for arm, settings in RECIPES.items():
                run(problem, "recipes", arm, key, partial(recipe, problem, settings, key))
        for arm in AT_LENGTH if "length" in chosen else ():
            budget = problem.config["generations"] * problem.config["population_size"]
            start = partial(recipe, problem, RECIPES[arm], key, budget)
            run(problem, "length", arm, key, start)
        for arm, changes in PROBLEMS.items() if "problems" in chosen else ():
            other = Problem(**changes)
            run(other, "problems", arm, key, partial(recipe, other, OURS, key))
        if "solvers" in chosen:
            for arm, make in make_solvers(problem, key).items():
                try:
                    solver, solution = make()
                except (SystemExit, Exception) as error:
                    print(f"{arm} cannot run here: {error!r}", flush=True)
                    continue
                run(problem, "solvers", arm, key, partial(solve, problem, solver, solution, key))
        if "scorecard" in chosen:
            run(problem, "scorecard", "evolution", key, partial(evolution, problem, key))
            run(problem, "scorecard", "gradients", key, partial(gradients, problem, key))
        arms = MINUTE | (SCAN if key == KEYS[0] else {})
        for arm, make in arms.items() if "minute" in chosen else ():
            try:
                start = partial(minute, make(problem, key))
            except ImportError as error:
                print(f"{arm} cannot run here: {error!r}", flush=True)
                continue
            run(problem, "minute", arm, key, start)
        if "survival" in chosen and str(key) not in [row["key"] for row in read(SURVIVAL)]:
            append(SURVIVAL, survival(problem, key))


if __name__ == "__main__":
    main()
