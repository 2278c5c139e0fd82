import contextlib
import http.server
import multiprocessing
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from nca_helpers import files
from nca_helpers.checkpoint import load_meta, load_nca, save_nca
from nca_helpers.files import fetch, replace_file
from nca_helpers.model import NCA, nnx
from nca_helpers.player import save_player
from nca_helpers.run import restore_run, save_run
from nca_helpers.video import save_video

ROOT = Path(__file__).parents[1]
LIKE = np.zeros(3)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder, and another folder to work in."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


# Which paths


class Place:
    """A path of somebody else's, as `os.PathLike` says."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Place])
@pytest.mark.parametrize("name", ["a", "a b/c d.npz", "🦎/é ☃.npz", "new/and/deep.gif", "-x", "*?"])
def test_any_name_in_any_kind_of_path(tmp_path, kind, name):
    for data in (b"old", b"", b"\x00new\r\n"):
        assert replace_file(kind(tmp_path / name), data) == tmp_path / name
        assert (tmp_path / name).read_bytes() == data
        assert len(list((tmp_path / name).parent.iterdir())) == 1


def test_a_name_as_long_as_the_disk_allows(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    for name in ("a" * longest, "🦎" * (longest // 4)):
        replace_file(tmp_path / name, b"long")
        assert (tmp_path / name).read_bytes() == b"long"
    with pytest.raises(OSError, match=r"File name too long: .*aaa"):
        replace_file(tmp_path / ("a" * (longest + 1)), b"")


def test_a_function_may_write(tmp_path):
    replace_file(tmp_path / "a.npz", lambda file: np.savez(file, a=np.arange(3)))
    with np.load(tmp_path / "a.npz") as saved:
        assert saved["a"].tolist() == [0, 1, 2]


def test_the_wave_is_the_home_folder(home):
    assert replace_file("~/a/b.txt", b"text") == home / "a" / "b.txt"
    assert (home / "a" / "b.txt").read_bytes() == b"text"
    nca = NCA(channels=4, hidden=1, rngs=nnx.Rngs(0))
    assert save_nca("~/nca.npz", nca, emoji="🦎") == home / "nca.npz"
    for path in ("~/nca.npz", Path("~/nca.npz"), home / "nca.npz"):
        assert load_meta(path)["emoji"] == "🦎"
        assert load_nca(path).hidden_size == 1
    assert save_player("~/nca.html", nca, size=8) == home / "nca.html"
    assert save_video("~/white.gif", np.ones((1, 2, 2, 3))) == home / "white.gif"
    assert {path.name for path in home.iterdir()} == {"a", "nca.npz", "nca.html", "white.gif"}
    assert save_run("~/run", LIKE, step=2) == home / "run"
    for path in ("~/run", Path("~/run"), home / "run"):
        assert restore_run(path, LIKE)[1] == 2
    assert list(Path().iterdir()) == []


def test_a_symbolic_link_stays(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").write_bytes(b"old")
    for target in ("data/file", str(tmp_path / "data" / "file"), "data/file2", "other/file"):
        link = tmp_path / "link"
        link.symlink_to(target)
        assert replace_file(link, target.encode()) == link
        assert os.readlink(link) == target
        assert (tmp_path / target).read_bytes() == link.read_bytes() == target.encode()
        link.unlink()
    assert content(tmp_path) == {}
    (tmp_path / "folder").symlink_to("data")
    replace_file(tmp_path / "folder" / "file", b"through a folder")
    assert (tmp_path / "data" / "file").read_bytes() == b"through a folder"


@pytest.mark.parametrize("path", ["", ".", "folder", "folder/", "/", "link", "/dev/null", "pipe"])
def test_what_is_no_file_is_refused_before_anything_is_written(home, path):
    (Path("folder") / "inner").mkdir(parents=True)
    Path("link").symlink_to("folder")
    os.mkfifo("pipe")
    before = sorted(Path().rglob("*"))
    for given in (path, *([Path(path)] if path else [])):
        with pytest.raises(ValueError, match="path must be the path of a file, got") as refusal:
            replace_file(given, b"data")
        assert repr(given) in str(refusal.value)
    with pytest.raises(ValueError, match="path must be the path of a file"):
        save_nca(path, NCA(channels=4, hidden=1, rngs=nnx.Rngs(0)))
    assert sorted(Path().rglob("*")) == before
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("path", [None, 3, b"bytes", ["a"], "~nobody-of-that-name/a"])
def test_what_is_no_path_is_refused(home, path):
    with pytest.raises(ValueError, match=r"path must be a path, .* got ") as refusal:
        replace_file(path, b"data")
    assert repr(path) in str(refusal.value)
    assert list(Path().iterdir()) == []


# What cannot be written


@contextlib.contextmanager
def anybody():
    """Takes away what the superuser may do, who can write to any folder."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_is_read_only():
    with tempfile.TemporaryDirectory() as name:  # pytest's are closed to anybody else.
        folder = Path(name)
        (folder / "file").write_bytes(b"old")
        folder.chmod(0o555)
        for path in (folder / "file", folder / "new" / "deep"):
            with anybody(), pytest.raises(PermissionError) as error:
                replace_file(path, b"new")
            named = path if path.name == "file" else path.parent
            assert str(error.value) == f"[Errno 13] Permission denied: '{named}'"
        folder.chmod(0o755)
        assert content(folder) == {"file": b"old"}


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    for name in ("file/new", "file/deep/new"):
        with pytest.raises(OSError, match=f"'{tmp_path}/file"):
            replace_file(tmp_path / name, b"new")
    assert content(tmp_path) == {"file": b"old"}


def test_a_disk_that_is_full(tmp_path):
    """The kernel refuses what goes beyond a file's first kilobytes, as it would without room."""
    path, limits = (
        replace_file(tmp_path / "file", b"old"),
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for size in (4097, 10**6):
            for new in (bytes(size), lambda file, size=size: file.write(bytes(size))):
                with pytest.raises(OSError, match=f"File too large: '{path}'"):
                    replace_file(path, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert content(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError("a reason")])
@pytest.mark.parametrize("moment", ["writing", "fsync", "replace"])
def test_what_is_interrupted_leaves_the_old_file(tmp_path, monkeypatch, moment, error):
    path = replace_file(tmp_path / "file", b"old")

    def interrupt(*arguments):
        raise error

    def write(file):
        file.write(bytes(10**6))
        if moment == "writing":
            interrupt()

    if moment != "writing":
        monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        replace_file(path, write)
    assert content(tmp_path) == {"file": b"old"}


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """What a power cut would show, which no test can make."""
    calls = []

    def note(name, real):
        def noted(*arguments):
            inside = Path(arguments[0] if name == "replace" else f"/dev/fd/{arguments[0]}")
            calls.append((name, inside.stat().st_size))
            return real(*arguments)

        monkeypatch.setattr(os, name, noted)

    note("fsync", os.fsync)
    note("replace", os.replace)
    replace_file(tmp_path / "file", lambda file: file.write(bytes(100)))
    assert calls == [("fsync", 100), ("replace", 100)]


# Permissions


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_other(tmp_path, umask):
    before = os.umask(umask)
    try:
        with open(tmp_path / "by_open", "wb"):
            pass
        replace_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "by_open")]
    assert modes == [0o666 & ~umask] * 2


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_a_file_keeps_its_permissions_and_is_never_open_to_more(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    during = []

    def write(file):
        file.write(b"new")
        during.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))

    (tmp_path / "link").symlink_to(path)
    for name in ("file", "link"):
        replace_file(tmp_path / name, write)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert during == [mode, mode]
    assert path.read_bytes() == b"new"


# Others at the same time


def write_again_and_again(path, letter):
    while True:
        replace_file(path, letter * 300_000)


def test_two_writers_leave_one_whole_file_of_either(tmp_path):
    path = replace_file(tmp_path / "file", b"a" * 300_000)
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=write_again_and_again, args=(path, letter)) for letter in (b"b", b"c")
    ]
    try:
        for writer in writers:
            writer.start()
        seen = set()
        while not {b"b", b"c"} <= seen:
            data = path.read_bytes()
            assert data == data[:1] * 300_000
            assert all(writer.is_alive() for writer in writers)
            seen.add(data[:1])
        for _ in range(300):
            data = path.read_bytes()
            assert data == data[:1] * 300_000
        assert all(writer.is_alive() for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert path.read_bytes()[:1] in (b"b", b"c")
    replace_file(path, b"the end")
    assert content(tmp_path) == {"file": b"the end"}


def test_what_a_killed_writer_left_goes_but_no_other_file(tmp_path):
    script = """
import os, signal, sys
from nca_helpers.files import replace_file
def write(file):
    file.write(bytes(1000))
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
replace_file(sys.argv[1], write)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    others = {".nca", ".nca-", ".nca-12", ".nca-0123456789abcdef0", "nca-0123456789abcdef", "a"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".nca-0123456789abcdee").mkdir()
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], env=environment)
    assert killed.returncode == -signal.SIGKILL
    (left,) = content(tmp_path).keys() - others
    assert (tmp_path / left).stat().st_size == 1000

    def write(file):
        """While one is being written others come and go, to the same folder and the same file."""
        file.write(b"outer")
        file.flush()
        for name in ("b", "c", "b"):
            replace_file(tmp_path / name, b"inner")

    replace_file(tmp_path / "b", write)
    assert content(tmp_path) == dict.fromkeys(others, b"mine") | {"b": b"outer", "c": b"inner"}
    assert (tmp_path / ".nca-0123456789abcdee").is_dir()


def test_a_writer_that_is_cleaned_away_before_it_has_its_lock_begins_again(tmp_path, monkeypatch):
    lock, calls = files._lock_and_clean, []

    def too_late(file, own):
        calls.append(own)
        if len(calls) < 3:
            own.unlink()
        lock(file, own)

    monkeypatch.setattr(files, "_lock_and_clean", too_late)
    replace_file(tmp_path / "file", b"written")
    assert len(set(calls)) == 3
    assert content(tmp_path) == {"file": b"written"}


@pytest.mark.parametrize("kind", ["none", "no-op"])
def test_a_disk_that_knows_no_locks_or_permissions(tmp_path, monkeypatch, kind):
    """As some of those that are mounted over a network."""

    def refuse(*arguments, **options):
        if kind == "none":
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    for data in (b"old", b"new"):
        replace_file(tmp_path / "file", data)
        assert content(tmp_path) == {"file": data}


# Downloads


@pytest.fixture
def server():
    """A server that answers with who asks, or with as many bytes as the path says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            size = self.path.strip("/")
            sent = self.headers["User-Agent"].encode()
            answer = bytes(int(size)) if size.isdigit() else sent
            self.send_response(404 if "none" in size else 200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_whoever_is_asked_learns_who_asks(server, monkeypatch):
    assert fetch(server, 1000).startswith(b"nca_helpers")
    about = {"Project-URL": "Repository, https://example.org/growing"}
    monkeypatch.setattr(files.metadata, "metadata", {"nca_helpers": about}.get)
    assert fetch(server, 1000) == b"nca_helpers (Repository, https://example.org/growing)"

    def not_installed(name):
        raise files.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(files.metadata, "metadata", not_installed)
    assert fetch(server, 1000) == b"nca_helpers"


def test_a_download_has_a_limit_and_a_reason(server):
    assert fetch(f"{server}/70000", 70_000) == bytes(70_000)
    with pytest.raises(OSError, match=f"{server}/70001 has more than 70000 bytes"):
        fetch(f"{server}/70001", 70_000)
    with pytest.raises(OSError, match=r"/none cannot be downloaded \(404"):
        fetch(f"{server}/none", 10)
    with pytest.raises(OSError, match="cannot be downloaded") as error:
        fetch(f"{server}/none/{'x' * 10_000}", 10)
    assert len(str(error.value)) < 500
