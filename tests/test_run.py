import io
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx

from nca_helpers.model import NCA
from nca_helpers.pgpe import PGPE
from nca_helpers.run import restore_run, save_run

ROOT = Path(__file__).parents[1]


def training(seed: int, length: int = 3) -> dict:
    """Returns a run of every kind of leaf; another seed gives other values in all of them."""
    random = np.random.default_rng(seed)
    nca = NCA(channels=5, hidden=7, rngs=nnx.Rngs(seed))
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
        "🦎\x00\n" + 300 * "long": np.float64(seed),
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


def run_script(script: str, *arguments, **environment) -> str:
    """Runs a program that needs the package; returns what it printed."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# Saving and restoring


def test_a_run_comes_back_bit_for_bit(tmp_path):
    wanted, like = training(1), training(0, length=0)
    like["pool"], like["floats"] = jnp.zeros((2, 3, 3, 5)), like["floats"][::-1]
    folder = save_run(tmp_path / "new" / "run", wanted, step=7, seed=np.int64(0), note=(1, "é"))
    assert folder == tmp_path / "new" / "run"
    for meta in ({}, {"seed": 0}, {"seed": np.int32(0), "note": [1, "é"]}):
        run, step = restore_run(folder, like, **meta)
        assert (step, type(step)) == (7, int)
        assert_equal(run, wanted, like)
    # JAX has no other order of bytes than the machine's.
    numbers, _ = restore_run(folder, like | {"big-endian": jnp.zeros(3, jnp.int16)})
    assert isinstance(numbers["big-endian"], jax.Array)
    assert numbers["big-endian"].tolist() == wanted["big-endian"].tolist()
    # What is restored can be saved, and one leaf alone is a run as well.
    save_run(folder, run, step=8)
    assert_equal(restore_run(str(folder), wanted)[0], wanted, wanted)
    save_run(folder, 0.5, step=np.int64(0))
    assert restore_run(folder, 0.0) == (0.5, 0)
    save_run(folder, {}, step=0)
    assert restore_run(folder, {}) == ({}, 0)


NUMPY = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"
OTHERS = [name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint"))]
# JAX 0.7 does not know all of them.
OTHERS = [name for name in OTHERS if jnp.issubdtype(getattr(ml_dtypes, name), np.number)]


@pytest.mark.parametrize("name", [*NUMPY.split(), "complex128", *OTHERS])
@pytest.mark.parametrize("shape", [(4, 64), (256,), (0, 3), (0,), ()])
def test_every_type_in_every_shape(tmp_path, name, shape):
    dtype = np.dtype(getattr(ml_dtypes, name) if name in OTHERS else name)
    bits = np.random.default_rng(0).permutation(256 * dtype.itemsize).astype(np.uint8)
    if name == "bool" or name.removeprefix("u") in ("int1", "int2", "int4"):
        values = (bits % 2).astype(dtype)
    else:  # every pattern of a byte's bits, NaN of many kinds among them
        values = bits.view(dtype)
    array = values[: np.prod(shape, dtype=int)].reshape(shape)
    run = {"numpy": array, "scalar": values[7], "turned": array.T}
    like = {"numpy": np.zeros(shape, dtype), "scalar": dtype.type(0), "turned": array.T}
    if dtype.itemsize < 8 and name not in ("float6_e2m3fn", "float6_e3m2fn", "int1", "uint1"):
        # JAX has no longer ones by default, and not those.
        run["jax"], like["jax"] = jnp.asarray(array), jnp.zeros(shape, dtype)
    save_run(tmp_path, run, step=1)
    assert_equal(restore_run(tmp_path, like)[0], run, like)


def test_the_file_is_read_without_pickle_or_the_package(tmp_path):
    run = {"pool": np.ones((2, 3)), "half": jnp.asarray([1.5, -2.0], jnp.bfloat16), "n": 3}
    save_run(tmp_path, run, step=7, emoji="🦎")
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]
    with np.load(tmp_path / "run.npz", allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        arrays = [file[str(number)] for number in range(3)]
        assert len(file) == 4
    assert about["step"] == 7 and about["meta"] == {"emoji": "🦎"}
    kinds = {"['half']": ["bfloat16", [2]], "['n']": ["int64", []], "['pool']": ["float64", [2, 3]]}
    assert list(about["leaves"].items()) == list(kinds.items())
    # A bfloat16 is the upper half of a float32.
    assert (arrays[0].astype(np.uint32) << 16).view(np.float32).tolist() == [1.5, -2.0]
    assert arrays[1] == 3 and arrays[2].tolist() == [[1, 1, 1], [1, 1, 1]]


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


def test_a_run_of_an_older_version_is_named(tmp_path):
    """It was a folder in the folder, nca_run_ and eight digits."""
    (tmp_path / "nca_run_00000042").mkdir()
    (tmp_path / "nca_run_00000042" / "manifest.ocdbt").write_bytes(b"orbax")
    message = f"the run in {tmp_path} was saved by an older version of nca_helpers and cannot go on"
    with pytest.raises(ValueError, match=message):
        restore_run(tmp_path, 0)
    save_run(tmp_path, 1, step=2)
    assert restore_run(tmp_path, 0) == (1, 2)
    assert (tmp_path / "nca_run_00000042" / "manifest.ocdbt").exists()


def test_the_last_one_counts_and_the_folder_does_not_grow(tmp_path):
    strangers = {"notes.txt", "run", "run.npz.bak", ".run.npz", "0.npy"}
    for name in strangers:
        (tmp_path / name).write_text(name)
    sizes = []
    for step in (100, 3, 50, 3):  # a fresh run may begin in the folder of an old one
        save_run(tmp_path, step, step=step)
        assert restore_run(tmp_path, 0) == (step, step)
        assert {path.name for path in tmp_path.iterdir()} == strangers | {"run.npz"}
        sizes.append((tmp_path / "run.npz").stat().st_size)
    assert max(sizes) < 1.2 * min(sizes)
    assert all((tmp_path / name).read_text() == name for name in strangers)


def test_neither_orbax_nor_tensorstore_is_needed_and_nothing_is_said(tmp_path):
    script = """
import sys
import jax.numpy as jnp
import numpy as np
from nca_helpers.run import restore_run, save_run
run = {"weights": jnp.ones(3), "pool": np.ones((4, 5)), "losses": np.zeros(0)}
assert restore_run(save_run(sys.argv[1], run, step=3), run)[1] == 3
assert not {"orbax", "orbax.checkpoint", "tensorstore"} & set(sys.modules)
"""
    assert run_script(script, tmp_path) == ""


# Devices and processes


SPREAD = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from nca_helpers.run import restore_run, save_run

mesh = Mesh(np.array(jax.devices()), ("device",))
pool, weights = np.arange(96.0, dtype=np.float32).reshape(12, 8), np.arange(5, dtype=np.float32)
run = {
    "sharded": jax.device_put(pool, NamedSharding(mesh, P("device"))),
    "replicated": jax.device_put(weights, NamedSharding(mesh, P())),
    "last": jax.device_put(weights, jax.devices()[-1]),
    "half": jax.device_put(jnp.asarray(pool, jnp.bfloat16), NamedSharding(mesh, P("device"))),
}
found = restore_run(sys.argv[1], run)
if found:
    like, (run, step) = run, found
    assert step == int(sys.argv[2]) - 1
    for name, wanted in dict(sharded=pool, replicated=weights, last=weights, half=pool).items():
        assert np.array_equal(np.asarray(run[name], np.float32), wanted), name
        assert not run[name].committed
    jax.jit(lambda run, like: jax.tree.map(jnp.add, run, like))(run, like | {"last": 0.0})
    run = like
save_run(sys.argv[1], run, step=int(sys.argv[2]))
print(len(jax.devices()))
"""


def test_a_run_goes_on_with_another_number_of_devices(tmp_path):
    for step, devices in enumerate((4, 1, 6, 2)):
        flags = f"--xla_force_host_platform_device_count={devices}"
        assert int(run_script(SPREAD, tmp_path, step, XLA_FLAGS=flags)) == devices


CLUSTER = """
import sys
import jax
me, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, me)
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from nca_helpers.run import restore_run, save_run

mesh = Mesh(np.array(jax.devices()), ("device",))
whole = jax.make_array_from_callback((4,), NamedSharding(mesh, P()), lambda i: np.arange(4.0)[i])
part = jax.make_array_from_callback((4,), NamedSharding(mesh, P("device")),
                                    lambda i: np.arange(4.0)[i])
assert not whole.is_fully_addressable and not part.is_fully_addressable
run = {"whole": whole, "mine": me}
for step in range(1 + me):  # Nobody waits for the others.
    save_run(f"{folder}/{me}", run, step=step)
restored, step = restore_run(f"{folder}/{me}", {"whole": np.zeros(4, np.float32), "mine": 0})
assert step == restored["mine"] == me
assert restored["whole"].tolist() == [0, 1, 2, 3]
try:
    save_run(f"{folder}/{me}", {"part": part}, step=9)
except ValueError as error:
    print(error, flush=True)
jax.distributed.shutdown()
"""


def test_in_a_cluster_each_process_saves_for_itself(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER, str(me), str(port), str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me in range(2)
    ]
    try:
        for process in processes:
            said, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            message = "run['part'] must be a number or an array of numbers that this process holds"
            assert said.startswith(message)
            assert "float32, shape (4,)" in said
    finally:
        for process in processes:
            process.kill()
            process.communicate()


ANOTHER = """
import sys
from nca_helpers.run import save_run
for step in map(int, sys.stdin):
    save_run(sys.argv[1], {}, step=step)
    print(step, flush=True)
"""


def test_the_second_of_two_programs_with_one_folder_is_told(tmp_path):
    def said(step):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            save_run(tmp_path, {}, step=step)
        assert restore_run(tmp_path, {})[1] == step
        return [str(warning.message) for warning in caught]

    another = subprocess.Popen(
        [sys.executable, "-c", ANOTHER, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    message = f"another program that still runs, a second kernel perhaps, has saved in {tmp_path}"
    try:
        assert said(step=1) == []
        print(2, file=another.stdin, flush=True)
        assert another.stdout.readline() == "2\n"
        (told,) = said(step=3)
        assert told.startswith(message) and "\n" not in told
        assert said(step=4) == []  # Nobody else has saved since.
        print(5, file=another.stdin, flush=True)
        assert another.stdout.readline() == "5\n"
    finally:
        another.kill()
        _, errors = another.communicate()
    assert errors.count(message) == 1  # Python says a sentence once.
    assert said(step=6) == []  # Whose kernel was restarted is nobody's rival.
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


# Damage


def damaged(data: bytes, random: np.random.Generator) -> bytes:
    """Returns the file as a bad disk or a transfer cut short may leave it."""
    changed = bytearray(data)
    kind = random.choice(
        ["bits", "cut", "zeros", "moved", "doubled"], p=[0.8, 0.05, 0.05, 0.05, 0.05]
    )
    first, last = sorted(random.integers(len(data) + 1, size=2))
    if kind == "bits":
        for _ in range(random.integers(1, 4)):
            changed[random.integers(len(data))] ^= 1 << random.integers(8)
    elif kind == "cut":
        del changed[first:last]
    elif kind == "zeros":
        changed[first:last] = bytes(last - first)
    elif kind == "moved":
        changed = changed[first:] + changed[:first]
    else:
        changed[first:first] = changed[first:last]
    return bytes(changed)


def test_damage_to_a_run_is_never_silent(tmp_path):
    run = {
        "pool": np.random.default_rng(0).normal(size=(8, 8)),
        "blank": np.zeros((8, 8)),
        "half": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4),
        "losses": np.arange(12.0),
        "count": 3,
    }
    like = run | {"losses": np.zeros(0)}
    path = save_run(tmp_path / "run", run, step=7, seed=0) / "run.npz"
    whole, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    pieces = [b"", *(whole[: len(whole) * part // 8] for part in range(1, 8)), whole[:-1]]
    for data in [*pieces, *(damaged(whole, random) for _ in range(1500))]:
        path.write_bytes(data)
        try:
            restored, step = restore_run(path.parent, like, seed=0)
        except ValueError as error:
            assert f"the run in {path.parent} cannot be read" in str(error)
            assert len(str(error)) < 400
            refused += 1
        else:  # what was hit does not matter: a date, say
            assert step == 7
            assert_equal(restored, run, run)
    assert refused > 1000
    path.unlink()
    assert restore_run(path.parent, run) is None


def test_an_array_that_is_shorter_than_it_was_is_damage(tmp_path):
    """A zip's checksum is of a whole array: of one that seems shorter nobody reads the rest."""
    path = save_run(tmp_path, {"losses": np.arange(12_000.0)}, step=1) / "run.npz"
    path.write_bytes(path.read_bytes().replace(b"(12000,)", b"(11000,)"))
    with np.load(path) as file:
        assert len(file["0"]) == 11_000
    with pytest.raises(
        ValueError, match=r"cannot be read: \['losses'\] is float64 of shape \(11000"
    ):
        restore_run(tmp_path, {"losses": np.zeros(0)})


def test_another_file_of_that_name_is_no_run(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(3))
    array = io.BytesIO()
    np.save(array, np.arange(3))
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("about", "text")
    for data in (b"<html>404</html>", buffer.getvalue(), array.getvalue(), bytes(999)):
        (tmp_path / "run.npz").write_bytes(data)
        with pytest.raises(ValueError, match=r"the run in .* cannot be read: ."):
            restore_run(tmp_path, 0)
    (tmp_path / "run.npz").write_bytes((tmp_path / "zip").read_bytes())
    with pytest.raises(ValueError, match=r"the run in .* cannot be read: ."):
        restore_run(tmp_path, 0)


# What is refused


def test_a_run_of_another_configuration_is_refused(tmp_path):
    save_run(tmp_path, {"pool": np.zeros(3)}, step=1, preset="laptop", seed=0, sizes=[1, 2])
    message = r"another run: preset is 'laptop' there, 'paper' here; seed is 0 there, 1 here$"
    with pytest.raises(ValueError, match=message):  # and not of its shapes
        restore_run(tmp_path, {}, preset="paper", seed=1, sizes=(1, 2))
    with pytest.raises(ValueError, match="regime is None there, 'growing' here"):
        restore_run(tmp_path, {}, regime="growing")
    with pytest.raises(ValueError, match="regime is None there, None here"):
        restore_run(tmp_path, {}, regime=None)
    with pytest.raises(ValueError) as error:
        restore_run(tmp_path, {}, preset="long " * 10_000)
    assert len(str(error.value)) < 600


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
        ({"half": np.zeros(2, np.uint16)}, r"like\['half'\] must be bfloat16 .* got uint16"),
    ],
)
def test_a_run_of_another_kind_is_refused(tmp_path, changes, message):
    run = {
        "pool": np.zeros((4, 3), np.float32),
        "losses": np.zeros(3, np.float32),
        "half": np.zeros(2, jnp.bfloat16),
        "count": 2,
    }
    save_run(tmp_path, run, step=1)
    assert restore_run(tmp_path, run | {"losses": np.zeros(0, np.float32)})
    with pytest.raises(ValueError, match=message):
        restore_run(tmp_path, run | changes)


@jax.tree_util.register_pytree_with_keys_class
class Twins:
    """A tree of somebody else's whose leaves have one name."""

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("twin"), value) for value in (1, 2)], None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls()


def test_save_run_refuses(tmp_path):
    folder = tmp_path / "run"
    for step in (-1, 1.0, True, "3", None):
        with pytest.raises(
            ValueError, match=f"step must be an integer of at least 0, got {step!r}"
        ):
            save_run(folder, {}, step=step)
    texts, objects, gone = np.array(["a"]), np.array([None]), jnp.zeros(3)
    gone.delete()
    key, records = jax.random.key(0), np.zeros(3, [("a", int)])
    for leaf in ("a", object(), 2**63, texts, objects, records, np.datetime64(0, "s"), key, gone):
        message = r"run\['a'\]\[0\] must be a number or an array of numbers that .*, got "
        with pytest.raises(ValueError, match=message):
            save_run(folder, {"a": [leaf]}, step=0)
        with pytest.raises(ValueError, match=message.replace("run", "like")):
            restore_run(folder, {"a": [leaf]})
    with pytest.raises(ValueError, match="run must be a tree whose leaves differ in name"):
        save_run(folder, Twins(), step=0)
    for value in (object(), np.nan, {1, 2}):
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            save_run(folder, {}, step=0, note=value)
        with pytest.raises(ValueError, match="meta 'note' must be what JSON can hold"):
            restore_run(folder, {}, note=value)
    assert not folder.exists()
    folder.write_text("a file")
    for action in (lambda: save_run(folder, {}, step=0), lambda: restore_run(folder, {})):
        with pytest.raises(ValueError, match=rf"folder must be a folder, got '{folder}'"):
            action()
    assert folder.read_text() == "a file"


# Interrupts, kills and a full disk


def test_a_full_disk_leaves_the_old_run(tmp_path):
    folder = save_run(tmp_path / "run", np.zeros(9), step=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{folder}/run.npz'"):
            save_run(folder, np.random.default_rng(0).normal(size=90_000), step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    run, step = restore_run(folder, np.zeros(0))
    assert (run.tolist(), step) == ([0] * 9, 1)
    assert len(list(folder.iterdir())) == 1


STOPPED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from nca_helpers.run import restore_run, save_run

folder, stop, trials = Path(sys.argv[1]), getattr(signal, sys.argv[2]), int(sys.argv[3])


def run(step):
    return {
        "pool": np.full((200, 1000), step),
        "losses": np.arange(step % 7, dtype=float),
        "count": step,
    }


def save_forever(step, pipe):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            step += 1
            save_run(folder, run(step), step=step)
            os.write(pipe, b".")
    except KeyboardInterrupt:
        os._exit(0)


save_run(folder, run(0), step=0)
saved = left = cut_short = 0
for trial in range(trials):
    output, pipe = os.pipe()
    process = os.fork()
    if not process:
        save_forever(saved, pipe)
    os.close(pipe)
    os.read(output, 1)
    done = saved + 1
    time.sleep(random.uniform(0, 0.03))
    while os.waitpid(process, os.WNOHANG) == (0, 0):  # An interrupt may go down, in a callback.
        os.kill(process, stop)
        time.sleep(0.01)
    done += len(os.read(output, 10**6))
    os.close(output)
    there, step = restore_run(folder, run(0))
    # No older than the last one that save_run has returned for.
    assert step in (done, done + 1), (step, done)
    for name, wanted in run(step).items():
        assert np.array_equal(there[name], wanted), name
    saved = step
    left += len(list(folder.iterdir())) > 1
    cut_short += step == done
save_run(folder, run(1), step=1)
assert [path.name for path in folder.iterdir()] == ["run.npz"]
print(left, cut_short)
"""


def test_a_kill_at_any_moment_leaves_a_whole_run(tmp_path):
    left, cut_short = map(int, run_script(STOPPED, tmp_path, "SIGKILL", 40).split())
    assert left and cut_short  # Some came in the middle of the writing.


def test_an_interrupt_at_any_moment_leaves_a_whole_run_and_nothing_else(tmp_path):
    left, cut_short = map(int, run_script(STOPPED, tmp_path, "SIGINT", 40).split())
    assert cut_short and not left


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_interrupt_is_raised_after_the_run_is_whole(tmp_path, monkeypatch, moment):
    save_run(tmp_path, 1, step=1)
    replace = os.replace

    def interrupted(*arguments):
        if moment == "after":
            replace(*arguments)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(os, "replace", interrupted)
    # A shell starts its background jobs, as CI may be, with the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            save_run(tmp_path, 2, step=2)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert restore_run(tmp_path, 0) == ((1, 1) if moment == "before" else (2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["run.npz"]


@pytest.mark.parametrize("version", ["0.11.2", "0.12.8"])
def test_a_run_saved_with_another_flax_goes_on(tmp_path, version):
    """The files were saved after one step, with those versions of Flax."""
    nca = NCA(channels=5, hidden=8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(nca, optax.adam(1e-3), wrt=nnx.Param)
    run = {"nca": nnx.state(nca), "optimizer": nnx.state(optimizer), "losses": np.zeros(1)}
    run["pool"] = np.zeros((2, 4, 4, 5), np.float32)
    before = np.asarray(nca.hidden.kernel[...])
    saved = Path(__file__).parent / "data" / f"run_flax_{version}.npz"
    (tmp_path / "run.npz").write_bytes(saved.read_bytes())

    restored, step = restore_run(tmp_path, run, emoji="x")
    nnx.update(nca, restored["nca"])
    nnx.update(optimizer, restored["optimizer"])
    assert step == 3 and int(optimizer.step[...]) == 1
    np.testing.assert_array_equal(restored["losses"], [0, 1, 2])
    # Adam's first step down a gradient of ones is the learning rate.
    np.testing.assert_allclose(nca.hidden.kernel[...], before - 1e-3, atol=1e-7)
    optimizer.update(nca, jax.tree.map(jnp.ones_like, nnx.state(nca, nnx.Param)))
    np.testing.assert_allclose(nca.hidden.kernel[...], before - 2e-3, atol=1e-6)
