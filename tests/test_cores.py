"""Which cores a process may use, and a device of each, in interpreters of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import reference

import nca_helpers
from nca_helpers.devices import usable_cores, use_every_core

# Which cores this process may use


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """Returns a function that counts cores: of eight, with these files of cgroups."""
    monkeypatch.delenv("PYTHON_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    def count(groups: str | bytes | None, files=()) -> int:
        texts = {f"cgroup/{name}": text for name, text in dict(files).items()}
        if groups is not None:
            texts["proc/self/cgroup"] = groups
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return usable_cores(tmp_path / "cgroup", tmp_path / "proc")

    return count


def version_2(quota, folder: str = "") -> dict[str, str]:
    return {f"{folder}cpu.max": f"{quota} 100000\n"}


def version_1(quota, folder: str) -> dict[str, str]:
    return {f"{folder}cpu.cfs_quota_us": f"{quota}\n", f"{folder}cpu.cfs_period_us": "100000\n"}


BOTH_CONTROLLERS = "12:memory:/box\n5:cpu,cpuacct:/\n1:name=systemd:/box\n"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [(150_000, 1), (199_999, 1), (200_000, 2), (400_000, 4), (50_000, 1), (1_600_000, 8)],
)
def test_a_quota_of_processor_time_limits_the_cores(cores, quota, expected):
    assert cores("0::/\n", version_2(quota)) == expected


@pytest.mark.parametrize("quota", [150_000, 400_000])
@pytest.mark.parametrize("folder", ["cpu,cpuacct/", "cpu/"])
def test_so_does_one_of_version_1(cores, quota, folder):
    assert cores(BOTH_CONTROLLERS, version_1(quota, folder)) == quota // 100_000


def test_no_quota_is_no_limit(cores):
    assert cores("0::/\n", version_2("max")) == 8
    assert cores(BOTH_CONTROLLERS, version_1(-1, "cpu,cpuacct/")) == 8


def test_no_more_cores_than_the_process_may_run_on(cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    assert cores("0::/\n", version_2(400_000)) == 2


@pytest.mark.parametrize("folder", ["", "a/", "a/b/", "a/b/c/"])
def test_the_tightest_of_nested_groups_counts(cores, folder):
    open_ones = {name: "max 100000\n" for name in ("a/cpu.max", "a/b/cpu.max", "a/b/c/cpu.max")}
    assert cores("0::/a/b/c\n", open_ones | version_2(300_000, folder)) == 3


@pytest.mark.parametrize("folder", ["", "a/", "a/b/"])
def test_the_tightest_of_nested_groups_of_version_1_counts(cores, folder):
    files = version_1(700_000, "cpu/a/b/") | version_1(300_000, "cpu/" + folder)
    assert cores("4:cpu:/a/b\n", files) == 3


def test_both_versions_side_by_side(cores):
    files = version_1(300_000, "cpu,cpuacct/") | version_2("max", "unified/")
    assert cores(BOTH_CONTROLLERS + "0::/\n", files) == 3


def test_a_group_that_is_not_this_process_s_is_not_read(cores):
    files = version_2(100_000, "other/") | version_1(100_000, "memory/")
    assert cores("0::/mine\n3:memory:/\n", files) == 8


@pytest.mark.parametrize(
    "text", ["", "\n", "max", "100000", "many 100000", "100000 0", "1 2 3", b"\xff\xfe"]
)
def test_a_quota_that_cannot_be_read_is_no_limit(cores, text):
    assert cores("0::/\n", {"cpu.max": text}) == 8


@pytest.mark.parametrize("groups", [None, "", "\n", "nonsense\n", "0:\n", "::\n", b"\xff:\xfe\n"])
def test_groups_that_cannot_be_read_are_no_limit(cores, groups):
    assert cores(groups) == 8


def test_a_quota_without_its_period_is_no_limit(cores):
    assert cores("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000"}) == 8


def test_a_folder_where_a_file_is_expected_is_no_limit(cores):
    assert cores("0::/\n", {"cpu.max/inside": ""}) == 8


def test_python_s_own_setting_comes_first(cores, monkeypatch):
    monkeypatch.setenv("PYTHON_CPU_COUNT", "3")
    assert cores("0::/\n", version_2(100_000)) == 3
    for as_if_unset in ("default", ""):  # Python ignores a variable that is empty.
        monkeypatch.setenv("PYTHON_CPU_COUNT", as_if_unset)
        assert cores("0::/\n", version_2(200_000)) == 2


@pytest.mark.parametrize("count", ["0", "-1", "two", "1.5"])
def test_a_setting_of_python_that_is_no_count_is_refused(monkeypatch, count):
    monkeypatch.setenv("PYTHON_CPU_COUNT", count)
    reference.refuses(usable_cores, "PYTHON_CPU_COUNT", repr(count))


# A device of each core. Each script runs in an interpreter of its own.

USED = """
import os
import jax

settings, environment = dict(jax.config.values), dict(os.environ)
import nca_helpers

assert dict(jax.config.values) == settings and dict(os.environ) == environment
{before}
mesh = nca_helpers.use_every_core()
assert list(mesh.devices.flat) == jax.local_devices() == jax.devices()
jax.set_mesh(mesh)
print("again")
assert nca_helpers.use_every_core() == mesh
print("devices:", jax.device_count(), float(jax.numpy.ones(5).sum()))
"""


def use(before: str = "", prefix=(), **environment: str) -> tuple[str, str, int]:
    """Returns what the first and the second call say, and how many devices there are."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHON_CPU_COUNT", "JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    }
    paths = {"PYTHONPATH": str(Path(nca_helpers.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    ran = subprocess.run(
        [*prefix, sys.executable, "-c", USED.format(before=before)],
        env=ours | paths | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    first, _, rest = ran.stdout.partition("again\n")
    second, _, seen = rest.partition("devices: ")
    count, total = seen.split()
    assert total == "5.0"
    return first, second, int(count)


def test_every_core_becomes_a_device():
    first, second, count = use(PYTHON_CPU_COUNT="3")
    assert count == 3
    assert first.startswith("3 × ") and f"JAX {jax.__version__}" in first
    assert len(first.splitlines()) == 1
    assert second == first, "Running the cell twice is fine."


def test_once_jax_runs_nothing_is_changed_and_that_is_said():
    first, second, count = use("jax.devices()", PYTHON_CPU_COUNT="3")
    assert count == 1
    assert first.startswith("1 × ") and "restart" in first and "3 cores" in first
    assert second == first


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"JAX_NUM_CPU_DEVICES": "2"}, 2),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
    ],
    ids=["JAX_NUM_CPU_DEVICES", "XLA_FLAGS"],
)
def test_a_number_of_devices_that_was_asked_for_stays(environment, count):
    first, _, found = use(PYTHON_CPU_COUNT="3", **environment)
    assert found == count
    assert first.startswith(f"{count} × ") and len(first.splitlines()) == 1


@pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is missing")
def test_a_process_that_may_use_one_core_makes_one_device():
    core = str(min(os.sched_getaffinity(0)))
    first, _, count = use(prefix=("taskset", "-c", core))
    assert count == 1
    assert first.startswith("1 × ") and len(first.splitlines()) == 1


class Chip:
    """A device that is not here."""

    platform, device_kind = "tpu", "TPU v5e"

    def __init__(self, number):
        self.id = number


def test_an_accelerator_is_left_as_it_is(monkeypatch, capsys):
    jax.devices()  # No setting of this process is to be changed.
    before = dict(jax.config.values)
    chips = [Chip(i) for i in range(4)]
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: chips)
    mesh = use_every_core()
    assert capsys.readouterr().out.splitlines() == [f"4 × TPU v5e, JAX {jax.__version__}"]
    assert list(mesh.devices.flat) == chips
    assert dict(jax.config.values) == before
