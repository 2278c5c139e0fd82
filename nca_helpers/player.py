"""A trained automaton as one self-contained web page: to draw on, or to breed by hand.

    show_player(nca)                                  # in a notebook
    save_player("lizard.html", {"growing": nca, "persistent": other})
    show_breed(nca)                                   # nine bodies: choose whose children follow

A page needs no network and no server: the weights, the automaton in plain JavaScript
(`automaton.js`) and the controls (`player.html`, `player.js`) are all in it.
"""

import base64
import html
import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from flax import nnx

from nca_helpers.checks import check_finite, check_integer, require, shown
from nca_helpers.files import replace_file
from nca_helpers.model import NCA, has_own_rule, weights_of

# The page steps a 72² lizard several hundred times a second; 256² is what still moves.
SMALLEST_SIZE, LARGEST_SIZE = 8, 256


def player_html(
    nca: NCA | Mapping[str, NCA], *, size: int = 72, decoder: nnx.Module | None = None
) -> str:
    """Returns a page on which one or several automata grow from a seed, by themselves.

    Args:
        nca: An automaton, or several by name: the page lets the reader switch between them
            while the state lives on. About 45 kB of page each.
        size: Height and width of the grid, in cells, from 8 to 256.
        decoder: Draws what lies between the cells, under the view "Colour, sharp": a module with
            two dense layers, `hidden` from channels + 8 numbers and `colour` to RGBA, as notebook
            04 trains it.

    Returns:
        A whole HTML document without references to anything outside it.

    Raises:
        ValueError: `nca` is neither an `NCA` nor a mapping that holds at least one by name, one
            has a rule of its own or weights that are not finite, `size` is out of range, or
            `decoder` has other layers or is for cells of another number of channels.
    """
    size = check_integer("size", size, SMALLEST_SIZE, LARGEST_SIZE)
    models = [_model(name, member) for name, member in _by_name(nca).items()]
    if decoder is None:
        return _page("player", {"size": size, "models": models})
    data = {"size": size, "models": models, "decoder": _decoder(decoder, models)}
    return _page("player", data, "decoder.js")


def save_player(path: str | os.PathLike[str], nca: NCA | Mapping[str, NCA], **options: Any) -> Path:
    """Writes the page of `player_html` to a file; a write that fails leaves the old file.

    Args:
        path: Where to write, usually `*.html`; `~` is the home folder, a missing folder is made.
        nca: An automaton, or several by name.
        **options: As of `player_html`.

    Returns:
        The path.

    Raises:
        ValueError: As `player_html`.
        OSError: The file cannot be written.
    """
    return replace_file(path, player_html(nca, **options).encode())


def show_player(nca: NCA | Mapping[str, NCA], **options: Any) -> None:
    """Shows the page of `player_html` under the cell of a notebook.

    Args:
        nca: An automaton, or several by name.
        **options: As of `player_html`.

    Raises:
        ValueError: As `player_html`.
    """
    _show(player_html(nca, **options), "Neural cellular automaton")


def breed_html(nca: NCA, *, size: int = 48) -> str:
    """Returns a page to breed automata by hand: interactive evolution of the weights.

    Nine bodies grow: a parent in the middle, and eight children whose weights are the parent's
    with Gaussian noise. Who is clicked is the next parent. The reader can undo, set the strength
    of the mutations, and save the parent as a checkpoint for `load_nca` and as a player.

    Args:
        nca: The first parent.
        size: Height and width of each grid, in cells, from 8 to 256.

    Returns:
        A whole HTML document without references to anything outside it.
    """
    size = check_integer("size", size, SMALLEST_SIZE, LARGEST_SIZE)
    require(isinstance(nca, NCA), "nca", "an NCA", nca)
    model = _model("", nca)
    player = player_html(nca).replace(model["weights"], "@weights@")  # which the page fills in.
    return _page("breed", {"size": size, "model": model, "player": player}, "npz.js")


def save_breed(path: str | os.PathLike[str], nca: NCA, *, size: int = 48) -> Path:
    """Writes the page of `breed_html` to a file, and returns its path."""
    return replace_file(path, breed_html(nca, size=size).encode())


def show_breed(nca: NCA, *, size: int = 48) -> None:
    """Shows the page of `breed_html` under the cell of a notebook."""
    _show(breed_html(nca, size=size), "Breed by hand")


def _show(page: str, title: str) -> None:
    """Shows a page in a frame under a notebook's cell, high enough to need no scroll bar."""
    from IPython.display import HTML, display

    # The page stacks its controls under the grid below 640 px of width and needs more height
    # there. Percentages of padding are of the width, so padding can follow without a script.
    stacked = "clamp(0px, (640px - 100%) * 9999, min(100%, 496px) + 500px)"
    side_by_side = "clamp(500px, 100% - 268px, 640px)"
    frame = (
        f'<iframe srcdoc="{html.escape(page)}" sandbox="allow-scripts allow-downloads" '
        f'title="{title}" style="position: absolute; inset: 0; width: 100%; height: 100%; '
        'border: 0; border-radius: 12px"></iframe>'
    )
    padding = f"max({stacked}, {side_by_side})"
    display(HTML(f'<div style="position: relative; padding-top: {padding}">{frame}</div>'))


def _page(name: str, data: dict, *scripts: str) -> str:
    """Returns the page `name`.html, with its style, scripts and data in it."""
    scripts = "network.js", "automaton.js", "page.js", *scripts, f"{name}.js"
    files = map(resources.files("nca_helpers").joinpath, ("page.css", f"{name}.html", *scripts))
    style, template, *scripts = (file.read_text(encoding="utf-8") for file in files)
    text = json.dumps(data)
    # Inside <script>, only these could end the element or open a comment.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Template(template).substitute(style=style, script="\n".join(scripts), data=text)


def _by_name(nca: NCA | Mapping[str, NCA]) -> dict[str, NCA]:
    if isinstance(nca, NCA):
        return {"": nca}
    is_named = isinstance(nca, Mapping) and len(nca) and all(isinstance(name, str) for name in nca)
    given = list(nca) if isinstance(nca, Mapping) else nca
    require(is_named, "nca", "an NCA, or at least one as {name: NCA}", given)
    for name, member in nca.items():
        require(isinstance(member, NCA), f"nca[{shown(name)}]", "an NCA", member)
    return dict(nca)


def _model(name: str, nca: NCA) -> dict:
    """Returns what `makeRule` in automaton.js unpacks."""
    which = f"nca[{shown(name)}]" if name else "nca"
    own = "an NCA with NCA's own rule and layers, for the page knows no other"
    require(not has_own_rule(nca), which, own, type(nca).__name__)
    weights = weights_of(nca)
    for weight, array in weights.items():
        check_finite(f"{which}.{weight.replace('/', '.')}", array)
    # Transposed, a unit's inputs lie side by side, which the page's inner loop likes.
    packed = b"".join(array.T.astype("<f4").tobytes() for array in weights.values())
    return {
        "name": name,
        "channels": nca.channels,
        "hidden": nca.hidden_size,
        "fireRate": nca.fire_rate,
        "aliveThreshold": nca.alive_threshold,
        "weights": base64.b64encode(packed).decode("ascii"),
    }


def _decoder(decoder: nnx.Module, models: list[dict]) -> dict:
    """Returns what `Decoder` in decoder.js unpacks."""
    layers = [getattr(decoder, name, None) for name in ("hidden", "colour")]
    are_dense = all(isinstance(layer, nnx.Linear) and layer.use_bias for layer in layers)
    accepted = "a module with the nnx.Linear layers hidden and colour"
    require(are_dense, "decoder", accepted, type(decoder).__name__)
    weights = [np.asarray(x[...], "<f4") for layer in layers for x in (layer.kernel, layer.bias)]
    told, hidden = weights[0].shape
    for channels in (model["channels"] for model in models):
        accepted = f"one for cells of {channels} channels"
        require(told == channels + 8, "decoder", accepted, f"one for {told - 8}")
    is_colour = weights[2].shape == (hidden, 4)
    require(is_colour, "decoder.colour", f"a layer from {hidden} to 4", weights[2])
    packed = np.concatenate([array.ravel() for array in weights])
    check_finite("decoder", packed)
    encoded = base64.b64encode(packed.tobytes()).decode("ascii")
    return {"channels": told - 8, "hidden": hidden, "weights": encoded}
