"""A trained automaton as one self-contained web page: watch it grow, wound it, plant seeds.

    show_player(nca)                                  # in a notebook
    save_player("lizard.html", {"growing": nca, "persistent": other})

The page needs no network and no server: the weights, the automaton in plain JavaScript
(`player.js`) and the controls (`player.html`) are all in it.
"""

import base64
import html
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from nca_helpers.checks import check_integer
from nca_helpers.files import replace_file
from nca_helpers.model import NCA, has_own_rule, weight_shapes, weights_of

__all__ = ["player_html", "save_player", "show_player"]

# The page steps a 72² lizard several hundred times a second; 256² is what still moves.
SMALLEST_SIZE, LARGEST_SIZE = 8, 256


def player_html(nca: NCA | Mapping[str, NCA], *, size: int = 72) -> str:
    """Returns a page on which one or several automata grow from a seed, by themselves.

    Args:
        nca: An automaton, or several by name: the page lets the reader switch between them
            while the state lives on. About 45 kB of page each.
        size: Height and width of the grid, in cells, from 8 to 256.

    Returns:
        A whole HTML document without references to anything outside it.

    Raises:
        TypeError: `nca` is neither an `NCA` nor `{name: NCA}`, or has a rule of its own.
        ValueError: There is no automaton, its weights are not finite or not of its shape, or
            `size` is out of range.
    """
    size = check_integer("size", size, SMALLEST_SIZE, LARGEST_SIZE)
    models = [_model(name, member) for name, member in _by_name(nca).items()]
    data = json.dumps({"size": size, "models": models})
    # Inside <script>, only these could end the element or open a comment.
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    files = resources.files("nca_helpers")
    template = Template(files.joinpath("player.html").read_text(encoding="utf-8"))
    script = files.joinpath("player.js").read_text(encoding="utf-8")
    return template.substitute(data=data, script=script)


def save_player(
    path: str | os.PathLike[str], nca: NCA | Mapping[str, NCA], *, size: int = 72
) -> Path:
    """Writes the page of `player_html` to a file; a write that fails leaves the old file.

    Args:
        path: Where to write, usually `*.html`; a missing folder is made.
        nca: An automaton, or several by name.
        size: Height and width of the grid, in cells, from 8 to 256.

    Returns:
        The path written.

    Raises:
        TypeError, ValueError: As `player_html`.
        OSError: The file cannot be written.
    """
    page = player_html(nca, size=size)
    replace_file(path, page.encode())
    return Path(path)


def show_player(nca: NCA | Mapping[str, NCA], *, size: int = 72) -> None:
    """Shows the page of `player_html` under the cell of a notebook.

    Args:
        nca: An automaton, or several by name.
        size: Height and width of the grid, in cells, from 8 to 256.

    Raises:
        TypeError, ValueError: As `player_html`.
    """
    from IPython.display import HTML, display

    page = html.escape(player_html(nca, size=size))
    # The page stacks its controls under the grid below 640 px of width and needs more height
    # there. Percentages of padding are of the width, so padding can follow without a script.
    stacked = "clamp(0px, (640px - 100%) * 9999, min(100%, 512px) + 470px)"
    side_by_side = "clamp(500px, 100% - 268px, 640px)"
    height = f"max({stacked}, {side_by_side})"
    frame = (
        f'<iframe srcdoc="{page}" sandbox="allow-scripts" title="Neural cellular automaton" '
        'style="position: absolute; inset: 0; width: 100%; height: 100%; border: 0; '
        'border-radius: 12px"></iframe>'
    )
    display(HTML(f'<div style="position: relative; padding-top: {height}">{frame}</div>'))


def _by_name(nca: NCA | Mapping[str, NCA]) -> dict[str, NCA]:
    if isinstance(nca, NCA):
        return {"": nca}
    if not isinstance(nca, Mapping):
        raise TypeError(f"nca must be an NCA or a {{name: NCA}}, got {type(nca).__name__}")
    if not nca:
        raise ValueError("nca must hold at least one {name: NCA}, got an empty mapping")
    for name, member in nca.items():
        if not isinstance(name, str):
            raise TypeError(f"the names in nca must be strings, got {name!r}")
        if not isinstance(member, NCA):
            raise TypeError(f"nca[{name!r}] must be an NCA, got {type(member).__name__}")
    return dict(nca)


def _model(name: str, nca: NCA) -> dict:
    """Returns what `decodeModel` in player.js unpacks."""
    which = f"nca[{name!r}]" if name else "nca"
    if has_own_rule(nca):
        raise TypeError(
            f"{which} is a {type(nca).__name__} with a rule of its own; the page knows NCA's only"
        )
    weights = weights_of(nca)
    for weight, shape in weight_shapes(nca.channels, nca.hidden_size).items():
        array, label = weights[weight], f"{which}.{weight.replace('/', '.')}"
        if array.shape != shape:
            raise ValueError(f"{label} must have shape {shape}, got {array.shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{label} must be finite, got NaN or infinite weights")
    # Transposed, a hidden unit's inputs lie side by side, which the page's inner loop likes.
    weights["hidden/kernel"] = weights["hidden/kernel"].T
    packed = b"".join(array.astype("<f4").tobytes() for array in weights.values())
    return {
        "name": name,
        "channels": nca.channels,
        "hidden": nca.hidden_size,
        "fireRate": nca.fire_rate,
        "aliveThreshold": nca.alive_threshold,
        "weights": base64.b64encode(packed).decode("ascii"),
    }
