import base64
import io
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import mediapy
import nbformat
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

from nca_helpers import video
from nca_helpers.video import (
    Progress,
    plot_loss,
    save_video,
    show_images,
    show_video,
    tile,
    to_rgb,
)

ROOT = Path(__file__).parents[1]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


def growth(num_frames: int = 20, size: int = 24, noise: float = 0.03) -> np.ndarray:
    """Returns states `(num_frames, size, size, 4)`: a growing disc; no two are alike."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    states = []
    for radius in np.linspace(2, size / 2 - 2, num_frames):
        alpha = np.clip(radius - np.hypot(x, y), 0, 1)
        colour = np.stack([x / size + 0.5, y / size + 0.5, np.full_like(x, radius / size)], -1)
        state = np.concatenate([alpha[..., None] * colour, alpha[..., None]], -1)
        states.append(state + noise * random.normal(size=state.shape) * (alpha[..., None] > 0))
    return np.asarray(states, np.float32)


def read_back(source: Path | bytes) -> tuple[np.ndarray, list[float], dict]:
    """Reads an animated picture: its frames, how many ms each is shown, and its info."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        frames, durations, info = [], [], dict(image.info)
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()  # WebP knows a frame's duration only once it is decoded
            durations.append(image.info.get("duration", 0))
            frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames), durations, info


@pytest.fixture
def no_ffmpeg(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert shutil.which("ffmpeg") is None


# to_rgb


def test_to_rgb_agrees_with_pillow():
    random = np.random.default_rng(0)
    alpha = random.integers(0, 256, (3, 9, 7, 1))
    state = np.concatenate([random.integers(0, alpha + 1, (3, 9, 7, 3)), alpha], -1).astype(
        np.uint8
    )
    pictures = to_rgb(np.concatenate([state / 255, random.normal(size=(3, 9, 7, 5))], -1))
    assert pictures.dtype == np.float32
    for picture, pixels in zip(pictures, state, strict=True):
        straight = Image.frombytes("RGBa", (7, 9), pixels.tobytes()).convert("RGBA")
        over_white = Image.alpha_composite(Image.new("RGBA", (7, 9), "white"), straight)
        np.testing.assert_allclose(picture, np.asarray(over_white)[..., :3] / 255, atol=2 / 255)


def test_to_rgb_clips_and_an_empty_grid_is_white():
    assert (to_rgb(np.zeros((5, 6, 16))) == 1).all()
    state = np.zeros((1, 2, 4))
    state[0, 0] = [2.0, -1.0, 0.25, 3.0]  # alpha counts as 1
    np.testing.assert_array_equal(to_rgb(state)[0, 0], [1.0, 0.0, 0.25])


def test_to_rgb_keeps_the_kind_of_array():
    states = growth(3)
    rgb = to_rgb(states)
    assert isinstance(rgb, np.ndarray)
    traced = jax.jit(to_rgb)(jnp.asarray(states))
    assert isinstance(traced, jax.Array)
    np.testing.assert_allclose(traced, rgb, atol=1e-6)
    assert isinstance(to_rgb(states.tolist()), np.ndarray)
    assert to_rgb(jnp.asarray(states, jnp.bfloat16)).dtype == jnp.float32


def test_to_rgb_keeps_nan():
    state = np.ones((2, 2, 4), np.float32)
    state[0, 0, 0] = np.nan
    assert np.isnan(to_rgb(state)).sum() == 1


@pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4), ()])
def test_to_rgb_refuses_what_is_no_state(shape):
    with pytest.raises(ValueError, match=r"state must have shape .* got"):
        to_rgb(np.zeros(shape))


# tile


def test_tile_puts_pictures_in_rows():
    images = np.random.default_rng(0).random((5, 3, 4, 3))
    sheet = tile(images, columns=2)
    assert sheet.shape == (9, 8, 3)
    for index, image in enumerate(images):
        y, x = 3 * (index // 2), 4 * (index % 2)
        np.testing.assert_array_equal(sheet[y : y + 3, x : x + 4], image)
    assert (sheet[6:, 4:] == 1).all()


def test_tile_of_a_video_of_a_batch():
    frames = np.random.default_rng(0).integers(0, 250, (4, 3, 2, 2, 3), np.uint8)
    sheets = tile(frames)
    assert sheets.shape == (4, 4, 4, 3) and sheets.dtype == np.uint8
    np.testing.assert_array_equal(sheets[2], tile(frames[2]))
    assert (sheets[:, 2:, 2:] == 255).all()


@pytest.mark.parametrize(
    ("count", "height", "width", "shape"),
    [(1, 8, 8, (8, 8)), (4, 8, 8, (16, 16)), (8, 8, 8, (24, 24)), (3, 10, 90, (30, 90))],
)
def test_tile_is_nearly_square(count, height, width, shape):
    assert tile(np.zeros((count, height, width, 3))).shape == (*shape, 3)


def test_tile_refuses():
    with pytest.raises(ValueError, match="images must have shape"):
        tile(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="at least one picture"):
        tile(np.zeros((0, 4, 4, 3)))
    with pytest.raises(ValueError, match="columns must be an integer of at least 1, got 0"):
        tile(np.zeros((2, 4, 4, 3)), columns=0)


# save_video


@pytest.mark.parametrize("ending", [".gif", ".webp", ".WebP"])
def test_animated_pictures_read_back_without_ffmpeg(tmp_path, no_ffmpeg, ending):
    rgb = to_rgb(growth(20))
    path = save_video(tmp_path / "new" / f"video{ending}", rgb, fps=30, scale=3)
    assert path == tmp_path / "new" / f"video{ending}"
    frames, durations, info = read_back(path)
    assert frames.shape == (20, 72, 72, 3)
    assert sum(durations) == pytest.approx(1000 * 20 / 30, abs=5)
    assert info["loop"] == 0  # for ever
    wanted = np.round(255 * rgb).astype(np.uint8).repeat(3, 1).repeat(3, 2)
    error = np.abs(frames.astype(int) - wanted)
    assert (frames[(wanted == 255).all(-1)] == 255).all()
    assert error.max() == 0 if ending != ".gif" else error.mean() < 2 and error.max() < 40


@needs_ffmpeg
@pytest.mark.parametrize("size", [24, 25])
def test_mp4_reads_back(tmp_path, size):
    rgb = to_rgb(growth(20, size))
    frames = mediapy.read_video(save_video(tmp_path / "video.mp4", rgb, fps=25, scale=3))
    assert frames.metadata.fps == 25
    side = 3 * size
    assert frames.shape == (20, side + side % 2, side + side % 2, 3)
    wanted = 255 * rgb.repeat(3, 1).repeat(3, 2)
    assert np.abs(np.asarray(frames, float)[:, :side, :side] - wanted).mean() < 3
    assert (frames[:, side:] > 250).all() and (frames[:, :, side:] > 250).all()


def test_mp4_without_ffmpeg_names_what_works(tmp_path, no_ffmpeg):
    with pytest.raises(RuntimeError, match=r"ffmpeg.*\.gif or \.webp"):
        save_video(tmp_path / "video.mp4", to_rgb(growth(2)))
    assert not list(tmp_path.iterdir())


@needs_ffmpeg
def test_gif_in_another_reader(tmp_path):
    path = save_video(tmp_path / "video.gif", to_rgb(growth(20)), scale=1)
    command = f"ffmpeg -v error -i {path} -vsync passthrough -f rawvideo -pix_fmt rgb24 -"
    raw = subprocess.run(command.split(), capture_output=True, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, 24, 24, 3)
    np.testing.assert_array_equal(frames, read_back(path)[0])


@pytest.mark.parametrize("ending", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [1, 7.5, 24, 30, 33, 45, 50])
def test_duration_at_every_rate(tmp_path, ending, fps):
    _, durations, _ = read_back(save_video(tmp_path / f"v{ending}", to_rgb(growth(31, 12)), fps))
    assert len(durations) == 31
    assert sum(durations) == pytest.approx(1000 * 31 / fps, abs=5 if ending == ".gif" else 0.5)
    assert min(durations) >= 20  # less is slowed down by browsers
    assert max(durations) - min(durations) <= 10


@pytest.mark.parametrize("ending", [".gif", ".webp"])
@pytest.mark.parametrize("fps", [60, 144])
def test_fast_videos_leave_frames_out(tmp_path, ending, fps):
    rgb = to_rgb(growth(48, 12))
    frames, durations, _ = read_back(save_video(tmp_path / f"v{ending}", rgb, fps, scale=1))
    assert len(frames) == int(48 / fps * 50)
    assert sum(durations) == pytest.approx(1000 * 48 / fps, abs=5)
    assert min(durations) >= 20
    for frame, wanted in zip((frames[0], frames[-1]), (rgb[0], rgb[-1]), strict=True):
        assert np.abs(frame - 255 * wanted).mean() < 2


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_standing_still_keeps_the_duration(tmp_path, ending):
    rgb = to_rgb(growth(3)).repeat(10, axis=0)
    frames, durations, _ = read_back(save_video(tmp_path / f"v{ending}", rgb))
    assert len(frames) == 3
    assert durations == pytest.approx([333.3] * 3, abs=7)
    frames, _, _ = read_back(save_video(tmp_path / f"one{ending}", rgb[:1]))
    assert len(frames) == 1


@pytest.mark.parametrize(
    ("ending", "count", "fps"),
    [
        (".gif", 2, 0.001),
        (".gif", 1, 0.001),
        (".gif", 20_000, 30),
        (".webp", 2, 1e-5),
        (".webp", 2, 1e-300),
        (".gif", 2, 1e-320),
    ],
)
def test_a_picture_that_stands_for_too_long_is_refused(tmp_path, ending, count, fps):
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    frames[0] = 255
    with pytest.raises(ValueError, match=rf"fps.*{fps!r}"):
        save_video(tmp_path / "new" / f"v{ending}", frames, fps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ending", "longest"), [(".gif", 655.35), (".webp", 16_777.2)])
def test_a_picture_may_stand_for_as_long_as_the_format_has_room_for(tmp_path, ending, longest):
    frames = np.array([0, 255], np.uint8)[:, None, None, None].repeat(3, axis=-1)
    _, durations, _ = read_back(save_video(tmp_path / f"v{ending}", frames, 1 / longest))
    assert durations == pytest.approx([1000 * longest] * 2)


def test_a_gif_has_one_palette(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    frames = frames.repeat(100, axis=0)
    frames[np.arange(100), 0, np.arange(100) % 16] = 0
    palette = 3 * 256
    assert save_video(tmp_path / "v.gif", frames, scale=1).stat().st_size < 100 * palette / 10


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_many_colours_and_grey(tmp_path, ending):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    frames[:, :4] = 255
    result, _, _ = read_back(save_video(tmp_path / f"v{ending}", frames, scale=1))
    assert (result[:, :4] == 255).all()
    assert np.abs(result.astype(int) - frames).mean() < (15 if ending == ".gif" else 1e-9)
    frames[:, 8:] |= 252  # white is then one of many that are nearly white
    result, _, _ = read_back(save_video(tmp_path / f"w{ending}", frames[:, 3:], scale=1))
    assert (result[:, 0] == 255).all()
    grey, _, _ = read_back(save_video(tmp_path / f"g{ending}", frames[..., :1], scale=1))
    assert np.abs(grey.astype(int) - frames[..., :1]).max() <= 2


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3, st.just(3))),
    st.floats(0.5, 50),
)
def test_any_video_keeps_pixels_and_duration(tmp_path_factory, frames, fps):
    path = tmp_path_factory.mktemp("any") / "v.webp"
    result, durations, _ = read_back(save_video(path, frames, fps, scale=1))
    changed = [True, *(frames[1:] != frames[:-1]).any(axis=(1, 2, 3))]
    np.testing.assert_array_equal(result, frames[changed])
    if len(result) > 1:
        assert sum(durations) == pytest.approx(1000 * len(frames) / fps, abs=1)


@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4"])
@pytest.mark.parametrize("fault", ["encoding", "replacing"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, ending, fault):
    def interrupt(*args):
        raise KeyboardInterrupt

    path = tmp_path / f"video{ending}"
    path.write_bytes(b"old")
    if fault == "encoding":
        monkeypatch.setitem(video._ENCODERS, ending, interrupt)
    else:
        monkeypatch.setitem(video._ENCODERS, ending, lambda *args: b"new")
        monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_video(path, to_rgb(growth(2)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


NAN = np.full((3, 4, 4, 3), 0.5)
NAN[1, 2, 2, 0] = np.nan


@pytest.mark.parametrize(
    ("path", "frames", "options", "message"),
    [
        ("v.avi", growth(2)[..., :3], {}, r"path must end in .gif, .webp, .mp4, got .*v\.avi"),
        ("v", growth(2)[..., :3], {}, "path must end in"),
        ("v.gif", growth(2), {}, r"got \(2, 24, 24, 4\); .*to_rgb"),
        ("v.gif", np.zeros((2, 5, 5, 2)), {}, r"frames must have shape \(time, height, width"),
        ("v.gif", np.zeros((5, 5, 3)), {}, "frames must have shape"),
        ("v.gif", np.zeros((0, 5, 5, 3)), {}, "frames must have shape"),
        ("v.gif", NAN, {}, "NaN or infinity in 1 of 3 frames, first in frame 1"),
        ("v.gif", np.full((2, 4, 4, 3), np.inf), {}, "NaN or infinity in 2 of 2"),
        ("v.gif", np.full((2, 4, 4, 3), 200.0), {}, r"in \[0, 1\] or uint8, got \[200"),
        ("v.gif", np.zeros((2, 4, 4, 3), int), {}, "floats in .* or uint8, got int64"),
        ("v.gif", np.zeros((2, 4, 4, 3)), {"fps": 0}, "fps must be a positive number .* got 0"),
        ("v.gif", np.zeros((2, 4, 4, 3)), {"fps": float("nan")}, "fps must be"),
        ("v.gif", np.zeros((2, 4, 4, 3)), {"fps": "30"}, "fps must be"),
        ("v.gif", np.zeros((2, 4, 4, 3)), {"scale": 0}, "scale must be an integer of at least 1"),
        ("v.gif", np.zeros((2, 4, 4, 3)), {"scale": 1.5}, "scale must be an integer"),
    ],
)
def test_save_video_refuses(tmp_path, path, frames, options, message):
    with pytest.raises(ValueError, match=message):
        save_video(tmp_path / "new" / path, frames, **options)
    assert not list(tmp_path.iterdir())


# Progress, as text


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(video.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


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


def test_a_turn_of_several_steps_and_a_note(clock, capsys):
    progress, turns = Progress(35, stride=10), []
    for step in progress:
        clock.now += 10
        progress.report(0.1, note="fitness -0.25")
        turns.append((step, progress.step))
    assert turns == [(0, 10), (10, 20), (20, 30), (30, 35)]
    first, second, third, last = capsys.readouterr().out.splitlines()
    assert first == "step 10/35  log10(loss) -1.00  fitness -0.25  elapsed 0:10"
    assert second == "step 20/35  log10(loss) -1.00  fitness -0.25  elapsed 0:20"
    assert third == "step 30/35  log10(loss) -1.00  fitness -0.25  elapsed 0:30  ETA 0:05"
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


def test_a_run_of_an_earlier_session_goes_on(clock, capsys, monkeypatch):
    history = 10.0 ** -(np.arange(40) / 100)
    progress = Progress(100, every=5.0)
    progress.report(9.0)  # and is forgotten
    progress.restore(np.int64(40), history)
    assert (progress.step, type(progress.step)) == (40, int)
    np.testing.assert_array_equal(progress.losses, history)
    capsys.readouterr()

    curves = []
    monkeypatch.setattr(video, "_in_kernel", lambda: True)
    monkeypatch.setattr(video, "_display_png", lambda *arguments: None)
    monkeypatch.setattr(video, "plot_loss", lambda *arguments, **_: curves.append(arguments))
    steps = []
    for step in progress:
        clock.now += 30.0 if step == 40 else 6.0
        steps.append(step)
        progress.report(10.0 ** -(step / 100))
    assert steps == list(range(40, 100))
    np.testing.assert_allclose(progress.losses, 10.0 ** -(np.arange(100) / 100))
    for losses, at in curves:
        np.testing.assert_array_equal(at, np.arange(1, len(losses) + 1))
    assert {len(losses) for losses, _ in curves} == set(range(41, 101))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 41/100  log10(loss) -0.38  elapsed 0:30"
    assert lines[1] == "step 45/100  log10(loss) -0.42  elapsed 0:54  ETA 5:30"
    assert len(lines) <= 40


def test_a_restored_run_of_few_reports_or_none(clock, capsys):
    progress = Progress(1000)
    progress.restore(900, [0.3, np.nan, 0.1])
    assert [step for step, _ in progress._reports] == [300, 600, 900]
    progress.restore(7)
    assert progress.step == 7 and progress.losses.size == 0
    progress.restore(1000, np.full(1000, 0.01))
    assert list(progress) == []
    assert capsys.readouterr().out.startswith("step 1000/1000  log10(loss) -2.00  elapsed 0:00")
    progress.restore(0, [])
    assert next(iter(progress)) == 0


@pytest.mark.parametrize("step", [-1, 11, 2.0, True, None])
def test_progress_restores_no_such_step(step):
    with pytest.raises(ValueError, match=f"step must be an integer from 0 to 10, got {step!r}"):
        Progress(10).restore(step)


@pytest.mark.parametrize("losses", [np.ones(4), np.ones((1, 1)), 1.0])
def test_progress_restores_no_such_losses(losses):
    progress = Progress(10)
    with pytest.raises(ValueError, match=r"losses must have shape \(n,\), n at most 3"):
        progress.restore(3, losses)
    assert progress.step == 0


def test_a_loss_that_is_nan_or_zero_is_shown(clock, capsys):
    for step in (progress := Progress(2)):
        progress.report([np.nan, 0.0][step], after=np.full((1, 4, 4, 4), np.nan))
    assert "log10(loss) nan" in capsys.readouterr().out


def test_losses_on_a_device(clock, capsys):
    for step in (progress := Progress(3)):
        progress.report(jnp.float32(step), before=jnp.zeros((2, 4, 4, 16)))
    np.testing.assert_array_equal(progress.losses, [0, 1, 2])


def test_progress_refuses():
    for total in (0, 1.5, "3", True):
        with pytest.raises(ValueError, match="total must be an integer of at least 1"):
            Progress(total)
    with pytest.raises(ValueError, match="every must be"):
        Progress(3, every=-1)
    with pytest.raises(ValueError, match=r"loss must be a scalar, got shape \(2,\)"):
        Progress(3).report(np.ones(2))
    with pytest.raises(ValueError, match=r"after must be states or RGB pictures.* got \(4, 4\)"):
        Progress(3).report(1.0, after=np.ones((4, 4)))


def test_plot_loss():
    losses = 10.0 ** -np.linspace(1, 3, 5000)
    axes = plot_loss(losses, axes=Figure().subplots())
    faint, median = axes.get_lines()
    for line in (faint, median):
        assert len(line.get_xdata()) == 1000
        wanted = -np.interp(line.get_xdata(), [1, 5000], [1, 3])
        np.testing.assert_allclose(line.get_ydata(), wanted, atol=0.02)
    axes = plot_loss([1.0, np.nan, 0.01], steps=[10, 20, 30], axes=Figure().subplots())
    np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), [0, np.nan, -2])
    plot_loss([], axes=Figure().subplots())
    with pytest.raises(ValueError, match="losses must have shape"):
        plot_loss([1.0], steps=[1, 2])


# In a notebook


def test_outside_a_notebook_show_video_says_so(capsys):
    show_video(to_rgb(growth(3)), alt="a disc")
    assert capsys.readouterr().out.startswith("a disc: shown in a notebook only")


SETUP = """
import numpy as np
from tests.test_video import growth
from nca_helpers.video import *
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
            raise KeyboardInterrupt
        progress.report(0.1)
except KeyboardInterrupt:
    pass
"""


@pytest.fixture(scope="module")
def outputs():
    """Returns the outputs of the three cells, executed in a kernel of their own."""
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, SHOW, TRAIN, INTERRUPT)]
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
    assert picture["metadata"]["image/png"]["alt"] == "After 10 of 100 steps: loss"
    assert text.splitlines()[-1].startswith("stopped after step 10/100")


# show_images


def test_pictures_are_shown_with_their_words(monkeypatch):
    shown, images = [], []
    monkeypatch.setattr("IPython.display.display", shown.append)

    class Images(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag == "img":
                images.append(dict(attributes))

    pictures, alt = to_rgb(growth(3)), 'A "disc" <that> grows'
    assert show_images(pictures, ["a", "b", "c"], alt=alt, height=96, columns=2) is None
    Images().feed(shown[0].data)
    assert [image["alt"] for image in images] == [alt] * 3
    assert {image["height"] for image in images} == {"96"}
    for image, picture in zip(images, pictures, strict=True):
        (pixels, *_), _, _ = read_back(base64.b64decode(image["src"].partition(",")[2]))
        np.testing.assert_allclose(pixels / 255, picture, atol=1 / 255)
