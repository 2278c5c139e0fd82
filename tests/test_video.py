"""Videos read back by Pillow and by ffmpeg: every pixel, every duration, every format."""

import base64
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import mediapy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_pictures import growth, read_back

from nca_helpers import video
from nca_helpers.pictures import to_rgb
from nca_helpers.video import save_video, show_video

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")


@pytest.fixture
def no_ffmpeg(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    assert shutil.which("ffmpeg") is None


# save_video


@pytest.mark.parametrize("ending", [".gif", ".webp", ".WebP"])
def test_animated_pictures_read_back_without_ffmpeg(tmp_path, no_ffmpeg, ending):
    rgb = to_rgb(growth(20))
    path = save_video(tmp_path / "new" / f"video{ending}", rgb, fps=30, scale=3)
    assert path == tmp_path / "new" / f"video{ending}" and isinstance(path, Path)
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
        (".gif", 2_000, 3),
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


def test_frames_as_they_come_are_the_same_video(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    # Multiples of 1/4 are themselves in bfloat16.
    floats = (pixels // 64 / 4).astype(np.float32)
    as_pixels = (255 * floats).round().astype(np.uint8)
    given = [as_pixels, floats, floats.astype(float), floats.astype(np.float16), floats.tolist()]
    given += [jnp.asarray(floats), jnp.asarray(floats, jnp.bfloat16), list(jnp.asarray(floats))]
    given += [np.asarray(jnp.asarray(floats, jnp.bfloat16)), floats[::-1][::-1]]
    for frames in given:
        result, _, _ = read_back(save_video(tmp_path / "v.webp", frames, scale=1))
        np.testing.assert_array_equal(result, as_pixels)


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


@pytest.fixture
def own_ffmpeg(monkeypatch, tmp_path_factory):
    """Returns a function that puts a shell script in ffmpeg's place."""

    def place(script):
        path = tmp_path_factory.mktemp("bin") / "ffmpeg"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent), prepend=os.pathsep)

    return place


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Unknown encoder 'h264'\n", "codec h264; it said Unknown encoder 'h264'$"),
        (f"first\n{1000 * 'x'}\n\n", f"it said {200 * 'x'}$"),
        ("", "it said nothing, and ended with 3; is the disk full"),
    ],
)
@pytest.mark.parametrize("size", [4, 400])
def test_what_ffmpeg_says_is_told(tmp_path, own_ffmpeg, said, told, size):
    """By one that ends before it has read the frames, which are more than a pipe holds."""
    own_ffmpeg(f"printf %s {shlex.quote(said)} >&2; exit 3")
    with pytest.raises(OSError, match=f"ffmpeg could not write the video with the .*{told}"):
        save_video(tmp_path / "v.mp4", np.zeros((2, size, size, 3), np.uint8), scale=1)
    assert not list(tmp_path.iterdir())


@needs_ffmpeg
def test_an_ffmpeg_without_the_codec(tmp_path, own_ffmpeg):
    """The real one, asked for a codec that it does not have."""
    own_ffmpeg(f'exec {shutil.which("ffmpeg")} $(echo "$@" | sed s/h264/x999/)')
    with pytest.raises(OSError, match=r"the codec h264; it said .*[Ee]ncoder"):
        save_video(tmp_path / "v.mp4", np.zeros((2, 400, 400, 3), np.uint8), scale=1)


@pytest.mark.parametrize(
    ("path", "frames", "options", "message"),
    [
        (
            "v.avi",
            growth(2)[..., :3],
            {},
            r"path must .* in .gif, .webp, .mp4, got .*v\.avi",
        ),
        ("v", growth(2)[..., :3], {}, "path must be a file name that ends in .gif"),
        ("v.gif", growth(2), {}, r"as to_rgb\(states\) gives, got .* \(2, 24, 24, 4\)"),
        ("v.gif", np.zeros((2, 5, 5, 2)), {}, r"frames must be \(time, height, width, 3 or 1\)"),
        ("v.gif", np.zeros((5, 5, 3)), {}, r"frames must be .* got .* \(5, 5, 3\)"),
        ("v.gif", np.zeros((0, 5, 5, 3)), {}, r"frames must be .* got .* \(0, 5, 5, 3\)"),
        ("v.gif", NAN, {}, "frames must be finite, got NaN or infinity 1 times"),
        ("v.gif", np.full((2, 4, 4, 3), np.inf), {}, "NaN or infinity 96 times"),
        (
            "v.gif",
            np.full((2, 4, 4, 3), 200.0),
            {},
            r"frames must be in \[0, 1\] .*lowest.: 200",
        ),
        ("v.gif", np.zeros((2, 4, 4, 3), int), {}, "floats or of uint8, got .* of int64"),
        (
            "v.gif",
            [np.zeros((4, 4, 3)), np.zeros((5, 5, 3))],
            {},
            "frames must be .* got a list of 2",
        ),
        ("v.gif", "frames", {}, "frames must be an array .* got 'frames'"),
        ("v.gif", growth(2) > 0, {}, "floats or of uint8, got .* of bool"),
        ("v.gif", [*growth(2)], {}, r"as to_rgb\(states\) gives, got .* \(2, 24, 24, 4\)"),
        (
            "v.gif",
            np.zeros((2, 4, 4, 3)),
            {"fps": 0},
            r"fps must be .* number in .* got 0",
        ),
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


# show_video


def test_outside_a_notebook_show_video_says_so(capsys):
    show_video(to_rgb(growth(3)), alt="a disc")
    assert capsys.readouterr().out.startswith("a disc: shown in a notebook only")


def test_show_video_shows_an_animated_png_with_its_words(monkeypatch):
    shown = []
    monkeypatch.setattr(video, "in_kernel", lambda: True)
    monkeypatch.setattr(
        "IPython.display.display", lambda bundle, **options: shown.append((bundle, options))
    )
    states = growth(20)
    show_video(to_rgb(states), fps=10, scale=2, alt='a "disc"')
    ((bundle, options),) = shown
    assert bundle["text/plain"] == options["metadata"]["image/png"]["alt"] == 'a "disc"'
    frames, durations, info = read_back(base64.b64decode(bundle["image/png"]))
    assert (frames.shape, sum(durations), info["loop"]) == ((20, 48, 48, 3), 2000, 0)
    assert np.abs(frames - 255 * to_rgb(states).repeat(2, 1).repeat(2, 2)).mean() < 2
    with pytest.raises(ValueError, match=r"frames .* as to_rgb\(states\)"):
        show_video(states)
    assert len(shown) == 1
