"""Pictures: states as colours, sheets of many, videos on disk and in notebooks, live plots.

    frames = tile(to_rgb(rollout_frames(nca, states, key, 96)))
    show_video(frames)
    save_video("lizard.gif", frames)

    for step in (progress := Progress(3000)):
        ...
        progress.report(loss, before=states, after=new_states)

Pictures that stand still are shown by mediapy: `show_images([to_rgb(state)], alt="A lizard")`.
"""

import base64
import html
import io
import math
import numbers
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import Array
from numpy.typing import ArrayLike
from PIL import Image

from nca_helpers.checks import check_integer
from nca_helpers.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Progress",
    "plot_loss",
    "save_video",
    "show_images",
    "show_video",
    "tile",
    "to_rgb",
]

# Browsers slow down what asks for less than 20 ms a frame.
_FASTEST_FPS = 50

# The Okabe-Ito palette: told apart by colour-blind readers.
_SKY_BLUE, _VERMILLION = "#56B4E9", "#D55E00"

# WebP counts milliseconds in 31 bits.
_LONGEST_VIDEO = 2**31 // 1000  # seconds

_LONGEST_WINDOW = 100
_LINES_PER_RUN = 25
_PICTURES_PER_ROW = 8


def to_rgb(state: ArrayLike) -> np.ndarray | Array:
    """Composites states over white.

    Args:
        state: `(..., height, width, channels)`, NumPy or JAX (also traced); channels 0-2 are RGB
            premultiplied by alpha, 3 is alpha, the rest is not looked at.

    Returns:
        `(..., height, width, 3)` float32 in [0, 1], of the kind of array that was given. NaN
        stays NaN.

    Raises:
        ValueError: There are fewer than four channels or three axes.
    """
    if not hasattr(state, "__array_namespace__"):
        state = np.asarray(state)
    if state.ndim < 3 or state.shape[-1] < 4:
        raise ValueError(
            "state must have shape (..., height, width, channels) with at least 4 channels, "
            f"got {state.shape}"
        )
    xp = state.__array_namespace__()
    rgba = state[..., :4].astype(xp.float32)
    rgb, alpha = rgba[..., :3], xp.clip(rgba[..., 3:], 0.0, 1.0)
    return xp.clip(1.0 - alpha + rgb, 0.0, 1.0)


def tile(images: ArrayLike, columns: int | None = None) -> np.ndarray:
    """Lays pictures out on one sheet, row by row, and leaves what is over white.

    Args:
        images: `(..., n, height, width, channels)`, floats in [0, 1] or uint8. Leading axes
            stay: a video of a batch becomes a video of sheets.
        columns: Pictures in a row; by default the sheet is nearly square.

    Returns:
        `(..., rows * height, columns * width, channels)`.

    Raises:
        ValueError: There are fewer than four axes, no picture, or `columns` is below 1.
    """
    images = np.asarray(images)
    if images.ndim < 4 or 0 in images.shape:
        raise ValueError(
            "images must have shape (..., n, height, width, channels) and hold at least one "
            f"picture, got {images.shape}"
        )
    *leading, count, height, width, channels = images.shape
    if columns is None:
        columns = min(count, math.ceil(math.sqrt(count * height / width)))
    check_integer("columns", columns, 1)
    rows = math.ceil(count / columns)
    white = 255 if images.dtype == np.uint8 else 1
    sheet = np.full((*leading, rows * columns, height, width, channels), white, images.dtype)
    sheet[..., :count, :, :, :] = images
    sheet = sheet.reshape(*leading, rows, columns, height, width, channels)
    sheet = np.moveaxis(sheet, -3, -4)
    return sheet.reshape(*leading, rows * height, columns * width, channels)


def save_video(path: str | os.PathLike, frames: ArrayLike, fps: float = 30, scale: int = 4) -> Path:
    """Writes a video; the file's ending says in which format.

    `.gif` and `.webp` are written by Pillow alone and loop for ever; `.mp4` needs the program
    ffmpeg. WebP keeps every colour. GIF has one palette of 255 colours for the whole video,
    not dithered, in which white stays white. MP4 gets a white row or column where a side is
    odd.

    Browsers slow animated pictures of more than 50 frames a second down; of a faster one, GIF
    and WebP get 50 evenly spaced frames a second. Neighbouring frames that are equal become one
    that is shown for longer. Either way the duration is `len(frames) / fps` to 10 ms.

    Args:
        path: Where to; a missing folder is made, and a write that fails leaves the old file.
        frames: `(time, height, width, 3 or 1)`, floats in [0, 1] or uint8.
        fps: Frames a second.
        scale: Each cell becomes a square of this many pixels a side.

    Returns:
        The path.

    Raises:
        ValueError: The ending is none of the three, or `frames`, `fps` or `scale` is not what
            is accepted, or the format cannot hold them: a picture may stand for 655 seconds in
            GIF, for 16,777 in WebP; nothing has been written then.
        RuntimeError: MP4 was asked for and there is no ffmpeg.
        OSError: The file cannot be written.
    """
    path = Path(path)
    encode = _ENCODERS.get(path.suffix.lower())
    if encode is None:
        raise ValueError(f"path must end in {', '.join(_ENCODERS)}, got {str(path)!r}")
    replace_file(path, encode(*_checked_video(frames, fps, scale)))
    return path


def show_video(frames: ArrayLike, fps: float = 30, scale: int = 4, alt: str | None = None) -> None:
    """Shows a looping video in the notebook, without ffmpeg.

    The cell's output is an animated PNG: of the formats that move, the only one with a MIME
    type (`image/png`) that Jupyter, Colab, Kaggle, VS Code, nbconvert and GitHub all show, and
    a third of the size of a GIF. It has 255 colours at most, white among them, and at most 50
    frames a second (see `save_video`).

    Args:
        frames: `(time, height, width, 3 or 1)`, floats in [0, 1] or uint8.
        fps: Frames a second.
        scale: Each cell becomes a square of this many pixels a side.
        alt: What is to be seen, for those who cannot see it.

    Raises:
        ValueError: An argument is not what is accepted.
    """
    pixels, fps, scale = _checked_video(frames, fps, scale)
    alt = alt or f"Video of {len(pixels)} frames, {len(pixels) / fps:.1f} seconds"
    if _in_kernel():
        _display_png(_encode_png(pixels, fps, scale), alt)
    else:
        print(f"{alt}: shown in a notebook only, save_video() writes it to a file")


def show_images(
    images: Sequence[ArrayLike], titles: Sequence[str] | None = None, *, alt: str, **layout: Any
) -> None:
    """Shows pictures side by side in the notebook, as mediapy does, with words for the blind.

    Args:
        images: Pictures `(height, width, 3)`, floats in [0, 1] or uint8.
        titles: One for each picture.
        alt: What is to be seen, for those who cannot see it.
        **layout: As of `mediapy.show_images`: `height` of a picture in pixels, `columns`, ...
    """
    import mediapy
    from IPython.display import HTML, display

    table = mediapy.show_images(images, titles, return_html=True, **layout)
    display(HTML(table.replace("<img ", f'<img alt="{html.escape(alt)}" ')))


class Progress:
    """Counts the steps of a loop and shows how it goes, as text and, in a notebook, a picture.

    Iterate over it, and report once a step:

        for step in (progress := Progress(3000)):
            loss, after = train_step(before)
            progress.report(loss, before=before, after=after)

    Text is a line every few seconds, some 40 at most for a whole run, so that it reads well in
    a terminal, in one that follows a notebook being executed, and in the saved notebook:

        step 1200/3000  log10(loss) -3.12  elapsed 1:12  ETA 1:47

    In a notebook's kernel one picture, redrawn in place, shows the loss so far and the reported
    pictures. The loss in text is the median of the last tenth, of 100 at most: a single
    one swings.

    A loop that was left (interrupted, say) shows where it stopped; iterating again goes on from
    there, and after `restore` from where an earlier session stopped.

    Attributes:
        total: Steps of the whole run.
        step: Steps that are done.
    """

    def __init__(self, total: int, every: float = 5.0, unit: str = "step", stride: int = 1):
        """Starts nothing yet: the clock starts with the loop.

        Args:
            total: Steps of the whole run, at least 1.
            every: Seconds between two lines or redrawings, at least.
            unit: What a step is called: "generation", say.
            stride: Steps that one turn of the loop takes; the last turn may take fewer.

        Raises:
            ValueError: `total`, `every` or `stride` is not what is accepted.
        """
        check_integer("total", total, 1)
        check_integer("stride", stride, 1)
        if not (isinstance(every, numbers.Real) and every >= 0):
            raise ValueError(f"every must be a number of seconds, at least 0, got {every!r}")
        self.total = total
        self.step = 0
        self._index = 0
        self._every = every
        self._unit = unit
        self._stride = stride
        self._reports: list[tuple[int, float]] = []
        self._pending: tuple[int, ArrayLike] | None = None
        self._pictures: dict[str, np.ndarray] = {}
        self._start_clock()

    def __iter__(self) -> Iterator[int]:
        self._start_clock()
        try:
            while self.step < self.total:
                self._index = self.step
                yield self._index
                self.step = self._after_turn()
        finally:
            if self.step < self.total:
                self._show(self.step, stopped=True)
            elif self._line_step != self.total:
                self._show(self.total)

    def restore(self, step: int, losses: ArrayLike = ()) -> None:
        """Goes on with a run of an earlier session: the next loop begins at `step`.

        Args:
            step: Steps that are done, from 0 to `total`.
            losses: What `losses` was then, `(n,)`, at most one a step; fewer count as evenly
                spread.

        Raises:
            ValueError: An argument is not what is accepted.
        """
        step = check_integer("step", step, 0, self.total)
        losses = np.asarray(losses, np.float64)
        if losses.ndim != 1 or losses.size > step:
            raise ValueError(
                f"losses must have shape (n,), n at most {step}, the steps done, got {losses.shape}"
            )
        self.step = step
        steps = np.linspace(0, step, losses.size + 1)[1:].round().astype(int)
        self._reports = list(zip(steps.tolist(), losses.tolist(), strict=True))
        self._pending = None

    def report(self, loss: ArrayLike, note: str = "", **pictures: ArrayLike) -> None:
        """Takes note of one turn, and shows it if it is time.

        Args:
            loss: The step's loss, a scalar. It is read from its device one step later, so that
                the device is never kept waiting.
            note: What else the line of text should say.
            **pictures: A row of pictures each, under its name: `(n, height, width, channels)`,
                states (from 4 channels on) or RGB; the first 8 are shown.

        Raises:
            ValueError: `loss` is no scalar, or pictures are not of that shape.
        """
        if np.shape(loss):
            raise ValueError(f"loss must be a scalar, got shape {np.shape(loss)}")
        self._settle()
        done = self.step = self._after_turn()
        self._note = note
        self._pending = (done, loss)
        waited = time.monotonic() - self._shown_at
        if waited >= self._every or done == self.total:
            self._pictures = {name: _row(name, images) for name, images in pictures.items()}
            self._show(done)
            self._shown_at = time.monotonic()
        self._turns += 1
        if self._turns == 2:
            self._compiled = (done, time.monotonic())

    @property
    def losses(self) -> np.ndarray:
        """The losses that were reported, `(reports,)` float64."""
        self._settle()
        return np.asarray([loss for _, loss in self._reports], np.float64)

    def _after_turn(self) -> int:
        return min(self._index + self._stride, self.total)

    def _settle(self) -> None:
        """Waits for the last reported loss."""
        if self._pending is not None:
            step, loss = self._pending
            self._reports.append((step, float(loss)))
            self._pending = None

    def _start_clock(self) -> None:
        self._started_at = time.monotonic()
        self._shown_at = -math.inf
        self._line_step = 0
        self._note = ""
        # The first two turns compile, the second for arrays as they come back from several devices:
        # the time that is left is told by those after them.
        self._turns = 0
        self._compiled: tuple[int, float] | None = None
        self._display: Any = None

    def _show(self, done: int, stopped: bool = False) -> None:
        # The picture first: then all lines are one block of text in the saved notebook.
        if self.losses.size and _in_kernel():
            names = ", ".join(["loss", *self._pictures])
            alt = f"After {done} of {self.total} {self._unit}s: {names}"
            self._display = _display_png(self._figure(), alt, self._display)
        # Soon at first, then evenly: a long run gets no more lines than a short one.
        since = done - self._line_step
        even = min(self._line_step, self.total / _LINES_PER_RUN)
        if stopped or done == self.total or since >= even:
            print(self._line(done, stopped), flush=True)
            self._line_step = done

    def _line(self, done: int, stopped: bool) -> str:
        parts = [f"{'stopped after ' if stopped else ''}{self._unit} {done}/{self.total}"]
        if self.losses.size:
            with np.errstate(divide="ignore", invalid="ignore"):
                loss = np.log10(np.median(self.losses[-_window(self.losses.size) :]))
            parts.append(f"log10(loss) {loss:.2f}")
        if self._note:
            parts.append(self._note)
        now = time.monotonic()
        parts.append(f"elapsed {_clock(now - self._started_at)}")
        step, at = self._compiled or (done, now)
        if step < done < self.total and not stopped:
            parts.append(f"ETA {_clock((now - at) / (done - step) * (self.total - done))}")
        return "  ".join(parts)

    def _figure(self) -> bytes:
        """Returns the live picture as PNG."""
        # pyplot knows nothing of this figure, so it cannot show it a second time.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.6), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        curve, *rows = figure.subfigures(1, 2, width_ratios=(2, 3)) if self._pictures else [figure]
        losses = self.losses
        steps = [step for step, _ in self._reports]
        plot_loss(losses, steps, unit=self._unit, axes=curve.subplots())
        if rows:
            all_axes = rows[0].subplots(len(self._pictures), squeeze=False)[:, 0]
            for axes, (name, pictures) in zip(all_axes, self._pictures.items(), strict=True):
                axes.imshow(tile(pictures, columns=len(pictures)), interpolation="nearest")
                axes.set_title(name, fontsize="medium", loc="left")
                axes.set_axis_off()
        canvas.draw()
        return _encode_png(np.asarray(canvas.buffer_rgba())[None, ..., :3], fps=1, scale=1)


def plot_loss(
    losses: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    unit: str = "step",
    axes: "Axes | None" = None,
) -> "Axes":
    """Plots a training's loss in log10: the single ones faintly, and their running median.

    Args:
        losses: `(n,)`; NaN is left out.
        steps: `(n,)`, the step of each; 1 to n by default.
        unit: What a step is called.
        axes: Where to; matplotlib's current axes by default.

    Returns:
        The axes.

    Raises:
        ValueError: `losses` is not `(n,)`, or `steps` is of another length.
    """
    losses = np.asarray(losses, np.float64)
    steps = np.arange(1, losses.size + 1) if steps is None else np.asarray(steps)
    if losses.ndim != 1 or steps.shape != losses.shape:
        raise ValueError(
            "losses must have shape (n,) and steps the same one, "
            f"got {losses.shape} and {steps.shape}"
        )
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.gca()
    # More than this cannot be told apart, and makes the picture large.
    few = np.linspace(0, losses.size - 1, min(losses.size, 1000)).round().astype(int)
    half = _window(losses.size) // 2
    medians = [np.median(losses[max(0, i - half) : i + half + 1]) for i in few]
    with np.errstate(divide="ignore", invalid="ignore"):
        faint, line = np.log10(losses[few]), np.log10(medians)
    axes.plot(
        steps[few], faint, ".", markersize=2, alpha=0.5, color=_SKY_BLUE, label=f"each {unit}"
    )
    axes.plot(steps[few], line, color=_VERMILLION, label="running median")
    axes.set_xlabel(unit)
    axes.set_ylabel("log10(loss)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return axes


def _checked_video(frames: ArrayLike, fps: float, scale: int) -> tuple[np.ndarray, float, int]:
    """Returns `(time, height, width, 3)` uint8 and the settings, or raises ValueError."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or 0 in frames.shape or frames.shape[-1] not in (1, 3):
        states = frames.ndim >= 3 and frames.shape[-1] >= 4
        raise ValueError(
            f"frames must have shape (time, height, width, 3 or 1), got {frames.shape}"
            + ("; states become frames by to_rgb(states)" if states else "")
        )
    if not (isinstance(fps, numbers.Real) and 0 < fps < math.inf):
        raise ValueError(f"fps must be a positive number of frames a second, got {fps!r}")
    if len(frames) / fps > _LONGEST_VIDEO:
        raise ValueError(
            f"fps must let {len(frames)} frames end within {_LONGEST_VIDEO} seconds, got {fps!r}"
        )
    check_integer("scale", scale, 1)
    if frames.dtype != np.uint8:
        if not np.issubdtype(frames.dtype, np.floating):
            raise ValueError(f"frames must be floats in [0, 1] or uint8, got {frames.dtype}")
        bad = ~np.isfinite(frames).all(axis=(1, 2, 3))
        if bad.any():
            raise ValueError(
                f"frames must be finite, got NaN or infinity in {bad.sum()} of {len(bad)} frames, "
                f"first in frame {bad.argmax()}"
            )
        low, high = frames.min(), frames.max()
        if low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(f"frames must be floats in [0, 1] or uint8, got [{low}, {high}]")
        frames = (255 * frames.clip(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(frames, (*frames.shape[:3], 3)), float(fps), int(scale)


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Repeats the pixels of `(time, height, width, ...)` along height and width."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def _timing(count: int, fps: float, tick: int) -> tuple[np.ndarray, list[int]]:
    """Returns which frames to show and for how many ms each, in multiples of `tick` ms.

    Each frame ends at the tick that is nearest to its due time: errors do not add up.
    """
    duration = count / fps
    kept = count if fps <= _FASTEST_FPS else max(1, math.floor(duration * _FASTEST_FPS))
    frames = np.linspace(0, count - 1, kept).round().astype(int)
    ends = (np.arange(1, kept + 1) * (duration / kept * 1000 / tick)).round().astype(int)
    ends[-1] = max(ends[-1], 1)
    return frames, (tick * np.diff(ends, prepend=0)).tolist()


def _with_palette(pixels: np.ndarray) -> tuple[np.ndarray, bytes]:
    """Returns the frames as indices into one palette of at most 255 colours, and the palette.

    The 256th place stays free: GIF marks with it what did not change since the last frame.
    """
    count, height, width, _ = pixels.shape
    sheet = Image.fromarray(np.ascontiguousarray(pixels.reshape(count * height, width, 3)))
    # The rare colours of an eye are not averaged away, as the median cut would.
    coverage, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    sheet = sheet.quantize(254, method=coverage, kmeans=1, dither=plain)
    indices = np.array(sheet).reshape(count, height, width)
    colours = 3 * (int(indices.max()) + 1)
    # White would get the mean colour of all that is nearly white.
    indices[(pixels == 255).all(-1)] = colours // 3
    return indices, bytes(sheet.getpalette()[:colours]) + b"\xff\xff\xff"


def _animation(pictures: list[Image.Image], file_format: str, fps: float, **options: Any) -> bytes:
    buffer = io.BytesIO()
    first, *rest = pictures
    try:
        first.save(buffer, file_format, save_all=True, append_images=rest, loop=0, **options)
    except (OverflowError, RuntimeError, ValueError, struct.error) as error:
        # Of equal neighbours Pillow makes one picture.
        raise ValueError(
            f"{file_format} cannot hold these frames at fps={fps!r}: one that stands for too long, "
            f"its equal neighbours included, or is too large, {first.width}×{first.height} pixels "
            f"({error})"
        ) from error
    return buffer.getvalue()


def _palette_pictures(pixels: np.ndarray, scale: int) -> tuple[list[Image.Image], bytes]:
    indices, palette = _with_palette(pixels)
    pictures = [Image.fromarray(frame) for frame in _enlarge(indices, scale)]
    for picture in pictures:
        picture.putpalette(palette)
    return pictures, palette


def _encode_gif(pixels: np.ndarray, fps: float, scale: int) -> bytes:
    shown, durations = _timing(len(pixels), fps, tick=10)
    pictures, palette = _palette_pictures(pixels[shown], scale)
    # The palette is given so that it is written once and not with every frame.
    return _animation(pictures, "GIF", fps, duration=durations, palette=palette, optimize=True)


def _encode_png(pixels: np.ndarray, fps: float, scale: int) -> bytes:
    shown, durations = _timing(len(pixels), fps, tick=1)
    pictures, _ = _palette_pictures(pixels[shown], scale)
    return _animation(pictures, "PNG", fps, duration=durations)


def _encode_webp(pixels: np.ndarray, fps: float, scale: int) -> bytes:
    shown, durations = _timing(len(pixels), fps, tick=1)
    pictures = [Image.fromarray(frame) for frame in _enlarge(pixels[shown], scale)]
    # Lossless, quality is effort: more takes a hundred times as long for a tenth of the size.
    options = {"lossless": True, "quality": 80, "method": 3}
    return _animation(pictures, "WEBP", fps, duration=durations, **options)


def _encode_mp4(pixels: np.ndarray, fps: float, scale: int) -> bytes:
    import mediapy

    if not mediapy.video_is_available():
        raise RuntimeError(
            "MP4 needs the program ffmpeg, which was not found: install it, "
            "or write .gif or .webp, which need nothing"
        )
    pixels = _enlarge(pixels, scale)
    # Colour has half the resolution of brightness, so that both sides must be even.
    even = [(0, size % 2) for size in pixels.shape[1:3]]
    pixels = np.pad(pixels, [(0, 0), *even, (0, 0)], constant_values=255)
    try:
        return mediapy.compress_video(pixels, codec="h264", fps=fps)
    except (RuntimeError, OSError) as error:
        raise OSError(f"ffmpeg could not write the video; is the disk full? ({error})") from error


_ENCODERS: dict[str, Callable[[np.ndarray, float, int], bytes]] = {
    ".gif": _encode_gif,
    ".webp": _encode_webp,
    ".mp4": _encode_mp4,
}


def _display_png(data: bytes, alt: str, handle: Any = None) -> Any:
    """Shows a PNG in the cell's output, or in place of the one shown before; returns its handle."""
    from IPython.display import display

    # Not IPython.display.Image: in Colab's IPython 7 it takes no alt text.
    bundle = {"image/png": base64.b64encode(data).decode(), "text/plain": alt}
    options = {"metadata": {"image/png": {"alt": alt}}, "raw": True}
    if handle is None:
        return display(bundle, display_id=True, **options)
    handle.update(bundle, **options)
    return handle


def _in_kernel() -> bool:
    """Tells whether this runs in a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def _row(name: str, images: ArrayLike) -> np.ndarray:
    """Returns what `Progress.report` got as `(n, height, width, 3)` floats in [0, 1]."""
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] < 3:
        raise ValueError(
            f"{name} must be states or RGB pictures, (n, height, width, channels), "
            f"got {images.shape}"
        )
    images = images[:_PICTURES_PER_ROW]
    images = to_rgb(images) if images.shape[-1] >= 4 else images
    images = np.nan_to_num(images).clip(0, 1)
    return np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)


def _window(count: int) -> int:
    """Returns over how many of `count` losses the median is taken: the last tenth, up to 100."""
    return min(_LONGEST_WINDOW, math.ceil(count / 10))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
