"""What each means of notebook 01 brings: trains its lizard without one of them at a time.

    python experiments/ablations.py                       all missing rows, two minutes each
    python experiments/ablations.py "no pool" "no coin"   these rows anew
    python experiments/ablations.py --train-steps 20      a trial: its rows go to out/ablations.csv

One key, 2,000 train steps of the preset `laptop`, then log10 of the mean loss over 20 held-out
rollouts after 1, 2, 4 and 8 times the longest trained rollout. The table is bundled with the
package, and the notebook shows it. It runs the notebook's own cells.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from notebook_cells import SHOWN, run_cells

TABLE = ROOT / "nca_helpers" / "data" / "ablations.csv"

# What is changed: values of a configuration, by name, or attributes of the automaton.
ABLATIONS = {
    "as shipped": {},
    "clipped gradients, linear decay": {"config": {"gradients": "clip", "decay": "linear"}},
    "gradients left as they are": {"config": {"gradients": "none"}},
    "no pool": {"names": {"regime": "growing"}},
    "no coin: every cell fires": {"nca": {"fire_rate": 1.0}},
    "no living mask": {"nca": {"alive_threshold": -1e9}},  # Every cell counts as mature.
    "4 channels: no hidden ones": {"channels": 4},
}


def train(change: dict, train_steps: int) -> dict[str, float]:
    """Trains one lizard; returns its row of the table."""

    def configure(names):
        names["config"] = dict(names["config"], train_steps=train_steps) | change.get("config", {})
        names.update(change.get("names", {}))

    def set_first(names):
        names["first"] = names["first"][..., : change.get("channels")]

    def set_rule(names):
        for name, value in change.get("nca", {}).items():
            setattr(names["nca"], name, value)

    start = time.perf_counter()
    after = {"config": configure, "state": set_first, "model": set_rule}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        names = run_cells("01_growing_with_gradients.ipynb", "loop", after, SHOWN)
    seconds, longest = time.perf_counter() - start, names["longest"]
    seeds, row = jnp.stack(20 * [names["first"]]), {}
    for multiple in (1, 2, 4, 8):
        states = names["rollout"](
            names["nca"], seeds, jax.random.key(1_000_000), multiple * longest
        )
        loss = jnp.mean(jnp.square(states[..., :4] - names["target"]))
        row[f"log10_loss_{multiple}x"] = round(float(jnp.log10(loss)), 2)
    return row | {"train_steps": train_steps, "minutes": round(seconds / 60, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *ABLATIONS], metavar="row")
    parser.add_argument("--train-steps", type=int, default=2_000)
    options = parser.parse_args()
    table = TABLE if options.train_steps == 2_000 else ROOT / "out" / "ablations.csv"
    os.environ |= {"NCA_PRESET": "laptop", "NCA_EMOJI": "🦎", "NCA_REGIME": "persistent"}
    rows = {}
    if table.exists():
        with table.open(encoding="utf-8") as file:
            rows = {row["ablation"]: row for row in csv.DictReader(file)}
    for name in options.rows or [name for name in ABLATIONS if name not in rows]:
        rows[name] = {"ablation": name} | train(ABLATIONS[name], options.train_steps)
        print(*rows[name].values(), sep="  ", flush=True)
        table.parent.mkdir(exist_ok=True)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[name])
            writer.writeheader()
            writer.writerows(rows[each] for each in ABLATIONS if each in rows)


if __name__ == "__main__":
    main()
