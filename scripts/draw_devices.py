"""Draws the picture at the top of notebook 03: eight candidates on four devices.

python scripts/draw_devices.py notebooks/images/devices.png
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from matplotlib.patches import FancyBboxPatch

from nca_helpers import load_emoji, pretrained, rollout, seed_state, to_rgb

DEVICES, STDEV, STEPS = 4, 0.008, 96


def candidates(count: int) -> list[tuple[np.ndarray, float]]:
    """Returns a picture and minus the loss of each of `count` neighbours of the bundled lizard."""
    graph, weights = nnx.split(pretrained("🦎", "persistent"))
    centre, unravel = ravel_pytree(weights)
    target, found = np.asarray(load_emoji("🦎", 40, 16)), []
    for key in jax.random.split(jax.random.key(0), count):
        vector = centre + STDEV * jax.random.normal(key, centre.shape)
        state = rollout(nnx.merge(graph, unravel(vector)), seed_state(72, 72), key, STEPS)
        loss = float(jnp.mean(jnp.square(state[..., :4] - target)))
        found.append((to_rgb(state)[10:-10, 10:-10], -loss))
    return found


def draw(path: str) -> None:
    figure, axis = plt.subplots(figsize=(6.4, 4.4), dpi=120, layout="constrained")
    axis.set_axis_off()
    for i, (picture, score) in enumerate(candidates(2 * DEVICES)):
        x, y = i // 2, 1.75 - 0.85 * (i % 2)
        axis.imshow(picture, extent=(x + 0.2, x + 0.8, y, y + 0.6), interpolation="nearest")
        axis.text(x + 0.5, y - 0.02, f"−{-score:.3f}", ha="center", va="top", fontsize=11)
    wide = dict(boxstyle="round,pad=0,rounding_size=0.08", facecolor="none", edgecolor="gray")
    for x in range(DEVICES):
        axis.add_patch(FancyBboxPatch((x + 0.08, 0.7), 0.84, 1.7, **wide))
        axis.text(x + 0.5, 2.5, f"device {x}", ha="center", fontsize=12)
        axis.annotate("", (x + 0.5, 0.4), (x + 0.5, 0.68), arrowprops=dict(arrowstyle="<|-|>"))
    axis.add_patch(FancyBboxPatch((0.08, 0), 3.84, 0.38, **wide | dict(facecolor="#A9D8F5")))
    axis.text(2, 0.19, "every device learns all 8 scores", ha="center", va="center", fontsize=12)
    axis.set(xlim=(0, 4), ylim=(-0.05, 2.7))  # Again, for pictures change them.
    figure.savefig(path)


if __name__ == "__main__":
    draw(sys.argv[1])
