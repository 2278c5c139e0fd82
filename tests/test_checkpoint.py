import io
import json
import os
import resource
import shutil
import signal
import time
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from nbclient import NotebookClient

from nca_helpers import checkpoint
from nca_helpers.checkpoint import (
    bundled,
    load_meta,
    load_nca,
    pretrained,
    pretrained_meta,
    restore_run,
    save_nca,
    save_run,
)
from nca_helpers.model import NCA, perceive, seed_state
from nca_helpers.pgpe import PGPE

# What a damaged file or a full disk has stopped in orbax outlives its event loop, and complains.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

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
        with pytest.raises(ValueError, match=f"{name} is the automaton's own, .* got {value}"):
            save_nca(path, small_nca(), **{name: value})
    for value in (object(), np.nan, {"a": np.inf}, {1, 2}, b"bytes"):
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            save_nca(path, small_nca(), note=value)
    with pytest.raises(TypeError, match="nca must be an NCA, got PosixPath"):
        save_nca(small_nca(), path)
    for name in ("step", "__call__"):
        other = type("Other", (NCA,), {name: lambda self, state, *_, **__: state})
        with pytest.raises(TypeError, match=r"nca is a Other with a rule of its own; .* weights"):
            save_nca(path, other(rngs=nnx.Rngs(0)))
    half = small_nca()
    half.hidden.kernel = nnx.Param(half.hidden.kernel[...].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match=r"hidden/kernel must be float32 .* got bfloat16"):
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
    "foreign": (content(None), "no 'meta', only hidden/kernel"),
    "meta is no JSON": (content(np.array("{")), "Expecting"),
    "meta is a list": (content(np.array("[1]")), "needs a number 'format', got None"),
    "meta is an array": (content(np.array(["1", "2"])), "."),
    "meta is a number": (content(np.array(1)), "needs a number 'format'"),
    "meta is pickled": (content(pickled(1)), "allow_pickle=False"),
    "weights are pickled": (content(**{"hidden/bias": pickled(*range(7))}), "allow_pickle=False"),
    "newer": (content(META | {"format": 2}), "format 2, newer than 1.*update nca_helpers"),
    "older": (content(META | {"format": 0}), "format is out of range, got 0"),
    "no channels": (content({k: v for k, v in META.items() if k != "channels"}), "'channels'"),
    "few channels": (content(META | {"channels": 3}), "channels is out of range, got 3"),
    "other channels": (content(META | {"channels": 6}), r"hidden/kernel must be .* \(18, 7\)"),
    "channels is text": (content(META | {"channels": "5"}), "'channels', got '5'"),
    "channels is true": (content(META | {"channels": True}), "'channels', got True"),
    "channels is huge": (content(META | {"channels": 10**400}), "too large"),
    "fire_rate is 2": (content(META | {"fire_rate": 2}), "fire_rate is out of range"),
    "threshold is NaN": (content(META | {"alive_threshold": np.nan}), "'alive_threshold', got nan"),
    "no update": (content(**{"update/bias": None}), "it has no update/bias"),
    "wrong shape": (
        content(**{"update/kernel": np.zeros((5, 7), np.float32)}),
        r"\(7, 5\).*\(5, 7\)",
    ),
    "wrong type": (content(**{"hidden/bias": np.zeros(7)}), "float32 .* got float64"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_load_refuses(tmp_path, fault):
    data, message = FAULTS[fault]
    path = tmp_path / "faulty.npz"
    path.write_bytes(data)
    for load in (load_nca, load_meta):
        with pytest.raises(ValueError, match=rf"faulty\.npz is not a checkpoint .*{message}"):
            load(path)
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
    monkeypatch.setattr(checkpoint, "_pretrained_folder", lambda: tmp_path / "pretrained")
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
        with pytest.raises(ValueError, match="there are: ❤ persistent, 👩‍🚀 evolved, 🦎 growing"):
            pretrained(*request)
    with pytest.raises(ValueError, match="emoji must be"):
        pretrained("lizard", "growing")


def test_none_pretrained(folder):
    with pytest.raises(ValueError, match=r"growing.*there are: none"):
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


# Runs


def training(seed: int, length: int = 3) -> dict:
    """Returns a run of every kind of leaf; another seed gives other values in all of them."""
    random = np.random.default_rng(seed)
    nca = small_nca(seed)
    optimizer = nnx.Optimizer(nca, optax.adam(optax.constant_schedule(1e-3)), wrt=nnx.Param)
    optimizer.update(nca, jax.tree.map(lambda x: x + 1, nnx.state(nca, nnx.Param)))
    pgpe = PGPE(population_size=4, optimizer=optax.chain(optax.clip(1.0), optax.adam(0.1)))
    evolution = pgpe.init(random.normal(size=5), jax.random.key(seed), init_stdev=0.1)
    floats = np.array([0.0, -0.0, 1e-45, np.inf, np.nan, random.normal()], np.float32)
    floats.view(np.uint32)[4] += 1 + seed  # a NaN of its own
    return {
        "nca": nnx.state(nca),
        "optimizer": nnx.state(optimizer),
        "evolution": pgpe.tell(evolution, random.normal(size=4)),
        "pool": random.normal(size=(2, 3, 3, 5)).astype(np.float32),
        "losses": random.normal(size=length),
        "floats": (floats, jnp.asarray(floats)),
        "a.b/..": {"bfloat16": jnp.asarray(floats, jnp.bfloat16), "": np.arange(seed, seed + 2)},
        "none": [np.zeros((0, 2)), jnp.zeros((2, 0), jnp.bfloat16), None, optax.EmptyState()],
        "0-d": [np.array(seed), jnp.uint32(seed), np.float16(seed), np.bool_(seed)],
        "numbers": [seed - 2**63, seed + 0.1, seed == 1, complex(seed, -0.0)],
        "big-endian": np.arange(seed, seed + 3, dtype=">i2"),
        "fortran": np.asfortranarray(random.normal(size=(3, 4))),
        "flags": random.random((2, 2)) > 0.5,
    }


def assert_equal(run, wanted, like):
    assert jax.tree.structure(run) == jax.tree.structure(wanted)
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, (run, wanted, like)), strict=True)
    for (path, leaf), (_, original), (_, model) in leaves:
        name = jax.tree_util.keystr(path)
        assert type(leaf) is type(model), name
        assert np.shape(leaf) == np.shape(original), name
        here, there = np.asarray(leaf), np.asarray(original)
        assert here.dtype.name == there.dtype.name, name
        assert here.astype(there.dtype).tobytes() == there.tobytes(), name
        if isinstance(leaf, np.ndarray):
            assert leaf.flags.writeable, name
        if isinstance(leaf, jax.Array):
            assert not leaf.committed, name


def test_a_run_comes_back_bit_for_bit(tmp_path):
    wanted, like = training(1), training(0, length=0)
    like["pool"], like["floats"] = jnp.zeros((2, 3, 3, 5)), like["floats"][::-1]
    folder = save_run(tmp_path / "new" / "run", wanted, step=7, seed=np.int64(0), note=(1, "é"))
    assert folder == tmp_path / "new" / "run"
    for meta in ({}, {"seed": 0}, {"seed": np.int32(0), "note": [1, "é"]}):
        run, step = restore_run(folder, like, **meta)
        assert (step, type(step)) == (7, int)
        assert_equal(run, wanted, like)
    # What is restored can be saved, and one leaf alone is a run as well.
    save_run(folder, run, step=8)
    assert_equal(restore_run(str(folder), wanted)[0], wanted, wanted)
    save_run(folder, 0.5, step=np.int64(0))
    assert restore_run(folder, 0.0) == (0.5, 0)
    save_run(folder, {}, step=0)
    assert restore_run(folder, {}) == ({}, 0)


def test_flax_objects_go_on_where_they_were(tmp_path):
    def objects():
        nca = NCA(channels=5, hidden=7, rngs=nnx.Rngs(0))
        return nca, nnx.Optimizer(nca, optax.adam(0.1), wrt=nnx.Param)

    def train(nca, optimizer):
        optimizer.update(nca, jax.tree.map(jnp.sin, nnx.state(nca, nnx.Param)))

    nca, optimizer = objects()
    train(nca, optimizer)
    save_run(tmp_path, (nnx.state(nca), nnx.state(optimizer)), step=1)
    train(nca, optimizer)
    again = objects()
    (weights, moments), _ = restore_run(tmp_path, tuple(map(nnx.state, again)))
    nnx.update(again[0], weights)
    nnx.update(again[1], moments)
    train(*again)
    for other, wanted in zip(again, (nca, optimizer), strict=True):
        assert_equal(nnx.state(other), nnx.state(wanted), nnx.state(wanted))


def test_where_there_is_no_run(tmp_path):
    assert restore_run(tmp_path / "none", 0) is None
    assert not (tmp_path / "none").exists()
    (tmp_path / "nca_run_00000001.orbax-checkpoint-tmp").mkdir()
    assert restore_run(tmp_path, 0) is None


def copy_of(folder: Path) -> Path:
    return Path(shutil.copytree(folder, folder.with_name("copy")))


def test_the_last_one_counts_and_the_folder_does_not_grow(tmp_path):
    folder, strangers = tmp_path / "run", {"notes.txt", "7", "nca_run_00000000 copy", "nca_run_1"}
    for name in strangers:
        (folder / name / "nca_run_00000009").mkdir(parents=True)
    cut_short = "nca_run_00000001.orbax-checkpoint-tmp"
    (folder / cut_short / "d").mkdir(parents=True)
    sizes = []
    for step in (100, 3, 50, 3):  # a fresh run may begin in the folder of an old one
        save_run(folder, step, step=step)
        assert restore_run(folder, 0) == (step, step)
        (own,) = {path.name for path in folder.iterdir()} - strangers
        sizes.append(sum(path.stat().st_size for path in (folder / own).rglob("*")))
    assert max(sizes) < 1.2 * min(sizes)
    for name in strangers:
        assert (folder / name / "nca_run_00000009").is_dir()


def test_what_a_kill_leaves_of_the_old_run_does_not_count(tmp_path):
    folder = save_run(tmp_path / "run", 1, step=100)
    copy = copy_of(folder)
    save_run(folder, 2, step=5)
    (old,) = copy.iterdir()
    shutil.copytree(old, folder / old.name)
    assert restore_run(folder, 0) == (2, 5)
    # Deleting it was cut short.
    (folder / old.name / "manifest.ocdbt").unlink()
    assert restore_run(folder, 0) == (2, 5)
    save_run(folder, 3, step=6)
    assert len(list(folder.iterdir())) == 1


def test_an_older_whole_run_stands_in_for_a_damaged_one(tmp_path):
    folder = save_run(tmp_path / "run", 1, step=100)
    copy = copy_of(folder)
    save_run(copy, 2, step=101)
    (new,) = copy.iterdir()
    shutil.copytree(new, folder / new.name)
    assert restore_run(folder, 0) == (2, 101)
    (folder / new.name / "manifest.ocdbt").write_bytes(b"")
    assert restore_run(folder, 0) == (1, 100)


def test_damage_to_a_run_is_never_silent(tmp_path):
    run = {"pool": np.random.default_rng(0).normal(size=(30, 30)), "blank": np.zeros((30, 30))}
    folder = save_run(tmp_path / "run", run, step=7, seed=0)
    random, refused = np.random.default_rng(0), 0
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        for damage in ("gone", "empty", "half", *range(10)):
            data = bytearray(whole)
            if damage == "gone":
                path.unlink()
            elif isinstance(damage, str):
                path.write_bytes(whole[: len(whole) // 2 if damage == "half" else 0])
            else:
                data[random.integers(len(data))] ^= 1 << random.integers(8)
                path.write_bytes(data)
            try:
                restored, step = restore_run(folder, run, seed=0)
            except ValueError as error:
                assert f"the run in {folder} cannot be read" in str(error)
                refused += 1
            else:  # what was hit does not matter: a date, say
                assert step == 7
                assert_equal(restored, run, run)
            path.write_bytes(whole)
    assert refused > 20


def test_a_run_of_another_configuration_is_refused(tmp_path):
    save_run(tmp_path, {"pool": np.zeros(3)}, step=1, preset="laptop", seed=0, sizes=[1, 2])
    message = r"another run: preset is 'laptop' there, 'paper' here; seed is 0 there, 1 here$"
    with pytest.raises(ValueError, match=message):  # and not of its shapes
        restore_run(tmp_path, {}, preset="paper", seed=1, sizes=(1, 2))
    with pytest.raises(ValueError, match="regime is None there, 'growing' here"):
        restore_run(tmp_path, {}, regime="growing")
    with pytest.raises(ValueError, match="regime is None there, None here"):
        restore_run(tmp_path, {}, regime=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": np.zeros((4, 3))}, r"like\['pool'\] must be float32 of shape \(4, 3\) .*float64"),
        ({"pool": np.zeros((3, 4), np.float32)}, r"float32 of shape \(4, 3\) .*shape \(3, 4\)"),
        ({"pool": np.zeros(12, np.float32)}, r"like\['pool'\] .* got float32 of shape \(n,\)"),
        ({"losses": jnp.zeros(2)}, r"like\['losses'\] must be float32 of shape \(3,\) .*\(2,\)"),
        ({"losses": np.zeros(2)}, r"like\['losses'\] must be float32 .* got float64"),
        ({"count": 1.0}, r"like\['count'\] must be int64 of shape \(\) .* got float64"),
        ({"count": {"a": 1}}, r"like\['count'\] must be int64 .* got missing"),
        ({"more": 1}, r"like\['more'\] must be missing .* got int64"),
    ],
)
def test_a_run_of_another_kind_is_refused(tmp_path, changes, message):
    run = {
        "pool": np.zeros((4, 3), np.float32),
        "losses": np.zeros(3, np.float32),
        "count": 2,
    }
    save_run(tmp_path, run, step=1)
    assert restore_run(tmp_path, run | {"losses": np.zeros(0, np.float32)})
    with pytest.raises(ValueError, match=message):
        restore_run(tmp_path, run | changes)


def test_save_run_refuses(tmp_path):
    folder = tmp_path / "run"
    for step in (-1, 1.0, True, "3", None):
        with pytest.raises(
            ValueError, match=f"step must be an integer of at least 0, got {step!r}"
        ):
            save_run(folder, {}, step=step)
    texts, objects = np.array(["a"]), np.array([None])
    for leaf in ("a", object(), 2**63, texts, objects, np.datetime64(0, "s"), jax.random.key(0)):
        message = r"run\['a'\]\[0\] must be a number or an array of numbers, got"
        with pytest.raises(ValueError, match=message):
            save_run(folder, {"a": [leaf]}, step=0)
        with pytest.raises(ValueError, match=message.replace("run", "like")):
            restore_run(folder, {"a": [leaf]})
    for value in (object(), np.nan, {1, 2}):
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            save_run(folder, {}, step=0, note=value)
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            restore_run(folder, {}, note=value)
    assert not folder.exists()
    folder.write_text("a file")
    for action in (lambda: save_run(folder, {}, step=0), lambda: restore_run(folder, {})):
        with pytest.raises(ValueError, match=r"folder must be a folder, got the file .*run"):
            action()
    assert folder.read_text() == "a file"


def test_a_full_disk_leaves_the_old_run(tmp_path):
    folder = save_run(tmp_path / "run", np.zeros(9), step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"the run cannot be written to .*run: "):
            save_run(folder, np.random.default_rng(0).normal(size=90_000), step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run, step = restore_run(folder, np.zeros(0))
    assert (run.tolist(), step) == ([0] * 9, 1)
    assert len(list(folder.iterdir())) == 1


def test_an_interrupt_waits_until_the_run_is_whole(tmp_path, monkeypatch):
    save = orbax.checkpoint.Checkpointer.save

    def interrupted(*arguments):
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        save(*arguments)

    folder = save_run(tmp_path / "run", 1, step=1)
    monkeypatch.setattr(orbax.checkpoint.Checkpointer, "save", interrupted)
    # A shell starts its background jobs, as CI may be, with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_run(folder, 2, step=2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert restore_run(folder, 0) == (2, 2)
    monkeypatch.undo()
    save_run(folder, 3, step=3)
    assert len(list(folder.iterdir())) == 1


KERNEL = """
import sys
from nca_helpers.checkpoint import restore_run, save_run
assert not {"orbax", "orbax.checkpoint", "tensorstore"} & set(sys.modules)

import logging
import os
import jax.numpy as jnp
import numpy as np
log = logging.getLogger("absl")
log.setLevel(logging.INFO)  # As on Colab.
log.addHandler(logging.StreamHandler())
run = {"weights": jnp.ones(3), "pool": np.ones((4, 5)), "losses": np.zeros(0)}
for step in range(3):
    os.makedirs(f"run/nca_run_{step:08}.orbax-checkpoint-tmp")  # a kill left it
    folder = save_run("run", run, step=step)
    assert restore_run("run", run)[1] == step
assert log.level == logging.INFO
"""


def test_in_a_kernel_a_run_is_saved_and_restored_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(KERNEL)])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()
    assert notebook.cells[0].outputs == []
