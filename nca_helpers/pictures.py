"""Pictures: states as colours, sheets of many; notebooks show them with words for the blind."""

import base64
import html
import math
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from nca_helpers.checks import check_integer, check_state, require


def to_rgb(state: ArrayLike) -> np.ndarray | Array:
    """Composites states over white: `(..., height, width, 3)` float32 in [0, 1].

    States are NumPy's or JAX's, also traced, and so is what is returned; hidden channels are not
    looked at, and may be missing. NaN stays NaN.
    """
    state = state if isinstance(state, np.ndarray | Array) else as_array("state", state)
    check_state(state)
    xp = state.__array_namespace__()
    rgba = state[..., :4].astype(xp.float32)
    rgb, alpha = rgba[..., :3], xp.clip(rgba[..., 3:], 0.0, 1.0)
    return xp.clip(1.0 - alpha + rgb, 0.0, 1.0)


def tile(images: ArrayLike, columns: int | None = None) -> np.ndarray:
    """Lays pictures out on one sheet, row by row, and leaves what is over white.

    Args:
        images: `(..., n, height, width, channels)`, floats in [0, 1] or uint8.
        columns: Pictures in a row; by default the sheet is nearly square.

    Returns:
        `(..., rows * height, columns * width, channels)`: of a batch's video a video of sheets.
    """
    images = as_array("images", images)
    accepted = "pictures (..., n, height, width, channels), at least one picture"
    require(images.ndim >= 4 and 0 not in images.shape, "images", accepted, images)
    *leading, count, height, width, channels = images.shape
    if columns is None:
        columns = min(count, math.ceil(math.sqrt(count * height / width)))
    check_integer("columns", columns, 1)
    rows = math.ceil(count / columns)
    white = 255 if images.dtype == np.uint8 else 1
    missing = [(0, 0)] * len(leading) + [(0, rows * columns - count)] + [(0, 0)] * 3
    sheet = np.pad(images, missing, constant_values=white)
    sheet = sheet.reshape(*leading, rows, columns, height, width, channels).swapaxes(-3, -4)
    return sheet.reshape(*leading, rows * height, columns * width, channels)


def show_images(
    images: Sequence[ArrayLike],
    titles: Sequence[str] | None = None,
    *,
    alt: str | Sequence[str],
    **layout: Any,
) -> None:
    """Shows pictures side by side in the notebook, as mediapy does, with words for the blind.

    Args:
        images: Pictures `(height, width, 3)`, floats in [0, 1] or uint8.
        titles: One for each picture.
        alt: What is to be seen, for those who cannot see it: one text, or one for each picture.
        **layout: As of `mediapy.show_images`: `height` of a picture in pixels, `columns`, ...
    """
    import mediapy
    from IPython.display import HTML, display

    texts = [alt] * len(images) if isinstance(alt, str) else list(alt)
    accepted = f"one text, or {len(images)}, one for each picture"
    is_text = all(isinstance(text, str) for text in texts)
    require(is_text and len(texts) == len(images), "alt", accepted, alt)
    before, *tags = mediapy.show_images(images, titles, return_html=True, **layout).split("<img ")
    tags = [f'<img alt="{html.escape(text)}" {tag}' for text, tag in zip(texts, tags, strict=True)]
    display(HTML(before + "".join(tags)))


def display_png(data: bytes, alt: str, handle: Any = None) -> Any:
    """Shows a PNG in the cell's output, or in place of the one shown before; returns its handle."""
    from IPython.display import display

    # Not IPython.display.Image: in Colab's IPython 7 it takes no alt text.
    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": alt}
    options = {"metadata": {"image/png": {"alt": alt}}, "raw": True}
    if handle is None:
        return display(bundle, display_id=True, **options)
    handle.update(bundle, **options)
    return handle


def in_kernel() -> bool:
    """Returns whether this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None


def as_array(name: str, values: ArrayLike) -> np.ndarray:
    """Returns NumPy's array of floats or uint8; bfloat16, of which NumPy knows little, as float32.

    ValueError for all else: other numbers, text, rows of different lengths, traced by JAX.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        array = np.asarray(None)
    array = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    is_picture = array.dtype.kind == "f" or array.dtype == np.uint8
    require(is_picture, name, "an array of floats or of uint8", values)
    return array
