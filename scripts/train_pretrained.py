"""Trains the models that come with the package, by running the notebooks at their preset `laptop`.

    python scripts/train_pretrained.py              all of them, some two hours on two CPU cores
    python scripts/train_pretrained.py 🦎 growing   one of them

A model replaces the bundled one when its training has ended; what is left out stays.
"""

import os
import sys
from pathlib import Path

import nbformat
from execute_notebook import execute

from nca_helpers import emoji_name, load_meta, load_nca, save_nca

ROOT = Path(__file__).resolve().parent.parent
BY_GRADIENTS = ROOT / "notebooks" / "01_growing_with_gradients.ipynb"
OTHERS = {
    "evolved": ROOT / "notebooks" / "02_growing_with_pgpe.ipynb",
    "many": ROOT / "notebooks" / "04_beyond_one_lizard.ipynb",
}
PRETRAINED = ROOT / "nca_helpers" / "data" / "pretrained"

# Cells that are put behind those of the notebook whose name they bear. The lizards are as large as
# in the article and train in its grid, but for fewer steps than the preset `paper` takes.
LARGE = """config |= dict(size=40, padding=16, batch_size=8, pool_size=512, steps=(64, 96),
               train_steps={})"""
HALVES = '''def wound(states, key):
    """Takes a random circle from each sample, or, every other time, a random half."""
    circle_key, choice_key = jax.random.split(key)
    circles = nca_helpers.random_circles(states, circle_key)
    halves = [nca_helpers.halve(states, side) for side in ("left", "right", "top", "bottom")]
    choice = jax.random.randint(choice_key, len(states), 0, 2 * len(halves))
    return jnp.stack(halves + [circles] * len(halves))[choice, jnp.arange(len(states))]'''

MODELS = {
    ("🦎", "growing"): {"config": LARGE.format(1_600)},
    ("🦎", "persistent"): {"config": LARGE.format(3_000)},
    ("🦎", "regenerating"): {"config": LARGE.format(3_000), "prepare": HALVES},
    ("🦎", "evolved"): {},
    ("🦎", "many"): {},
    ("🦋", "persistent"): {},
    ("🐠", "persistent"): {},
    ("🐞", "persistent"): {},
    ("😀", "persistent"): {},
}


def train(emoji: str, regime: str) -> Path:
    """Trains one model and returns its path."""
    code = emoji_name(emoji).removeprefix("emoji_u").removesuffix(".png")
    folder = ROOT / "out" / f"{code}_{regime}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"NCA_PRESET": "laptop", "NCA_EMOJI": emoji, "NCA_REGIME": regime}
    notebook = OTHERS.get(regime, BY_GRADIENTS)
    execute(with_cells(notebook, MODELS[emoji, regime]), folder / notebook.name, folder)

    (trained,) = (folder / "out").glob("*.npz")
    command = f"python scripts/train_pretrained.py {emoji} {regime}"
    meta = load_meta(trained) | {"reproduce": command}
    return save_nca(PRETRAINED / f"{code}_{regime}.npz", load_nca(trained), **meta)


def with_cells(notebook: Path, added: dict[str, str]) -> nbformat.NotebookNode:
    """Returns a notebook up to `save`, with code cells added, each behind the one named."""
    original = nbformat.read(notebook, as_version=4)
    if unknown := added.keys() - {cell.id for cell in original.cells}:
        raise LookupError(f"{notebook.name} has no cells {', '.join(sorted(unknown))}")
    cells = []
    for cell in original.cells:
        cells.append(cell)
        if cell.id in added:
            cells.append(nbformat.v4.new_code_cell(added[cell.id]))
        if cell.id == "save":  # In notebook 04 other models follow.
            break
    original.cells = cells
    return original


def main() -> None:
    chosen = [tuple(sys.argv[1:])] if sys.argv[1:] else MODELS
    for model in chosen:
        if model not in MODELS:
            sys.exit(f"{model} is not one of {', '.join(map(' '.join, MODELS))}")
        print(*model)
        print(train(*model))


if __name__ == "__main__":
    main()
