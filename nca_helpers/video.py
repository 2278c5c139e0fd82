"""Videos: on disk as GIF, WebP or MP4, and in notebooks. Only MP4 needs ffmpeg."""

import io
import math
import os
import shutil
import struct
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from nca_helpers.checks import check_finite, check_integer, check_number, require
from nca_helpers.files import replace_file
from nca_helpers.pictures import as_array, display_png, in_kernel

_FASTEST_FPS = 50  # Browsers slow down what asks for less than 20 ms a frame.


def save_video(path: str | os.PathLike, frames: ArrayLike, fps: float = 30, scale: int = 4) -> Path:
    """Writes a video, and returns its path, whose ending says in which format.

    GIF and WebP loop for ever. WebP keeps every colour; GIF has one palette of 255 colours, not
    dithered, in which white stays white. MP4 gets a white row or column where a side is odd.

    Browsers slow down GIF and WebP of more than 50 frames a second, so of a faster video these
    get 50 evenly spaced ones. Neighbouring frames that are equal become one that is shown for
    longer. Either way the duration is `len(frames) / fps` to 10 ms.

    Args:
        path: Where to.
        frames: `(time, height, width, 3 or 1)`, floats in [0, 1] or uint8. One may stand for 655
            seconds in GIF, for 16,777 in WebP.
        fps: Frames a second.
        scale: Each cell becomes a square of this many pixels a side.

    Raises:
        RuntimeError: MP4 was asked for and there is no ffmpeg.
        OSError: The file cannot be written, or ffmpeg gives up.
    """
    ending = Path(path).suffix.lower()
    require(ending in _ENCODERS, "path", f"a file name that ends in {', '.join(_ENCODERS)}", path)
    return replace_file(path, _ENCODERS[ending](*_checked_video(frames, fps, scale)))


def show_video(frames: ArrayLike, fps: float = 30, scale: int = 4, alt: str | None = None) -> None:
    """Shows a looping video in the notebook, without ffmpeg.

    The cell's output is an animated PNG: of the formats that move, the only one with a MIME
    type (`image/png`) that Jupyter, Colab, Kaggle, VS Code, nbconvert and GitHub all show, and
    a third of the size of a GIF, whose colours and speed it has. `frames`, `fps` and `scale` are
    those of `save_video`; `alt` says what is to be seen, for those who cannot see it.
    """
    pixels, fps, scale = _checked_video(frames, fps, scale)
    alt = alt or f"Video of {len(pixels)} frames, {len(pixels) / fps:.1f} seconds"
    if in_kernel():
        display_png(encode_pictures("PNG", pixels, fps, scale), alt)
    else:
        print(f"{alt}: shown in a notebook only, save_video() writes it to a file")


def _checked_video(frames: ArrayLike, fps: float, scale: int) -> tuple[np.ndarray, float, int]:
    """Returns `(time, height, width, 3)` uint8 and the settings, or raises ValueError."""
    frames = as_array("frames", frames)
    accepted = "(time, height, width, 3 or 1), floats in [0, 1] or uint8, as to_rgb(states) gives"
    is_video = frames.ndim == 4 and 0 not in frames.shape and frames.shape[-1] in (1, 3)
    require(is_video, "frames", accepted, frames)
    check_number("fps", fps, 1e-5, 1e6)
    scale = check_integer("scale", scale, 1)
    if frames.dtype != np.uint8:
        check_finite("frames", frames)
        low, high = float(frames.min()), float(frames.max())
        in_range = low >= -1e-3 and high <= 1 + 1e-3
        require(in_range, "frames", "in [0, 1] or of uint8", {"lowest": low, "highest": high})
        frames = (255 * frames.clip(0, 1)).round().astype(np.uint8)
    return np.broadcast_to(frames, (*frames.shape[:3], 3)), float(fps), scale


def encode_pictures(file_format: str, pixels: np.ndarray, fps: float, scale: int) -> bytes:
    """Returns `(time, height, width, 3)` uint8 as a "GIF", "PNG" or "WEBP", moving if many."""
    count, tick = len(pixels), 10 if file_format == "GIF" else 1  # ms that durations come in
    kept = count if fps <= _FASTEST_FPS else max(1, math.floor(count / fps * _FASTEST_FPS))
    pixels = pixels[np.linspace(0, count - 1, kept).round().astype(int)]
    # Each frame ends at the tick that is nearest to its due time: errors do not add up.
    ends = (np.arange(1, kept + 1) / kept * (count / fps) * 1000 / tick).round().astype(int)
    durations = tick * np.diff(ends, prepend=0)
    options: dict[str, Any] = {"save_all": True, "loop": 0, "duration": durations.tolist()}
    if file_format == "WEBP":
        first, *rest = (Image.fromarray(frame) for frame in _enlarge(pixels, scale))
        # Lossless, quality is effort: more takes a hundred times as long for a tenth of the size.
        options |= {"lossless": True, "quality": 80, "method": 3}
    else:
        (first, *rest), palette = _palette_pictures(pixels, scale)
        if file_format == "GIF":  # The palette is given so that not every frame has its own.
            options |= {"palette": palette, "optimize": True}
    buffer = io.BytesIO()
    try:
        first.save(buffer, file_format, append_images=rest, **options)
    except (OverflowError, RuntimeError, ValueError, struct.error) as error:
        raise ValueError(
            f"{file_format} cannot hold {first.width}×{first.height} pixels at fps={fps!r}; "
            f"equal neighbours count as one that stands for longer ({error})"
        ) from error
    return buffer.getvalue()


def _palette_pictures(pixels: np.ndarray, scale: int) -> tuple[list[Image.Image], bytes]:
    """Returns the frames, enlarged, in one palette of at most 255 colours, and the palette.

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
    palette = bytes(sheet.getpalette()[:colours]) + b"\xff\xff\xff"
    pictures = [Image.fromarray(frame) for frame in _enlarge(indices, scale)]
    for picture in pictures:
        picture.putpalette(palette)
    return pictures, palette


def _encode_mp4(pixels: np.ndarray, fps: float, scale: int) -> bytes:
    if shutil.which("ffmpeg") is None:
        raise RuntimeError(
            "MP4 needs ffmpeg, which is not found: install it, or write .gif or .webp"
        )
    source = f"-f rawvideo -pix_fmt rgb24 -s {pixels.shape[2]}x{pixels.shape[1]} -r {fps} -i -"
    # Colour has half the resolution of brightness, so that both sides must be even.
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2:color=white"
    target = f"-vf scale=iw*{scale}:ih*{scale}:flags=neighbor,{even} -c:v h264 -qp 20"
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        # Not by mediapy, which loses what ffmpeg says if that ends before it has read all.
        command = f"ffmpeg -v error {source} {target} -pix_fmt yuv420p".split()
        ran = subprocess.run([*command, video], input=pixels.tobytes(), capture_output=True)
        if ran.returncode:
            said = ran.stderr.decode(errors="replace").strip().rpartition("\n")[2][:200]
            said = said or f"nothing, and ended with {ran.returncode}; is the disk full?"
            raise OSError(f"ffmpeg could not write the video with the codec h264; it said {said}")
        return video.read_bytes()


def _enlarge(frames: np.ndarray, scale: int) -> np.ndarray:
    """Repeats the pixels of `(time, height, width, ...)` along height and width."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


_ENCODERS = {
    ".gif": partial(encode_pictures, "GIF"),
    ".webp": partial(encode_pictures, "WEBP"),
    ".mp4": _encode_mp4,
}
