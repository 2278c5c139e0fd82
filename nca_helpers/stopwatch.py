"""A program: times generations of `evolve` on some of the cores, one for each line that comes in.

    seconds = measure(problem, "out/young", {"one": [((0,), job)], "two": [((0, 1), job)]}, 20)

A job is the arguments of `make_stopwatch` as JSON; a line with one is answered with the seconds of
one generation. JAX makes as many threads as it finds cores, so that each set of cores is given to a
process of its own before that starts JAX. Notebook 03 compares the rollouts below.
"""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from nca_helpers.evolve import child_environment, make_fitness, make_generation, make_solver
from nca_helpers.model import NCA, living_mask
from nca_helpers.rollouts import rollout
from nca_helpers.run import restore_run


def plain(nca: NCA, state: Array, key: Array, num_steps: int) -> Array:
    """What `rollout` computes, one call of the automaton after the other."""

    def step(state, t):
        return nca(state, jax.random.fold_in(key, t)), None

    return jax.lax.scan(step, state, jnp.arange(num_steps))[0]


def convolution(nca: NCA, state: Array, key: Array, num_steps: int) -> Array:
    """The same with the perception as a grouped convolution."""
    sobel = np.outer([1, 2, 1], [-1, 0, 1]) / 8
    filters = [np.outer([0, 1, 0], [0, 1, 0]), sobel, sobel.T]
    filters = jnp.tile(jnp.stack(filters, -1).astype(jnp.float32)[:, :, None], nca.channels)
    names = ("NHWC", "HWIO", "NHWC")

    def step(state, t):
        seen = jax.lax.conv_general_dilated(
            *(state[None], filters, (1, 1), "SAME"),
            dimension_numbers=names,
            feature_group_count=nca.channels,
        )
        seen = seen.reshape(*state.shape, 3).swapaxes(-1, -2).reshape(*state.shape[:2], -1)
        key_t = jax.random.fold_in(jax.random.fold_in(key, t), 0)
        fire = jax.random.bernoulli(key_t, nca.fire_rate, state.shape[:2])
        update = nca.update(nnx.relu(nca.hidden(seen))) * fire[..., None]
        alive = living_mask(state) & living_mask(state + update)
        return jnp.where(alive[..., None], state + update, 0.0), None

    return jax.lax.scan(step, state, jnp.arange(num_steps))[0]


ROLLOUTS = {"rollout": rollout, "plain": plain, "convolution": convolution}


def make_stopwatch(
    problem: dict[str, Any],
    run: str,
    *,
    exchange: str,
    population_size: int,
    devices: int,
    grow: str = "rollout",
) -> Callable[[], float]:
    """Compiles a generation, runs it once, and returns a function that times one.

    Args:
        problem: the arguments of `make_fitness`.
        run: the folder of the run whose state is the generation's.
        exchange: "fitness", "gradients", or "told": the update alone, every device's own work.
        population_size: of the generation.
        devices: how many of this process's devices it is spread over.
        grow: one of ROLLOUTS.
    """
    fitness, centre = make_fitness(**problem, grow=ROLLOUTS[grow])
    pgpe = make_solver(population_size)
    state = pgpe.init(centre, jax.random.key(0), init_stdev=0.02)
    state = jax.device_get(restore_run(run, state)[0])
    if exchange == "told":
        scores = np.linspace(0, 1, population_size, dtype=np.float32)
        generation, given = pgpe.tell, (state, scores)
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("device",))
        generation, given = make_generation(exchange, fitness, pgpe, mesh), (state,)
    generation = jax.jit(generation).lower(*given).compile()

    def stopwatch():
        started = time.perf_counter()
        jax.block_until_ready(generation(*given))
        return time.perf_counter() - started

    stopwatch()  # The first one warms up.
    return stopwatch


def measure(
    problem: dict[str, Any],
    run: str,
    work: Mapping[Hashable, Iterable[tuple[tuple[int, ...], dict[str, Any]]]],
    repeats: int,
) -> dict[Hashable, np.ndarray]:
    """Times everything once in each round, in another order each time.

    Args:
        problem: the arguments of `make_fitness`.
        run: the folder of the run whose state is that of all generations.
        work: under each name (cores, job) of generations that run at once, as a rule of one. On an
            accelerator, which one process keeps for itself, it is so many of its devices instead,
            and one generation after the other.
        repeats: rounds. One more before them compiles.

    Returns:
        Under each name the seconds of each round, (repeats,), the mean of what ran at once.
    """
    sets = dict.fromkeys(cores for at_once in work.values() for cores, _ in at_once)
    watches = {cores: _begin(problem, run, cores) for cores in sets}

    def ask(name):
        for cores, job in work[name]:
            watches[cores].ask(json.dumps(job))

    def answer(name):
        return np.mean([watches[cores].answer() for cores, _ in work[name]])

    names, random = list(work), np.random.default_rng(0)
    for step in (ask, answer):  # All processes compile at the same time.
        for name in names:
            step(name)
    seconds = {name: np.zeros(repeats) for name in names}
    for number in range(repeats):
        for i in random.permutation(len(names)):
            ask(names[i])
            seconds[names[i]][number] = answer(names[i])
    for watch in watches.values():
        watch.end()
    return seconds


def ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """Returns the median ratio of paired repeats, and the ends of its 95 % bootstrap interval."""
    ratios = above / below
    again = np.random.default_rng(0).choice(ratios, (2_000, len(ratios)))
    return np.median(ratios), *np.percentile(np.median(again, axis=1), [2.5, 97.5])


class _Watch(NamedTuple):
    ask: Callable[[str], Any]  # For one generation of a job.
    answer: Callable[[], float]  # Waits for its seconds.
    end: Callable[[], Any]


def _begin(problem, run, cores) -> _Watch:
    if jax.default_backend() != "cpu":
        watch = functools.cache(functools.partial(_stopwatch, problem, run, len(cores)))
        asked: list[str] = []
        return _Watch(asked.append, lambda: watch(asked.pop(0))(), lambda: None)
    process = subprocess.Popen(
        [sys.executable, "-m", "nca_helpers.stopwatch", json.dumps([problem, run, cores])],
        env=child_environment(devices=len(cores)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def answer():
        if not (line := process.stdout.readline()):
            raise RuntimeError(f"the stopwatch on cores {cores} has ended; it says why above")
        return float(line)

    return _Watch(
        lambda line: print(line, file=process.stdin, flush=True), answer, process.communicate
    )


def _stopwatch(problem: dict[str, Any], run: str, devices: int, line: str) -> Callable[[], float]:
    return make_stopwatch(problem, run, devices=devices, **json.loads(line))


def speeds_here(side: int, megabytes: int) -> dict[str, float]:
    """Measures a device's peak, in FLOP/s, and memory bandwidth, in B/s.

    Args:
        side: of the square matrices that are multiplied.
        megabytes: of the array that is moved, more than caches hold.
    """
    matrix, array = jnp.ones((side, side)), jnp.ones(megabytes * 2**18)
    multiply = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    # In place, for new memory has to be fetched from the system first.
    negate = jax.jit(jnp.negative, donate_argnums=0).lower(array).compile()
    best = [np.inf, np.inf]
    for _ in range(7):
        started = time.perf_counter()
        multiply(matrix, matrix).block_until_ready()
        between = time.perf_counter()
        array = negate(array).block_until_ready()
        best = np.minimum(best, (between - started, time.perf_counter() - between))
    return {"peak": 2 * side**3 / best[0], "memory": 2 * array.nbytes / best[1]}


def main() -> None:
    """Answers lines with seconds, until there are none."""
    problem, run, cores = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):  # Linux; elsewhere the system chooses the cores.
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[core % len(allowed)] for core in cores})
    watch = functools.cache(functools.partial(_stopwatch, problem, run, len(cores)))
    for line in sys.stdin:
        print(watch(line)(), flush=True)


if __name__ == "__main__":
    main()
