"""The text, the live picture, the stop at an explosion, and what an interrupt leaves behind."""

import base64
import contextlib
import io
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from nbclient import NotebookClient
from PIL import Image
from test_pictures import growth, read_back

from nca_helpers import progress as progress_module
from nca_helpers.model import NCA
from nca_helpers.pictures import to_rgb
from nca_helpers.progress import Diverged, Progress

ROOT = Path(__file__).parents[1]


# Progress, as text


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def curves(monkeypatch):
    """The curves of each live picture, as in a kernel: the losses and their median, `(x, y)`."""
    seen = []

    def look(canvas):
        seen.append([line.get_data() for line in canvas.figure.axes[0].get_lines()])
        canvas.get_renderer()

    monkeypatch.setattr(progress_module, "in_kernel", lambda: True)
    monkeypatch.setattr(progress_module, "display_png", lambda *arguments: None)
    monkeypatch.setattr(FigureCanvasAgg, "draw", look)
    return seen


def test_lines_of_a_run(clock, capsys):
    progress = Progress(3000, every=5.0)
    for step in progress:
        clock.now += 30.0 if step < 2 else 0.06  # the first two compile
        progress.report(10.0 ** -(step / 1000))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/3000  log10(loss) 0.00  elapsed 0:30"
    pattern = r"step (\d+)/3000  log10\(loss\) (-\d\.\d\d)  elapsed (\d+):(\d\d)  ETA (\d+):(\d\d)"
    assert lines[1] == "step 2/3000  log10(loss) -0.00  elapsed 1:00"
    for line in lines[2:-1]:
        step, loss, *times = re.fullmatch(pattern, line).groups()
        minutes, seconds, minutes_left, seconds_left = map(int, times)
        assert float(loss) == pytest.approx(-int(step) / 1000, abs=0.06)
        assert 60 * minutes + seconds == pytest.approx(60 + 0.06 * (int(step) - 2), abs=1)
        assert 60 * minutes_left + seconds_left == pytest.approx(0.06 * (3000 - int(step)), abs=1)
    assert re.fullmatch(r"step 3000/3000  log10\(loss\) -2.9\d  elapsed (3:59|4:00)", lines[-1])
    assert 15 <= len(lines) <= 40
    assert progress.step == 3000
    np.testing.assert_allclose(progress.losses, 10.0 ** -(np.arange(3000) / 1000))


@pytest.mark.parametrize("total", [1, 2, 30, 1000, 50_000])
@pytest.mark.parametrize("seconds", [0.001, 1.0, 60.0])
def test_never_more_than_40_lines(clock, capsys, total, seconds):
    for step in (progress := Progress(total)):
        clock.now += seconds
        if step % max(1, total // 1000) == 0:
            progress.report(1.0)
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= 40
    assert lines[-1].startswith(f"step {total}/{total}")


def test_hours_and_another_unit(clock, capsys):
    for _ in (progress := Progress(2, unit="generation")):
        clock.now += 3725
        progress.report(0.01)
    assert "generation 2/2  log10(loss) -2.00  elapsed 2:04:10" in capsys.readouterr().out


def test_a_turn_of_several_steps_another_number_and_a_note(clock, capsys):
    progress, turns = Progress(35, stride=10), []
    for step in progress:
        clock.now += 10
        progress.report(0.1, note="0.035 s/step", fitness=jnp.float32(-0.25))
        turns.append((step, progress.step))
    assert turns == [(0, 10), (10, 20), (20, 30), (30, 35)]
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == "step 10/35  log10(loss) -1.00  fitness -0.25  0.035 s/step  elapsed 0:10"
    assert second == "step 20/35  log10(loss) -1.00  fitness -0.25  0.035 s/step  elapsed 0:20"
    assert third.endswith("fitness -0.25  0.035 s/step  elapsed 0:30  ETA 0:05")
    assert last.startswith("step 35/35")
    with pytest.raises(ValueError, match="stride"):
        Progress(25, stride=0)


def test_an_interrupted_loop_shows_where_and_goes_on(clock, capsys):
    progress = Progress(100)
    with pytest.raises(KeyboardInterrupt):
        for step in progress:
            clock.now += 5
            progress.report(0.1)
            if step == 9:
                raise KeyboardInterrupt
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1/100  log10")
    assert last == "stopped after step 10/100  log10(loss) -1.00  elapsed 0:50"
    assert progress.step == 10 and len(progress.losses) == 10
    assert list(progress) == list(range(10, 100))
    assert capsys.readouterr().out.splitlines()[-1].startswith("step 100/100")


def test_a_run_of_an_earlier_session_goes_on(clock, capsys):
    history = 10.0 ** -(np.arange(40) / 100)
    progress = Progress(100, every=5.0)
    progress.report(9.0)  # and is forgotten
    progress.restore(np.int64(40), history)
    assert (progress.step, type(progress.step)) == (40, int)
    np.testing.assert_array_equal(progress.losses, history)
    capsys.readouterr()

    steps = []
    for step in progress:
        clock.now += 30.0 if step == 40 else 6.0
        steps.append(step)
        progress.report(10.0 ** -(step / 100))
    assert steps == list(range(40, 100))
    np.testing.assert_allclose(progress.losses, 10.0 ** -(np.arange(100) / 100))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 41/100  log10(loss) -0.38  elapsed 0:30"
    assert lines[1] == "step 45/100  log10(loss) -0.42  elapsed 0:54  ETA 5:30"
    assert len(lines) <= 40


def test_a_restored_run_of_few_reports_or_none(capsys, curves):
    progress = Progress(1000)
    progress.restore(900, [0.3, 0.2, 0.1])
    next(iter(progress))  # and leave the loop
    (((steps, losses), _),) = curves
    assert steps.tolist() == [300, 600, 900]
    np.testing.assert_allclose(losses, np.log10([0.3, 0.2, 0.1]))
    progress.restore(7)
    assert progress.step == 7 and progress.losses.size == 0
    progress.restore(1000, np.full(1000, 0.01))
    capsys.readouterr()
    assert list(progress) == []
    assert capsys.readouterr().out.startswith("step 1000/1000  log10(loss) -2.00  elapsed 0:00")
    progress.restore(0, [])
    assert next(iter(progress)) == 0


@pytest.mark.parametrize("step", [-1, 11, 2.0, True, None])
def test_progress_restores_no_such_step(step):
    with pytest.raises(ValueError, match=f"step must be an integer from 0 to 10, got {step!r}"):
        Progress(10).restore(step)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (np.ones(4), r"of shape \(n,\), n at most 3"),
        (np.ones((1, 1)), r"of shape \(n,\), n at most 3"),
        (1.0, r"of shape \(n,\), n at most 3"),
        ([1.0, np.nan], "finite, got NaN or infinity 1 times"),
    ],
)
def test_progress_restores_no_such_losses(losses, message):
    progress = Progress(10)
    with pytest.raises(ValueError, match=f"losses must be {message}"):
        progress.restore(3, losses)
    assert progress.step == 0


def test_losses_on_a_device(capsys):
    for step in (progress := Progress(3)):
        progress.report(jnp.float32(step), before=jnp.zeros((2, 4, 4, 16)))
    np.testing.assert_array_equal(progress.losses, [0, 1, 2])


def test_the_loss_is_read_one_turn_late_so_that_no_device_waits(clock, capsys):
    events = []

    class Loss:
        def __init__(self, turn):
            self.turn = turn

        def __float__(self):
            events.append(f"loss {self.turn}")
            return 0.1

    for turn in (progress := Progress(5, every=50)):
        events.append(f"turn {turn}")
        progress.report(Loss(turn))
    # The first and the last are shown, and so must be known.
    order = "turn 0, loss 0, turn 1, turn 2, loss 1, turn 3, loss 2, turn 4, loss 3, loss 4"
    assert ", ".join(events) == order


def test_progress_refuses():
    for total in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match="total must be an integer of at least 1"):
            Progress(total)
    with pytest.raises(ValueError, match="every must be"):
        Progress(3, every=-1)
    with pytest.raises(ValueError, match=r"loss must be a scalar, got .* shape \(2,\)"):
        Progress(3).report(np.ones(2))
    with pytest.raises(ValueError, match=r"after must be states .* got .* shape \(4, 4\)"):
        Progress(3).report(1.0, after=np.ones((4, 4)))


# The curve


def test_the_curve_is_the_losses_and_their_running_median(curves, capsys):
    noise = np.random.default_rng(0).normal(0, 0.2, 5000)
    progress = Progress(5000)
    progress.restore(5000, 10.0 ** (noise - np.linspace(1, 3, 5000)))
    assert list(progress) == []
    (lines,) = curves
    for (steps, values), scatter in zip(lines, (1.0, 0.15), strict=True):
        assert len(steps) == 1000
        np.testing.assert_allclose(values, -np.interp(steps, [1, 5000], [1, 3]), atol=scatter)
    assert np.std(lines[0][1] - lines[1][1]) > 0.15


def test_every_loss_is_on_the_curve_at_its_own_step(curves, clock, capsys):
    progress = Progress(50, every=5.0)
    progress.restore(20, 10.0 ** -np.arange(20))
    for step in progress:
        clock.now += 6.0
        progress.report(10.0**-step)
    assert len(curves) == 30
    for count, ((steps, losses), _) in enumerate(curves, 21):
        np.testing.assert_array_equal(steps, np.arange(1, count + 1))
        np.testing.assert_allclose(losses, -np.arange(count))


@pytest.mark.parametrize("losses", [[0.0, 0.0], [0.1, 0.0, 0.1], [-1.0, 1.0], [1e308, 5e-324]])
def test_losses_without_a_logarithm_are_drawn(monkeypatch, capsys, losses):
    shown = []
    monkeypatch.setattr(progress_module, "in_kernel", lambda: True)
    monkeypatch.setattr(progress_module, "display_png", lambda data, *_: shown.append(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (progress := Progress(len(losses), every=60)):
            progress.report(losses[step], after=np.full((1, 4, 4, 4), np.nan))
    np.testing.assert_array_equal(progress.losses, losses)
    for data in shown:
        Image.open(io.BytesIO(data)).load()


# What explodes


@pytest.mark.parametrize("value, word", [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("name", ["loss", "fitness"])
def test_the_first_number_that_is_not_finite_stops_the_loop(clock, capsys, value, word, name):
    progress, turns = Progress(100, unit="generation", stride=2), []
    with pytest.raises(Diverged, match=f"^The {name} of generation 10 is {word}: ") as stop:
        for step in progress:
            turns.append(step)
            numbers = {"loss": 0.1, "fitness": -0.1}
            progress.report(**numbers | ({name: jnp.float32(value)} if step == 8 else {}))
    assert turns == [0, 2, 4, 6, 8, 10]  # it is known a turn later
    assert progress.losses.tolist() == [0.1] * 4
    assert "learning rate" in str(stop.value) and "saved" in str(stop.value)
    assert "\n" not in str(stop.value)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("stopped after generation 10/100  log10(loss) -1.00")
    assert isinstance(stop.value, ArithmeticError)


@pytest.mark.parametrize("step", [0, 3, 9])
def test_a_loss_that_is_due_to_be_shown_stops_the_loop_at_once(clock, capsys, step):
    progress = Progress(10)
    with pytest.raises(Diverged, match=f"The loss of step {step + 1} is NaN"):
        for turn in progress:
            clock.now += 6
            progress.report(np.nan if turn == step else 0.1)
    assert turn == step and progress.losses.size == step
    assert "nan" not in capsys.readouterr().out


def test_after_an_explosion_restore_alone_leads_on(capsys):
    progress = Progress(10, every=60)
    with pytest.raises(Diverged):
        for step in progress:
            progress.report(0.1 if step < 5 else np.nan)
    for use in (
        lambda: next(iter(progress)),
        lambda: progress.report(0.1),
        lambda: progress.settled({"weights": np.ones(3)}),
    ):
        with pytest.raises(Diverged, match="The loss of step 6 is NaN"):
            use()
    progress.restore(4, progress.losses[:4])
    assert list(progress) == list(range(4, 10))
    assert progress.settled("run") == "run"


def test_what_is_saved_is_finite(capsys):
    """A training whose update is infinite in its 30th step, at a finite loss."""
    weights, saved, progress = np.ones(3), [], Progress(100, every=60)

    def save():
        run = {"weights": weights.copy(), "losses": progress.losses}
        saved.append((progress.step, progress.settled(run)))

    with pytest.raises(Diverged, match=r"After step 30, \['weights'\] is not finite"):
        for step in progress:
            loss = float(np.mean(weights**2))
            weights *= np.inf if step == 29 else 0.99
            progress.report(loss)
            if progress.step % 10 == 0:
                save()
    assert [step for step, _ in saved] == [10, 20]
    for step, run in saved:
        assert len(run["losses"]) == step
        np.testing.assert_allclose(run["weights"], 0.99**step)


def test_every_leaf_of_a_run_is_looked_at():
    progress = Progress(3)
    nca = NCA(rngs=nnx.Rngs(0))
    run = {
        "weights": nnx.state(nca),
        "key": jax.random.key(0),
        "old key": jax.random.PRNGKey(0),
        "nested": ({"step": 3, "mask": np.ones(3, bool), "name": "lizard"}, None, 0.5),
        "half": jnp.ones(3, jnp.bfloat16),
    }
    assert progress.settled(run) is run
    bad = [run | {"half": jnp.asarray([1, np.inf], jnp.bfloat16)}, run | {"nested": (1, np.nan)}]
    nca.update.bias[...] = nca.update.bias[...].at[3].set(np.nan)
    for run in [*bad, {"weights": nnx.state(nca)}, {"curve": [np.float64(-np.inf)]}]:
        with pytest.raises(Diverged, match="is not finite"):
            progress.settled(run)
    with pytest.raises(Diverged, match=r"After step 0, .*weights.*update.*bias.* is not finite"):
        progress.settled({"weights": nnx.state(nca)})


# Interrupts


def press_stop():
    signal.raise_signal(signal.SIGINT)


MOMENTS = ["beginning", "torn", "reported", "end"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("turn", [0, 4, 9])
@pytest.mark.parametrize("presses", [1, 3])
def test_an_interrupt_waits_until_the_turn_is_done(capsys, moment, turn, presses):
    progress, weights, pool = Progress(10, every=60), [], []

    def reach(now):
        if (now, step) == (moment, turn):
            for _ in range(presses):
                press_stop()

    with pytest.raises(KeyboardInterrupt):
        for step in progress:
            reach("beginning")
            weights.append(step)
            reach("torn")
            pool.append(step)
            progress.report(0.1)
            reach("reported")
            pool[-1] += 100
            reach("end")
    assert progress.step == turn + 1 == progress.losses.size
    assert weights == list(range(turn + 1)) and pool == [100 + step for step in weights]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(progress) == list(range(turn + 1, 10))


def test_an_interrupt_without_a_report_waits_too():
    progress = Progress(5)
    with pytest.raises(KeyboardInterrupt):
        for _ in progress:
            press_stop()
    assert progress.step == 1


def leave_by(way):
    for _ in Progress(5):
        if way == "break":
            break
        if way == "return":
            return
        if way == "error":
            raise RuntimeError
        if way == "interrupt":
            press_stop()


@pytest.mark.parametrize("way", ["end", "break", "return", "error", "interrupt"])
def test_outside_the_loop_an_interrupt_is_what_it_was(capsys, way):
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        leave_by(way)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        press_stop()


def test_a_loop_in_a_loop_is_left_with_the_outer_one(capsys):
    outer, turns = Progress(3), []
    with pytest.raises(KeyboardInterrupt):
        for step in outer:
            for inner_step in Progress(2):
                press_stop()
                turns.append((step, inner_step))
    assert turns == [(0, 0), (0, 1)] and outer.step == 1


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL, None])
def test_what_an_interrupt_does_besides_raising_stays(capsys, handler):
    """Where it is ignored, as in the background of a shell, or is somebody's own function."""
    calls = []
    mine = (lambda *arguments: calls.append(arguments)) if handler is None else handler
    before = signal.signal(signal.SIGINT, mine)
    try:
        for step in (progress := Progress(3)):
            assert handler is None or signal.getsignal(signal.SIGINT) == handler
            if handler != signal.SIG_DFL:
                press_stop()
            assert len(calls) == (step if handler is None else 0)
        assert signal.getsignal(signal.SIGINT) == mine
    finally:
        signal.signal(signal.SIGINT, before)
    assert progress.step == 3
    assert [number for number, _ in calls] == [signal.SIGINT] * (3 if handler is None else 0)


def test_an_interrupt_of_the_last_picture_is_not_lost(monkeypatch, capsys):
    monkeypatch.setattr(progress_module, "in_kernel", lambda: True)
    monkeypatch.setattr(progress_module, "display_png", lambda *arguments: press_stop())
    progress = Progress(2)
    progress.restore(2, [0.2, 0.1])
    with pytest.raises(KeyboardInterrupt):
        list(progress)
    assert capsys.readouterr().out.startswith("step 2/2")


def test_another_thread_leaves_interrupts_alone(capsys):
    steps = []
    thread = threading.Thread(target=lambda: steps.extend(Progress(3)))
    thread.start()
    thread.join()
    assert steps == [0, 1, 2]


INTERRUPTED = """
import hashlib, os, random, signal, sys, threading, time
from nca_helpers.progress import Progress

sys.setswitchinterval(1e-5)


class Training:
    def __init__(self):
        self.weights, self.pool, self.log = b"", [b""] * 8, []

    def turn(self, step):
        "Changes one thing after another, slowly."
        for _ in range(20):
            self.weights = hashlib.sha256(self.weights + self.pool[step % 8]).digest()
        for index in range(8):
            self.pool[index] = hashlib.sha256(self.weights + self.pool[index]).digest()
        self.log.append(step)

    def result(self):
        return self.weights, self.pool, self.log


training, progress = Training(), Progress(10**9, every=0.002)
going, stopped = threading.Event(), threading.Event()


def interrupt():
    random.seed(int(sys.argv[1]))
    for _ in range(300):
        going.wait()
        going.clear()
        time.sleep(random.uniform(0, 0.003))
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait()
        stopped.clear()


threading.Thread(target=interrupt, daemon=True).start()
for stops in range(300):
    try:
        going.set()
        for step in progress:
            training.turn(step)
            progress.report(1 / (1 + step))
            training.log[-1] = -step
    except KeyboardInterrupt:
        assert progress.losses.size == progress.step
        stopped.set()
alone = Training()
for step in range(progress.step):
    alone.turn(step)
    alone.log[-1] = -step
assert training.result() == alone.result(), "another result"
assert progress.losses.tolist() == [1 / (1 + step) for step in range(progress.step)]
print("\\nsteps", progress.step)
"""


def test_300_interrupts_at_random_moments_change_nothing():
    """Real signals, at whatever the process is doing just then."""
    seed = str(random.randrange(10**6))
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, seed], capture_output=True, text=True, cwd=ROOT
    )
    assert ran.returncode == 0, f"seed {seed}: {ran.stderr}"
    assert int(ran.stdout.split()[-1]) >= 300
    # Some may have come before the loop's first turn.
    assert 290 <= ran.stdout.count("stopped after step") <= 300


# In a notebook


SETUP = """
import os, signal
import numpy as np
from tests.test_pictures import growth
from nca_helpers import Progress, show_video, to_rgb
states = growth(100, 40)
random = np.random.default_rng(0)
"""
SHOW = 'show_video(to_rgb(states), alt="a disc grows")'
TRAIN = """
for step in (progress := Progress(2000, every=0.3)):
    loss = 10 ** (random.normal() * 0.2 - step / 1000)
    progress.report(loss, before=states[:8], after=states[-8:])
"""
INTERRUPT = """
try:
    for step in (progress := Progress(100)):
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
        progress.report(0.1)
except KeyboardInterrupt:
    print("interrupted")
"""
EXPLODE = """
for step in (progress := Progress(100)):
    progress.report(0.1 if step < 10 else np.nan)
"""


@pytest.fixture(scope="module")
def outputs():
    """Returns the outputs of the four cells, executed in a kernel of their own."""
    sources = SETUP, SHOW, TRAIN, INTERRUPT, EXPLODE
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[-1].metadata["tags"] = ["raises-exception"]
    notebook = nbformat.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()
    return [cell.outputs for cell in notebook.cells[1:]]


def pictures_and_text(outputs) -> tuple[list[dict], str]:
    pictures = [output for output in outputs if output.output_type == "display_data"]
    return pictures, "".join(output.text for output in outputs if output.output_type == "stream")


def test_show_video_in_a_kernel(outputs):
    (picture,), _ = pictures_and_text(outputs[0])
    png = picture["data"]["image/png"]
    assert len(png) < 300_000
    frames, durations, info = read_back(base64.b64decode(png))
    assert frames.shape == (100, 160, 160, 3)
    assert sum(durations) == pytest.approx(1000 * 100 / 30, abs=1)
    assert info["loop"] == 0
    wanted = 255 * to_rgb(growth(100, 40)).repeat(4, 1).repeat(4, 2)
    assert np.abs(frames - wanted).mean() < 2
    assert (frames[wanted.min(-1) == 255] == 255).all()
    assert (
        picture["metadata"]["image/png"]["alt"] == picture["data"]["text/plain"] == "a disc grows"
    )


def test_a_run_leaves_one_small_picture_and_few_lines(outputs):
    (picture,), text = pictures_and_text(outputs[1])
    assert outputs[1][0] is picture  # so that the lines are one block
    png = base64.b64decode(picture["data"]["image/png"])
    assert len(png) < 60_000
    assert read_back(png)[0].shape[0] == 1
    alt = picture["metadata"]["image/png"]["alt"]
    assert alt == "After 2000 of 2000 steps: loss, before, after"
    assert 2 <= len(text.splitlines()) <= 40
    assert text.splitlines()[-1].startswith("step 2000/2000")


def test_an_interrupted_run_leaves_its_last_picture(outputs):
    (picture,), text = pictures_and_text(outputs[2])
    assert picture["metadata"]["image/png"]["alt"] == "After 11 of 100 steps: loss"
    *_, last, interrupted = text.splitlines()
    assert last.startswith("stopped after step 11/100") and interrupted == "interrupted"


def test_an_explosion_is_one_sentence_without_a_traceback(outputs):
    *_, error = outputs[3]
    assert error.output_type == "error" and error.ename == "Diverged"
    assert error.evalue.startswith("The loss of step 11 is NaN: the training has exploded")
    assert error.traceback == [f"Diverged: {error.evalue}"]
