"""A generation of evosax's solvers, around this project's rollout: what differs is ask and tell.

https://github.com/RobertTLange/evosax 0.3.2.
"""

from collections.abc import Callable

import evosax.algorithms
import here
import jax
import optax

check = here.check
solver_name = "Open_ES"


def choose(variant: str) -> None:
    """Chooses a solver by its name in `evosax.algorithms`: `Open_ES` or `PGPE`."""
    global solver_name
    assert variant in ("Open_ES", "PGPE")
    solver_name = variant


def generation(problem: dict) -> Callable:
    """A generation, with the stdev of the EvoJAX notebook; each candidate has its own coins."""
    names, size = here.evolution_names(problem), int(problem["population_size"])
    settings = {"optimizer": optax.adam(1e-3)}
    if solver_name == "Open_ES":
        settings["std_schedule"] = optax.constant_schedule(0.008)
    solver = getattr(evosax.algorithms, solver_name)(size, names["centre"], **settings)
    params = solver.default_params
    if solver_name == "PGPE":
        params = params.replace(std_init=0.008)
    state = solver.init(jax.random.key(0), names["centre"], params)

    @jax.jit
    def evolve(state, key):
        ask_key, score_key, tell_key = jax.random.split(key, 3)
        population, state = solver.ask(ask_key, state, params)
        keys = jax.random.split(score_key, size)
        losses = -here.score_in_parts(names["fitness"], population, keys)
        return solver.tell(tell_key, population, losses, state, params)[0]

    keys = iter(jax.random.split(jax.random.key(1), 10_000))

    def once():
        nonlocal state
        state = evolve(state, next(keys))
        state.mean.block_until_ready()

    return once
