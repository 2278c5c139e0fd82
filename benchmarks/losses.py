"""The held-out losses of notebook 01 at its preset `laptop`, with three keys.

    python benchmarks/losses.py

To tell whether a change of the package has made the result worse: run it before and after.
"""

import os

os.environ |= {"NCA_PRESET": "laptop", "NCA_EMOJI": "🦎", "NCA_REGIME": "persistent"}

import tempfile
import time

import numpy as np
from notebook_cells import SHOWN, run_cells

KEYS = (0, 1, 2)


def main() -> None:
    rows = []
    for key in KEYS:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            after = {"config": lambda names, key=key: names.update(seed=key)}
            names = run_cells("01_growing_with_gradients.ipynb", "held-out", after, SHOWN)
        found = names["log10_loss"]
        rows.append(list(found.values()))
        losses = "  ".join(f"{loss:.2f}" for loss in found.values())
        seconds = time.perf_counter() - start
        print(f"key {key}: log10(loss) {losses}  in {seconds:.0f} s", flush=True)
    medians = "  ".join(f"{loss:.2f}" for loss in np.median(rows, axis=0))
    print(f"median: {medians}")


if __name__ == "__main__":
    main()
