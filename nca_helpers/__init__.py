"""The machinery behind the notebooks that teach Growing Neural Cellular Automata in JAX.

What holds everywhere is said here alone:

- A state is `(..., height, width, channels)`, float32: RGB premultiplied by alpha, alpha, and
  hidden channels. Its leading axes are a batch.
- An argument that is not what is accepted raises ValueError, before anything is compiled, computed
  or written. Docstrings name what else is raised.
- Of a path `~` is the home folder, and a missing folder is made. A write that fails or is
  interrupted leaves the old file, and raises OSError.
"""

from nca_helpers.checkpoint import (
    bundled,
    load_meta,
    load_nca,
    pretrained,
    pretrained_meta,
    save_nca,
)
from nca_helpers.damage import circle, halve, hole, random_circles
from nca_helpers.devices import use_every_core
from nca_helpers.emoji import emoji_name, load_emoji, target_name
from nca_helpers.gauss_newton import GaussNewton
from nca_helpers.images import load_image
from nca_helpers.measure import blur_like, impostors, robustness
from nca_helpers.model import NCA, living_mask, perceive, seed_state
from nca_helpers.pgpe import PGPE, pair_keys
from nca_helpers.pictures import show_images, tile, to_rgb
from nca_helpers.player import (
    breed_html,
    player_html,
    save_breed,
    save_player,
    show_breed,
    show_player,
)
from nca_helpers.population import population_fitness, population_residuals, spread_generation
from nca_helpers.progress import Diverged, Progress
from nca_helpers.rollouts import rollout, rollout_frames
from nca_helpers.run import restore_run, save_run
from nca_helpers.video import save_video, show_video

__all__ = [
    "NCA",
    "PGPE",
    "Diverged",
    "GaussNewton",
    "Progress",
    "blur_like",
    "breed_html",
    "bundled",
    "circle",
    "emoji_name",
    "halve",
    "hole",
    "impostors",
    "living_mask",
    "load_emoji",
    "load_image",
    "load_meta",
    "load_nca",
    "pair_keys",
    "perceive",
    "player_html",
    "population_fitness",
    "population_residuals",
    "pretrained",
    "pretrained_meta",
    "random_circles",
    "restore_run",
    "robustness",
    "rollout",
    "rollout_frames",
    "save_breed",
    "save_nca",
    "save_player",
    "save_run",
    "save_video",
    "seed_state",
    "show_breed",
    "show_images",
    "show_player",
    "show_video",
    "spread_generation",
    "target_name",
    "tile",
    "to_rgb",
    "use_every_core",
]
