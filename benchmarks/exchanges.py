"""How far rounding parts what evolves under the two exchanges of notebook 03, and its loss.

    python benchmarks/exchanges.py

An 8-pixel lizard, population 128, 2,000 generations on two devices, which add the gradients up in
another order than one does. Writes benchmarks/exchanges.json: how far apart the two centres are, in
their largest difference, from which generation on by more than 1e-6, and each centre's loss on
held-out coin flips.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nca_helpers.evolve import make_fitness, make_generation, make_solver
from nca_helpers.files import replace_file

FOLDER = Path(__file__).resolve().parent
PROBLEM = {"size": 8, "padding": 1, "hidden": 8, "loss_steps": [4, 6, 8], "emoji": "🦎"}
POPULATION, GENERATIONS, KEYS, HELD_OUT = 128, 2_000, 3, 64
EXCHANGES, SHOWN = ("fitness", "gradients"), (20, GENERATIONS)


def table(results: dict) -> str:
    """Returns what notebook 03 shows of the results, as Markdown; losses in shares of the empty."""
    lines = [
        "| key | apart after 20 generations | beyond 1e-6 from | apart after 2,000 "
        "| loss, fitness exchanged | loss, gradients exchanged |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        early, late = (row["apart"][str(number)] for number in SHOWN)
        losses = (f"{loss / results['empty']:.3f}" for loss in row["loss"].values())
        cells = (row["key"], f"{early:.0e}", row["parted"], f"{late:.2f}", *losses)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # As `use_every_core` says.
    fitness, centre = make_fitness(**PROBLEM)
    solver = make_solver(POPULATION)

    def evolution(exchange):
        generation = make_generation(exchange, fitness, solver)

        def following(state, _):
            state, _ = generation(state)
            return state, state.centre

        return jax.jit(lambda state: jax.lax.scan(following, state, length=GENERATIONS)[1])

    @jax.jit
    def loss(centre):
        keys = jax.random.split(jax.random.key(1), HELD_OUT)
        return -jnp.mean(jax.lax.map(lambda key: fitness(centre, key), keys))

    evolutions = {exchange: evolution(exchange) for exchange in EXCHANGES}
    rows = []
    for key in range(KEYS):
        state = jax.device_get(solver.init(centre, jax.random.key(key), init_stdev=0.02))
        centres = {way: np.asarray(evolve(state)) for way, evolve in evolutions.items()}
        apart = np.abs(centres["fitness"] - centres["gradients"]).max(axis=1)
        losses = {way: float(loss(found[-1])) for way, found in centres.items()}
        parted = int(np.argmax(apart > 1e-6)) + 1
        apart = {str(number): float(apart[number - 1]) for number in SHOWN}
        rows.append({"key": key, "parted": parted, "apart": apart, "loss": losses})
        print(rows[-1], flush=True)
    results = {"empty": float(-fitness(0 * centre, jax.random.key(0))), "rows": rows}
    replace_file(FOLDER / "exchanges.json", f"{json.dumps(results, indent=1)}\n".encode())


if __name__ == "__main__":
    main()
