"""The machinery behind the notebooks that teach Growing Neural Cellular Automata in JAX."""

from nca_helpers.checkpoint import load_meta, load_nca, pretrained, pretrained_meta, save_nca
from nca_helpers.damage import circle, halve, hole, random_circles
from nca_helpers.emoji import load_emoji, load_image
from nca_helpers.model import NCA, living_mask, perceive, seed_state
from nca_helpers.rollout import rollout, rollout_frames
from nca_helpers.video import Progress, plot_loss, save_video, show_video, tile, to_rgb

__all__ = [
    "NCA",
    "Progress",
    "circle",
    "halve",
    "hole",
    "living_mask",
    "load_emoji",
    "load_image",
    "load_meta",
    "load_nca",
    "perceive",
    "plot_loss",
    "pretrained",
    "pretrained_meta",
    "random_circles",
    "rollout",
    "rollout_frames",
    "save_nca",
    "save_video",
    "seed_state",
    "show_video",
    "tile",
    "to_rgb",
]
