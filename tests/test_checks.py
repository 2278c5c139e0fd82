"""What an error says of a value: enough to know it again, nothing of what is in it."""

import array
import dataclasses
import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nca_helpers import rollout, seed_state, to_rgb
from nca_helpers.checks import shown
from nca_helpers.model import NCA
from nca_helpers.player import player_html

VALUES = np.full((4, 4), 0.123)


class Pair(NamedTuple):
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass
class Run:
    weights: np.ndarray


class Frame:
    """As a data frame of pandas: it has a shape, and no one type."""

    shape = (3, 2)

    def __repr__(self):
        return "secret"


class Bad:
    def __repr__(self):
        raise RuntimeError


CASES = [
    (None, "None"),
    (0, "0"),
    (np.float32(0.5), "np.float32(0.5)"),
    (np.array(0.5), "array(0.5)"),
    ("a b'", '"a b\'"'),
    ([1, "a"], "[1, 'a']"),
    ({"lowest": 0.5}, "{'lowest': 0.5}"),
    (VALUES, "ndarray of float64, shape (4, 4)"),
    (jnp.ones((2, 3), jnp.bfloat16), "ArrayImpl of bfloat16, shape (2, 3)"),
    (jax.ShapeDtypeStruct((2,), jnp.int32), "ShapeDtypeStruct of int32, shape (2,)"),
    (Frame(), "Frame, shape (3, 2)"),
    (np.ndarray, "<class 'numpy.ndarray'>"),
    (NCA, "<class 'nca_helpers.model.NCA'>"),
    ([VALUES], "a list of 1"),
    ((VALUES, VALUES), "a tuple of 2"),
    ({"state": jnp.ones(3)}, "a dict of 1"),
    ([[VALUES]], "a list of 1"),
    (Pair(VALUES, VALUES), "a Pair of 2"),
    (Run(VALUES), "a Run"),
    (array.array("d", [0.123]), "a array"),
    ([b"0.123"], "a list of 1"),
    (list(range(9)), "a list of 9"),
    (b"0123456789abcdef0.123", "21 bytes that begin with b'0123456789abcdef'"),
    (Bad(), "a Bad"),
    (jax.random.key(0), "PRNGKeyArray"),
]


@pytest.mark.parametrize(("value", "text"), CASES, ids=[text for _, text in CASES])
def test_what_is_shown(value, text):
    if text == "PRNGKeyArray":  # What its repr holds is of JAX's making.
        assert len(shown(value)) <= 200
    else:
        assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, [["x" * 10**6]], [VALUES] * 10**5, 10**199, io.BytesIO(bytes(10**6)), [NCA] * 99],
)
def test_no_more_than_200_characters(value):
    assert len(shown(value)) <= 200 and "0.123" not in shown(value)


@pytest.fixture(scope="module")
def nca():
    from flax import nnx

    return NCA(rngs=nnx.Rngs(0))


REFUSED = {
    "key": (
        lambda nca: rollout(nca, seed_state(8, 8), 0, 4),
        "key must be one random key, as jax.random.key(0) makes it, got 0",
    ),
    "key of one step": (
        lambda nca: nca(seed_state(8, 8), 0),
        "key must be one random key, as jax.random.key(0) makes it, got 0",
    ),
    "list of states": (
        lambda nca: rollout(nca, [seed_state(8, 8)] * 2, jax.random.key(0), 4),
        "state must be an array (..., height, width, channels) of floats, with 16 channels, "
        "got a list of 2",
    ),
    "size": (
        lambda nca: player_html(nca, size=512),
        "size must be an integer from 8 to 256, got 512",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_refusal_says_what_is_accepted(name, nca):
    call, message = REFUSED[name]
    with pytest.raises(ValueError) as caught:
        call(nca)
    assert str(caught.value) == message


def test_frames_of_bfloat16_are_accepted(tmp_path):
    from nca_helpers import save_video

    frames = jnp.stack([seed_state(8, 8)] * 2).astype(jnp.bfloat16)
    assert save_video(tmp_path / "a.gif", to_rgb(frames)).is_file()
    assert save_video(tmp_path / "b.gif", to_rgb(frames).astype(jnp.bfloat16)).is_file()
