"""Trains the models that come with the package, by running the notebooks at their preset `laptop`.

    python scripts/train_pretrained.py              all of them, some 45 minutes on two CPU cores
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
BY_EVOLUTION = ROOT / "notebooks" / "02_growing_with_pgpe.ipynb"
PRETRAINED = ROOT / "nca_helpers" / "data" / "pretrained"

MODELS = (
    ("🦎", "growing"),
    ("🦎", "persistent"),
    ("🦎", "regenerating"),
    ("🦎", "evolved"),
    ("🦋", "persistent"),
    ("🐠", "persistent"),
    ("🐞", "persistent"),
    ("😀", "persistent"),
)


def train(emoji: str, regime: str) -> Path:
    """Trains one model and returns its path."""
    code = emoji_name(emoji).removeprefix("emoji_u").removesuffix(".png")
    folder = ROOT / "out" / f"{code}_{regime}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"NCA_PRESET": "laptop", "NCA_EMOJI": emoji, "NCA_REGIME": regime}
    notebook = BY_EVOLUTION if regime == "evolved" else BY_GRADIENTS
    execute(nbformat.read(notebook, as_version=4), folder / notebook.name, folder)

    (trained,) = (folder / "out").glob("*.npz")
    command = f"python scripts/train_pretrained.py {emoji} {regime}"
    meta = load_meta(trained) | {"reproduce": command}
    return save_nca(PRETRAINED / f"{code}_{regime}.npz", load_nca(trained), **meta)


def main() -> None:
    chosen = [tuple(sys.argv[1:])] if sys.argv[1:] else MODELS
    for model in chosen:
        if model not in MODELS:
            sys.exit(f"{model} is not one of {', '.join(map(' '.join, MODELS))}")
        print(*model)
        print(train(*model))


if __name__ == "__main__":
    main()
