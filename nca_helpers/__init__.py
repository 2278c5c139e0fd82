"""The machinery behind the notebooks that teach Growing Neural Cellular Automata in JAX."""

from nca_helpers.damage import circle, halve, hole, random_circles
from nca_helpers.model import NCA, living_mask, perceive, seed_state
from nca_helpers.rollout import rollout, rollout_frames

__all__ = [
    "NCA",
    "circle",
    "halve",
    "hole",
    "living_mask",
    "perceive",
    "random_circles",
    "rollout",
    "rollout_frames",
    "seed_state",
]
