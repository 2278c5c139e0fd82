import io
import json
import os
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_helpers import checkpoint
from nca_helpers.checkpoint import (
    bundled,
    load_meta,
    load_nca,
    pretrained,
    pretrained_meta,
    save_nca,
)
from nca_helpers.model import NCA, perceive, seed_state

NAMES = ["hidden/bias", "hidden/kernel", "update/bias", "update/kernel"]
META = {"format": 1, "channels": 5, "hidden": 7, "fire_rate": 0.25, "alive_threshold": 0.2}


def weights(nca: NCA) -> dict[str, np.ndarray]:
    return {
        "hidden/kernel": np.asarray(nca.hidden.kernel[...]),
        "hidden/bias": np.asarray(nca.hidden.bias[...]),
        "update/kernel": np.asarray(nca.update.kernel[...]),
        "update/bias": np.asarray(nca.update.bias[...]),
    }


def small_nca(seed: int = 0, **options) -> NCA:
    """Returns an automaton with random weights in every layer."""
    options = {"channels": 5, "hidden": 7, "fire_rate": 0.25, "alive_threshold": 0.2} | options
    nca = NCA(**options, rngs=nnx.Rngs(seed))
    random = np.random.default_rng(seed)
    for layer in (nca.hidden, nca.update):
        for parameter in (layer.kernel, layer.bias):
            parameter[...] = jnp.asarray(random.normal(size=parameter.shape), jnp.float32)
    return nca


def content(meta=META, **changes) -> bytes:
    """Returns a checkpoint that another tool wrote: plain NumPy, no code of the package."""
    random = np.random.default_rng(0)
    arrays = {
        "hidden/kernel": random.normal(size=(15, 7)).astype(np.float32),
        "hidden/bias": random.normal(size=7).astype(np.float32),
        "update/kernel": random.normal(size=(7, 5)).astype(np.float32),
        "update/bias": random.normal(size=5).astype(np.float32),
        "meta": np.array(json.dumps(meta)) if isinstance(meta, dict) else meta,
    } | changes
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_nca(tmp_path / "small.npz", small_nca(), emoji="🦎", regime="growing")


# Saving and loading


@pytest.mark.parametrize("options", [{}, {"channels": 16, "hidden": 128}, {"fire_rate": 1.0}])
def test_round_trip_is_bit_for_bit(tmp_path, options):
    nca = small_nca(**options)
    loaded = load_nca(save_nca(tmp_path / "new" / "nca.npz", nca))
    for name, array in weights(nca).items():
        other = weights(loaded)[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape)
        assert other.tobytes() == array.tobytes(), name
    for name in ("channels", "hidden_size", "fire_rate", "alive_threshold"):
        assert getattr(loaded, name) == getattr(nca, name)
    channels = nca.channels
    state, key = seed_state(9, 9, channels), jax.random.key(0)
    np.testing.assert_array_equal(loaded(state, key), nca(state, key))


def test_every_float_survives(tmp_path):
    values = np.array([0.0, -0.0, 1e-45, -1e-38, 3.4e38, 1 / 3, np.pi], np.float32)
    nca = small_nca()
    nca.hidden.bias[...] = jnp.asarray(values)
    loaded = load_nca(save_nca(tmp_path / "nca.npz", nca))
    assert weights(loaded)["hidden/bias"].tobytes() == weights(nca)["hidden/bias"].tobytes()


def test_the_file_is_what_the_contract_says(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert sorted(file) == sorted([*NAMES, "meta"])
        assert {file[name].dtype for name in NAMES} == {np.dtype("float32")}
        assert [file[name].shape for name in NAMES] == [(7,), (15, 7), (5,), (7, 5)]
        meta = json.loads(str(file["meta"]))
        kernel = file["hidden/kernel"]
    assert META.items() <= meta.items()
    assert (meta["emoji"], meta["regime"]) == ("🦎", "growing")
    assert {"jax", "flax", "numpy"} <= meta["versions"].keys()
    # Row block * channels + channel belongs to that feature of the perception.
    state = np.random.default_rng(0).random((4, 4, 5)).astype(np.float32)
    blocks = np.stack(np.split(np.asarray(perceive(jnp.asarray(state))), 3, axis=-1), axis=-2)
    np.testing.assert_array_equal(blocks[..., 0, :], state)
    wanted = sum(blocks[1, 2, b, c] * kernel[b * 5 + c] for b in range(3) for c in range(5))
    nca = small_nca()
    hidden = nca.hidden(perceive(jnp.asarray(state)))[1, 2] - nca.hidden.bias[...]
    np.testing.assert_allclose(hidden, wanted, atol=1e-5)


def test_what_another_tool_wrote(tmp_path):
    path = tmp_path / "other.npz"
    path.write_bytes(content(META | {"colour": "green"}, extra=np.zeros(3)))
    assert load_meta(path) == META | {"colour": "green"}
    with np.load(path) as file:
        assert weights(load_nca(path))["update/kernel"].tobytes() == file["update/kernel"].tobytes()


def test_sources(saved):
    wanted = weights(small_nca())
    with saved.open("rb") as file:
        sources = [saved, str(saved), file, io.BytesIO(saved.read_bytes())]
        # A resource of a package that is a zip file.
        with zipfile.ZipFile(saved.with_name("package.zip"), "w") as package:
            package.write(saved, "data/small.npz")
        sources.append(zipfile.Path(saved.with_name("package.zip"), "data/small.npz"))
        for source in sources:
            for name, array in weights(load_nca(source)).items():
                np.testing.assert_array_equal(array, wanted[name])
            assert load_meta(source)["emoji"] == "🦎"


def test_meta_is_kept_as_json(tmp_path):
    meta = {
        "log10_loss": np.float32(-3.5),
        "train_steps": np.int64(8),
        "history": np.arange(3),
        "loss": jnp.float32(0.5),
        "nested": {"a": [1, None, "é"]},
    }
    loaded = load_meta(save_nca(tmp_path / "nca.npz", small_nca(), **meta))
    assert loaded.pop("versions")
    assert loaded == META | {
        "log10_loss": -3.5,
        "train_steps": 8,
        "history": [0, 1, 2],
        "loss": 0.5,
        "nested": {"a": [1, None, "é"]},
    }
    # So that a checkpoint can be saved again with what it said.
    again = load_meta(save_nca(tmp_path / "again.npz", small_nca(), **loaded, versions={"a": "1"}))
    assert again == loaded | {"versions": {"a": "1"}}


def test_the_same_automaton_gives_the_same_bytes(tmp_path):
    paths = [save_nca(tmp_path / name, small_nca(), emoji="🦎") for name in ("a.npz", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_interrupted_write_leaves_the_old_file(saved, monkeypatch):
    old = saved.read_bytes()

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_nca(saved, small_nca(1))
    assert saved.read_bytes() == old
    assert list(saved.parent.iterdir()) == [saved]


# What is refused


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_nan_is_neither_saved_nor_loaded(saved, name, bad):
    nca, old = small_nca(), saved.read_bytes()
    layer, parameter = name.split("/")
    parameter = getattr(getattr(nca, layer), parameter)
    parameter[...] = parameter[...].at[..., 2].set(bad)
    with pytest.raises(ValueError, match=f"{name} must be finite, got NaN or infinity"):
        save_nca(saved, nca)
    assert saved.read_bytes() == old
    saved.write_bytes(content(**{name: np.asarray(parameter[...])}))
    with pytest.raises(ValueError, match=f"small.npz .*{name} must be finite"):
        load_nca(saved)


def test_save_refuses(tmp_path):
    path = tmp_path / "nca.npz"
    for name, value in {"format": 2, "channels": 6, "hidden": 1, "fire_rate": 0.5}.items():
        with pytest.raises(ValueError, match=f"{name} must be the automaton's own, .* got {value}"):
            save_nca(path, small_nca(), **{name: value})
    for value in (object(), np.nan, {"a": np.inf}, {1, 2}, b"bytes"):
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            save_nca(path, small_nca(), note=value)
    with pytest.raises(TypeError, match="nca must be an NCA, got PosixPath"):
        save_nca(small_nca(), path)
    with pytest.raises(TypeError) as error:
        save_nca(path, "long " * 10_000)
    assert len(str(error.value)) < 250
    with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold") as error:
        save_nca(path, small_nca(), note={"long " * 10_000})
    assert len(str(error.value)) < 300
    for name in ("step", "__call__"):
        other = type("Other", (NCA,), {name: lambda self, state, *_, **__: state})
        with pytest.raises(TypeError, match=r"nca is a Other with a rule of its own; .* weights"):
            save_nca(path, other(rngs=nnx.Rngs(0)))
    half = small_nca()
    half.hidden.kernel = nnx.Param(half.hidden.kernel[...].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"hidden/kernel must be float32 .* got .*bfloat16"):
        save_nca(path, half)
    assert not path.exists()


def pickled(*values) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


FAULTS = {
    "empty": (b"", "not an .npz"),
    "text": (b"<html>404</html>", "not an .npz"),
    "zeros": (bytes(5000), "not an .npz"),
    "no zip": (b"\x80\x04K\x01.", "not an .npz"),
    "foreign": (content(None), "meta is not a file in the archive"),
    "meta is no JSON": (content(np.array("{")), "Expecting"),
    "meta is a list": (content(np.array("[1]")), r"meta must be an object of JSON, got \[1\]"),
    "meta is an array": (content(np.array(["1", "2"])), "."),
    "meta is a number": (content(np.array(1)), "meta must be an object of JSON, got 1"),
    "meta is pickled": (content(pickled(1)), "allow_pickle=False"),
    "weights are pickled": (content(**{"hidden/bias": pickled(*range(7))}), "allow_pickle=False"),
    "newer": (content(META | {"format": 2}), "format 2 is newer than 1: update nca_helpers"),
    "older": (content(META | {"format": 0}), "format must be an integer of at least 1, got 0"),
    "no channels": (
        content({k: v for k, v in META.items() if k != "channels"}),
        "channels must be an integer of at least 4, got None",
    ),
    "few channels": (
        content(META | {"channels": 3}),
        "channels must be an integer of at least 4, got 3",
    ),
    "other channels": (content(META | {"channels": 6}), r"hidden/kernel must be .* \(18, 7\)"),
    "channels is text": (content(META | {"channels": "5"}), "channels must be .*, got '5'"),
    "channels is true": (content(META | {"channels": True}), "channels must be .*, got True"),
    "channels is huge": (
        content(META | {"channels": 10**400}),
        r"hidden/kernel must be float32 of shape \(30",
    ),
    "fire_rate is 2": (
        content(META | {"fire_rate": 2}),
        r"fire_rate must be a finite number in \[0, 1\], got 2",
    ),
    "threshold is NaN": (
        content(META | {"alive_threshold": np.nan}),
        "alive_threshold must be a finite number .*, got nan",
    ),
    "no update": (content(**{"update/bias": None}), "update/bias is not a file in the archive"),
    "wrong shape": (
        content(**{"update/kernel": np.zeros((5, 7), np.float32)}),
        r"\(7, 5\).*\(5, 7\)",
    ),
    "wrong type": (
        content(**{"hidden/bias": np.zeros(7)}),
        "hidden/bias must be float32 .* got ndarray of float64",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_refuses(tmp_path, fault):
    data, message = FAULTS[fault]
    path = tmp_path / "faulty.npz"
    path.write_bytes(data)
    for load in (load_nca, load_meta):
        with pytest.raises(
            ValueError, match=rf"faulty\.npz is not a checkpoint .*{message}"
        ) as error:
            load(path)
        assert len(str(error.value)) < len(str(path)) + 250
    with pytest.raises(ValueError, match=message):
        load_nca(io.BytesIO(data))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_nca(tmp_path / "none.npz")


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "trap.npz"
    path.write_bytes(content(**{"hidden/kernel": pickled(Trap())}))
    with pytest.raises(ValueError, match=r"trap\.npz"):
        load_nca(path)
    assert not (tmp_path / "sprung").exists()


def test_truncated_anywhere(tmp_path):
    data = content()
    path = tmp_path / "short.npz"
    for length in {*range(0, len(data), 17), *range(len(data) - 30, len(data))}:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"short\.npz is not a checkpoint"):
            load_nca(path)


WHOLE = content()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_never_silent(data):
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(WHOLE) - 1))] = data.draw(st.integers(0, 255))
    try:
        arrays, meta = checkpoint._read(io.BytesIO(bytes(damaged)))
    except ValueError as error:
        assert "is not a checkpoint" in str(error)
    else:  # what was hit does not matter: a date, say
        assert meta == META
        with np.load(io.BytesIO(WHOLE)) as file:
            for name in NAMES:
                assert arrays[name].tobytes() == file[name].tobytes()


# Those that come with the package


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(checkpoint, "_PRETRAINED", tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_pretrained(folder):
    save_nca(folder / "1f98e_growing.npz", small_nca(1), emoji="🦎", regime="growing")
    save_nca(folder / "1f469_200d_1f680_evolved.npz", small_nca(2), emoji="👩‍🚀")
    save_nca(folder / "2764_persistent.npz", small_nca(3), emoji="❤️")
    requests = {
        ("🦎", "growing"): 1,
        ("👩‍🚀", "evolved"): 2,
        ("❤️", "persistent"): 3,
        ("❤", "persistent"): 3,
    }
    for request, seed in requests.items():
        for name, array in weights(pretrained(*request)).items():
            np.testing.assert_array_equal(array, weights(small_nca(seed))[name])
    assert pretrained_meta("🦎", "growing")["emoji"] == "🦎"
    for request in [("🦋", "growing"), ("🦎", "evolved"), ("🦎", "Growing"), ("🦎", None)]:
        with pytest.raises(ValueError, match=r"\(❤ persistent, 👩‍🚀 evolved, 🦎 growing\), got "):
            pretrained(*request)
    with pytest.raises(ValueError, match="emoji must be"):
        pretrained("lizard", "growing")


def test_none_pretrained(folder):
    with pytest.raises(ValueError, match=r"\(none\), got .*growing"):
        pretrained_meta("🦎", "growing")


def test_every_bundled_checkpoint_loads():
    assert len(bundled()) >= 7
    for emoji, regime in bundled():
        meta = pretrained_meta(emoji, regime)
        assert (meta["regime"], meta["fire_rate"], meta["alive_threshold"]) == (regime, 0.5, 0.1)
        assert pretrained(emoji, regime).hidden_size == meta["hidden"]


def test_bundled_lists_what_is_there(folder):
    assert bundled() == []
    for name in ("1f98e_growing", "1f469_200d_1f680_evolved", "1f98e_unheard-of"):
        save_nca(folder / f"{name}.npz", small_nca(1))
    assert bundled() == sorted([("🦎", "growing"), ("👩‍🚀", "evolved")])
