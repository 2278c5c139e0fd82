"""Pictures against Pillow and by hand: colours over white, sheets, words for the blind."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nca_helpers.pictures import as_array, show_images, tile, to_rgb


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
    with pytest.raises(ValueError, match=r"state must be an array .* at least 4 channels, got"):
        to_rgb(np.zeros(shape))


@pytest.mark.parametrize("state", [np.ones((4, 4, 4), np.uint8), "state", [[1.0], [2.0, 3.0]]])
def test_to_rgb_refuses_what_holds_no_floats(state):
    with pytest.raises(ValueError, match=r"state must be an array .*floats"):
        to_rgb(state)


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
    with pytest.raises(ValueError, match="images must be pictures"):
        tile(np.zeros((4, 4, 3)))
    with pytest.raises(ValueError, match="at least one picture"):
        tile(np.zeros((0, 4, 4, 3)))
    with pytest.raises(ValueError, match="images must be an array of floats or of uint8"):
        tile([np.zeros((4, 4, 3)), np.zeros((5, 4, 3))])
    with pytest.raises(ValueError, match="columns must be an integer of at least 1, got 0"):
        tile(np.zeros((2, 4, 4, 3)), columns=0)


# show_images


class Images(HTMLParser):
    """The images of a piece of HTML, each as its attributes."""

    def __init__(self, source):
        super().__init__()
        self.found = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.found.append(dict(attributes))


WORDS = 'A "disc" <that> grows'


@pytest.mark.parametrize(
    ("alt", "words"), [(WORDS, [WORDS] * 3), (["small", WORDS, ""], ["small", WORDS, ""])]
)
@pytest.mark.parametrize("titles", [None, ["a", "<b>b</b>", "c"]])
def test_pictures_are_shown_with_their_words(monkeypatch, alt, words, titles):
    shown, pictures = [], to_rgb(growth(3))
    monkeypatch.setattr("IPython.display.display", shown.append)
    assert show_images(pictures, titles, alt=alt, height=96, columns=2) is None
    images = Images(shown[0].data).found
    assert [image["alt"] for image in images] == words
    assert {image["height"] for image in images} == {"96"}
    for image, picture in zip(images, pictures, strict=True):
        (pixels, *_), _, _ = read_back(base64.b64decode(image["src"].partition(",")[2]))
        np.testing.assert_allclose(pixels / 255, picture, atol=1 / 255)


@pytest.mark.parametrize("alt", [["one", "two"], [], ["a", "b", 3], ("a",) * 4])
def test_words_for_other_pictures_are_refused(monkeypatch, alt):
    monkeypatch.setattr("IPython.display.display", None)
    with pytest.raises(ValueError, match="alt must be one text, or 3, one for each picture, got"):
        show_images(to_rgb(growth(3)), alt=alt)


# as_array


def test_an_array_of_bfloat16_becomes_float32():
    array = as_array("frames", jnp.asarray([0.25, 1.0], jnp.bfloat16))
    assert array.dtype == np.float32 and array.tolist() == [0.25, 1.0]


def test_an_array_that_is_traced_is_named():
    with pytest.raises(ValueError, match="frames must be an array of floats or of uint8, got"):
        jax.jit(lambda frames: as_array("frames", frames))(jnp.zeros(3))
