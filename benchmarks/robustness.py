"""Measures what the bundled lizards survive, and writes the table that notebook 00 plots.

    python benchmarks/robustness.py             all of them
    python benchmarks/robustness.py evolved     this one; the others' rows stay

Every wound at three times on each regime, 20 rollouts each, looked at 500 steps later; and the
undamaged automaton up to step 10,000. Writes nca_helpers/data/robustness.csv; rows that are older
than its column `survived_nearby` are empty there.
"""

import csv
import io
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from nca_helpers import (
    bundled,
    circle,
    halve,
    hole,
    load_emoji,
    pretrained,
    pretrained_meta,
    robustness,
    use_every_core,
)
from nca_helpers.files import replace_file

use_every_core()

EMOJI = "🦎"
TABLE = Path(__file__).parent.parent / "nca_helpers" / "data" / "robustness.csv"


def noise(states, key):
    """Adds normal noise of 0.3 to every channel of the cells that are not empty."""
    occupied = (states != 0).any(-1, keepdims=True)
    return states + 0.3 * occupied * jax.random.normal(key, states.shape)


def transplant(states, key):
    """Puts the upper left quarter in the place of the lower right one."""
    height, width = states.shape[1] // 2, states.shape[2] // 2
    return states.at[:, -height:, -width:].set(states[:, :height, :width])


def wounds(size: int, centre: int) -> dict:
    """Returns the wounds by name; circles are centred between head and middle."""
    off_centre = (centre - size / 6, centre - size / 6)
    return {
        "none": lambda states, key: states,
        **{
            f"{side} half": lambda states, key, side=side: halve(states, side)
            for side in ("left", "right", "top", "bottom")
        },
        **{
            f"circle, radius {round(100 * share)} %": lambda states, key, share=share: circle(
                states, off_centre, share * size
            )
            for share in (0.1, 0.2, 0.3)
        },
        "centre hole": lambda states, key: hole(states, size / 6),
        "noise": noise,
        "transplant": transplant,
    }


def main() -> None:
    regimes = [regime for emoji, regime in bundled() if emoji == EMOJI]
    chosen, rows = sys.argv[1:] or regimes, []
    if TABLE.exists():
        with TABLE.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["regime"] not in chosen]
    for regime in chosen:
        nca, meta = pretrained(EMOJI, regime), pretrained_meta(EMOJI, regime)
        target = jnp.asarray(load_emoji(EMOJI, meta["size"], meta["padding"], offline=True))
        measure = partial(robustness, nca, target)
        key, horizon = jax.random.key(0), meta["num_steps"]
        for wound_step in (horizon, 2 * horizon, 8 * horizon):
            some = wounds(meta["size"], target.shape[0] // 2)
            found = measure(some, key, wound_step=wound_step)
            rows += [{"regime": regime, "recovery_steps": 500, **row} for row in found]
        for wound_step in (1_000, 3_000, 10_000):
            unharmed = {"none": lambda states, key: states}
            found = measure(unharmed, key, wound_step=wound_step, recovery_steps=0)
            rows += [{"regime": regime, "recovery_steps": 0, **row} for row in found]
        for row in rows:
            if row["regime"] == regime:
                print(*row.values(), sep="\t")
    rows.sort(key=lambda row: regimes.index(row["regime"]))
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, fieldnames=rows[0])
    writer.writeheader()
    writer.writerows(rows)
    replace_file(TABLE, lines.getvalue().encode())


if __name__ == "__main__":
    main()
