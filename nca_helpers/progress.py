"""Progress of a training loop: text, a live picture, and a stop where the training explodes.

    for step in (progress := Progress(3000)):
        ...
        progress.report(loss, before=states, after=new_states)
    save_run("lizard_run", progress.settled(run), step=progress.step)

An interrupt waits until the turn of the loop is over: a step is done whole or not at all.
"""

import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nca_helpers.checks import check_finite, check_integer, check_number, require
from nca_helpers.pictures import display_png, in_kernel, tile, to_rgb
from nca_helpers.video import encode_pictures


class Diverged(FloatingPointError):
    """A training's numbers are no longer finite. A notebook shows the sentence, no traceback."""

    def __str__(self) -> str:
        return (
            f"{self.args[0]}: the training has exploded, and what it had learnt is lost. A run "
            "that was saved before is finite. Try a lower learning rate, or limit how far one step "
            "can go: the gradient by its norm, an evolution by its stdev."
        )

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Progress:
    """Counts the steps of a loop and shows how it goes, as text and, in a notebook, a picture.

    Iterate over it, and report once a turn. Text is a line every few seconds, some 40 at most for
    a whole run; its loss is the median of the last tenth, of 100 at most, for a single one swings:

        step 1200/3000  log10(loss) -3.12  elapsed 1:12  ETA 1:47

    A loop that was left shows where it stopped; iterating again goes on from there, and after
    `restore` from where an earlier session stopped. After a number that is not finite only
    `restore` leads on. `total` and `step` are the steps of the whole run, and those that are done.

    Args:
        total: Steps of the whole run, at least 1.
        every: Seconds between two lines or redrawings, at least.
        unit: What a step is called: "generation", say.
        stride: Steps that one turn of the loop takes; the last turn may take fewer.
    """

    def __init__(self, total: int, every: float = 5.0, unit: str = "step", stride: int = 1):
        """Starts nothing yet: the clock starts with the loop."""
        check_number("every", every, 0)
        self.total = check_integer("total", total, 1)
        self._stride = check_integer("stride", stride, 1)
        self._every, self._unit = every, unit
        self._states: dict[str, np.ndarray] = {}
        self.restore(0)
        self._start_clock()

    def __iter__(self) -> Iterator[int]:
        self._settle()
        self._start_clock()
        with _interrupts_held_back() as deliver_interrupts:
            try:
                while self.step < self.total:
                    self._after_turn = min(self.step + self._stride, self.total)
                    yield self.step
                    self.step = self._after_turn
                    deliver_interrupts()
            finally:
                if self._line_step != self.total:
                    self._show(stopped=self.step < self.total)

    def restore(self, step: int, losses: ArrayLike = ()) -> None:
        """Goes on with a run of an earlier session: the next loop begins at `step`.

        `losses` are those of that session, at most one a step; fewer count as evenly spread.
        """
        step = check_integer("step", step, 0, self.total)
        losses = np.asarray(losses, np.float64)
        accepted = f"of shape (n,), n at most {step}, the steps done"
        require(losses.ndim == 1 and losses.size <= step, "losses", accepted, losses)
        check_finite("losses", losses)
        self.step, self._after_turn = step, min(step + self._stride, self.total)
        steps = np.linspace(0, step, losses.size + 1)[1:].round().astype(int)
        self._losses = dict(zip(steps.tolist(), losses.tolist(), strict=True))
        self._pending: tuple[int, dict[str, ArrayLike]] | None = None
        self._numbers: dict[str, float] = {}

    def report(self, loss: ArrayLike, note: str = "", **shown: ArrayLike) -> None:
        """Takes note of one turn, and shows it if it is time.

        Args:
            loss: The step's loss, a scalar. It is read from its device one step later, so that
                the device is never kept waiting.
            note: What else the line of text should say.
            **shown: By name: scalars for the line of text, read and checked as the loss is; and
                states `(n, height, width, channels)` for the picture, which shows the first 8.

        Raises:
            Diverged: A scalar of this turn or the one before is NaN or infinite.
        """
        require(np.ndim(loss) == 0, "loss", "a scalar", loss)
        self._settle()
        states = {name: value for name, value in shown.items() if np.ndim(value)}
        numbers = {name: value for name, value in shown.items() if name not in states}
        self.step, self._note = self._after_turn, note
        self._pending = self.step, {"loss": loss} | numbers
        if time.monotonic() - self._shown_at >= self._every or self.step == self.total:
            self._settle()
            for name, value in states.items():
                require(np.ndim(value) == 4, name, "states (n, height, width, channels)", value)
                self._states[name] = np.nan_to_num(to_rgb(value[:8]))
            self._show()
            self._shown_at = time.monotonic()
        self._turns += 1
        if self._turns == 2:
            self._compiled = self.step, time.monotonic()

    def settled(self, run: Any) -> Any:
        """Returns `run`, a tree of arrays, or raises Diverged: it or a report is not finite.

        To be called on what is saved: the gradient of a finite loss may still be infinite.
        """
        self._settle()
        for path, leaf in jax.tree_util.tree_leaves_with_path(run):
            is_float = jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating)
            if is_float and not np.isfinite(np.asarray(leaf)).all():
                name = jax.tree_util.keystr(path)
                raise Diverged(f"After {self._unit} {self.step}, {name} is not finite")
        return run

    @property
    def losses(self) -> np.ndarray:
        """The losses that were reported and are finite, `(n,)` float64."""
        with contextlib.suppress(Diverged):
            self._settle()
        return np.array(list(self._losses.values()), np.float64)

    def _settle(self) -> None:
        """Waits for what was reported last."""
        if self._pending is None:
            return
        step, numbers = self._pending
        numbers = {name: float(value) for name, value in numbers.items()}
        for name, number in numbers.items():
            if not math.isfinite(number):
                text = str(number).replace("nan", "NaN")
                raise Diverged(f"The {name} of {self._unit} {step} is {text}")
        self._losses[step] = numbers.pop("loss")
        self._numbers, self._pending = numbers, None

    def _start_clock(self) -> None:
        self._started_at, self._shown_at = time.monotonic(), -math.inf
        # The first two turns may compile: the time that is left is told by those after them.
        self._turns, self._compiled = 0, (0, 0.0)
        self._line_step, self._note, self._display = 0, "", None

    @np.errstate(divide="ignore", invalid="ignore")
    def _show(self, stopped: bool = False) -> None:
        # The picture first: then all lines are one block of text in the saved notebook.
        losses, done, now = self.losses, self.step, time.monotonic()
        if losses.size and in_kernel():
            names = ", ".join(["loss", *self._states])
            alt = f"After {done} of {self.total} {self._unit}s: {names}"
            self._display = display_png(self._figure(losses), alt, self._display)
        # Soon at first, then evenly: a long run gets no more lines than a short one.
        even = min(self._line_step, self.total / 25)
        if stopped or done == self.total or done - self._line_step >= even:
            self._line_step = done
            parts = [f"{'stopped after ' if stopped else ''}{self._unit} {done}/{self.total}"]
            if losses.size:
                parts += [f"log10(loss) {np.log10(np.median(losses[-_window(losses) :])):.2f}"]
            parts += [f"{name} {number:.4g}" for name, number in self._numbers.items()]
            parts += [self._note] * bool(self._note) + [f"elapsed {_clock(now - self._started_at)}"]
            step, at = self._compiled
            if 0 < step < done < self.total and not stopped:
                parts += [f"ETA {_clock((now - at) / (done - step) * (self.total - done))}"]
            print(*parts, sep="  ", flush=True)

    def _figure(self, losses: np.ndarray) -> bytes:
        """Returns the live picture as PNG: the losses in log10, their median, and the states."""
        # pyplot knows nothing of this figure, so it cannot show it a second time.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.6), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        mosaic = [["loss", name] for name in self._states] or [["loss"]]
        axes = figure.subplot_mosaic(mosaic, width_ratios=(2, 3)[: len(mosaic[0])])
        curve = axes.pop("loss")
        # More than this cannot be told apart, and makes the picture large.
        few = np.linspace(0, losses.size - 1, min(losses.size, 1000)).round().astype(int)
        half = _window(losses) // 2
        medians = [np.median(losses[max(0, i - half) : i + half + 1]) for i in few]
        steps, dots = np.array(list(self._losses))[few], {"markersize": 2, "alpha": 0.5}
        # The Okabe-Ito palette: told apart by colour-blind readers.
        curve.plot(steps, np.log10(losses[few]), ".", color="#56B4E9", **dots)
        curve.plot(steps, np.log10(medians), color="#D55E00")
        curve.legend([f"each {self._unit}", "running median"], frameon=False, fontsize="small")
        curve.set(xlabel=self._unit, ylabel="log10(loss)")
        curve.spines[["top", "right"]].set_visible(False)
        for name, axis in axes.items():
            row = np.pad(self._states[name], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1)
            axis.imshow(tile(row, columns=len(row)), interpolation="nearest")
            axis.set_title(name, fontsize="medium", loc="left")
            axis.set_axis_off()
        canvas.draw()
        return encode_pictures("PNG", np.asarray(canvas.buffer_rgba())[None, ..., :3], 1, 1)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[Callable[[], Any]]:
    """Keeps interrupts until the function that it yields is called, or the block has ended."""
    handler, held = signal.getsignal(signal.SIGINT), []
    # Other threads are never interrupted; what is no function ends the process or ignores it.
    able = threading.current_thread() is threading.main_thread() and callable(handler)
    if able:
        signal.signal(signal.SIGINT, lambda *arguments: held.append(arguments))
    try:
        yield lambda: held and handler(*held.pop())
    finally:
        if able:
            signal.signal(signal.SIGINT, handler)
    if held:
        handler(*held.pop())


def _window(losses: np.ndarray) -> int:
    """Returns over how many losses the median is taken: the last tenth, up to 100."""
    return min(100, math.ceil(losses.size / 10))


def _clock(seconds: float) -> str:
    return re.sub("^0:0?", "", str(timedelta(seconds=round(seconds))))
