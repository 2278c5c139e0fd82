"""A reader's machine at its worst: no UTF-8, no home, no room, a wrong clock, little memory."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nca_helpers import emoji

ROOT = Path(__file__).parent.parent

EVERYTHING = """
import sys
from pathlib import Path

import jax
import numpy as np
from nca_helpers import *

out = Path(sys.argv[1])
nca = pretrained("🦎", "regenerating")
target = load_emoji("🦎", size=16, offline=True)
save_nca(out / "lizard.npz", nca, emoji="🦎")
assert load_meta(out / "lizard.npz")["emoji"] == "🦎"
state = rollout(load_nca(out / "lizard.npz"), seed_state(72, 72), jax.random.key(0), 8)
save_video(out / "lizard.gif", to_rgb(np.asarray(state))[None])
save_player(out / "lizard.html", {"🦎": nca})
save_run(out / "run", {"state": np.asarray(state)}, step=8, emoji="🦎")
restored, step = restore_run(out / "run", {"state": np.asarray(state)}, emoji="🦎")
assert step == 8 and (restored["state"] == state).all()
for step in Progress(2, every=0):
    pass
"""


def run(script, *arguments, under=(), **environment):
    ran = subprocess.run(
        [*under, sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode(errors="replace")
    return ran.stdout.decode()


def test_a_locale_without_utf_8_changes_nothing(tmp_path):
    for name, environment in {
        "utf-8": {"PYTHONUTF8": "1"},
        "ascii": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }.items():
        (tmp_path / name).mkdir()
        # A program's own text is read as UTF-8 in any locale; arguments of -c are not.
        (tmp_path / name / "program.py").write_text(EVERYTHING, encoding="utf-8")
        run(
            "import runpy, sys; runpy.run_path(sys.argv[1] + '/program.py')",
            tmp_path / name,
            **environment,
        )
    pages = [(tmp_path / name / "lizard.html").read_bytes() for name in ("utf-8", "ascii")]
    assert pages[0] == pages[1]
    assert "🦎".encode() in pages[0] or b"ud83e" in pages[0].lower()


def test_a_home_that_cannot_be_written(tmp_path):
    """Not by permissions, which the superuser does not feel: home is a file."""
    home = tmp_path / "home"
    home.write_text("no folder")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "program.py").write_text(EVERYTHING, encoding="utf-8")
    run(
        "import runpy, sys; runpy.run_path(sys.argv[1] + '/program.py')",
        tmp_path / "out",
        HOME=str(home),
        XDG_CACHE_HOME=str(home / "cache"),
        MPLCONFIGDIR=str(tmp_path),
    )


@pytest.mark.parametrize("date", ["1970-01-02", "2090-01-01"])
def test_a_wrong_clock(tmp_path, date):
    if not shutil.which("faketime"):
        pytest.skip("faketime, which turns a process's clock, is not installed")
    (tmp_path / "program.py").write_text(EVERYTHING, encoding="utf-8")
    run(
        "import runpy, sys; runpy.run_path(sys.argv[1] + '/program.py')",
        tmp_path,
        under=("faketime", date),
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )


def test_a_full_disk_leaves_the_files_as_they_were(tmp_path):
    """The kernel refuses what goes beyond a file's first kilobyte, as it would without room."""
    script = """
import resource, shutil, sys
from pathlib import Path

import numpy as np
from nca_helpers import *

out, random = Path(sys.argv[1]), np.random.default_rng(0)
nca, frames = pretrained("🦎", "evolved"), random.random((8, 64, 64, 3))
writers = {
    "npz": lambda: save_nca(out / "lizard.npz", nca),
    "gif": lambda: save_video(out / "lizard.gif", frames),
    "webp": lambda: save_video(out / "lizard.webp", frames),
    "html": lambda: save_player(out / "lizard.html", nca),
    "run": lambda: save_run(out / "run", frames, step=1),
}
if shutil.which("ffmpeg"):
    writers["mp4"] = lambda: save_video(out / "lizard.mp4", frames)

def content():
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

for write in writers.values():
    write()
before, (_, most) = content(), resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))
for name, write in writers.items():
    try:
        write()
    except OSError as error:
        print(f"{name}: {error}")
    else:
        raise AssertionError(f"{name}: not a word")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert content() == before
"""
    said = run(script, tmp_path).splitlines()
    assert len(said) >= 5
    assert all("too large" in line or "ffmpeg could not write" in line for line in said), said


@pytest.fixture
def noto(tmp_path, monkeypatch):
    """A server that has one emoji, and its address in place of Noto's."""
    picture = (Path(emoji.__file__).parent / "data" / "emoji" / "emoji_u1f98e.png").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            for byte in range(0, len(picture), 512):  # In pieces, so that downloads overlap.
                self.wfile.write(picture[byte : byte + 512])

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("localhost", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()


def test_two_notebooks_at_once_on_one_cache(tmp_path, noto):
    script = """
import sys
import nca_helpers.emoji
nca_helpers.emoji.NOTO_URL = sys.argv[1]
for _ in range(20):
    assert nca_helpers.load_emoji("🦖", 16).any()
    for path in nca_helpers.emoji._cache_path("🦖").parent.glob("*.png"):
        path.unlink(missing_ok=True)
"""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path),
        "NCA_OFFLINE": "0",
        "PYTHONUTF8": "1",
    }
    both = [
        subprocess.Popen([sys.executable, "-c", script, noto], env=environment) for _ in range(2)
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    assert not list(tmp_path.rglob(".nca-*")), "half a download is left"


def test_a_gradient_of_the_articles_size_in_three_gigabytes_beyond_those_of_idle_jax():
    """Of address space, of which a process has more than it uses."""
    script = """
import resource, sys
import jax, jax.numpy as jnp
jnp.zeros(1).block_until_ready()
own = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (own + 3 * 2**30,) * 2)
from flax import nnx
from nca_helpers import NCA, rollout, seed_state
nca, first = NCA(rngs=nnx.Rngs(0)), seed_state(72, 72)
batch = jnp.broadcast_to(first, (8, *first.shape))
loss = lambda nca: jnp.mean(rollout(nca, batch, jax.random.key(0), 96) ** 2)
assert jnp.isfinite(nnx.value_and_grad(loss)(nca)[0])
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells how much address space a process has")
    run(script)
