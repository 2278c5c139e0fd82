"""Files: written whole or not at all, claimed by one process; downloads with a deadline."""

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from nca_helpers.checks import require, shown

TIMEOUT = 10.0  # seconds

_claimed: list[int] = []  # The file that this process has claimed, open.


def as_path(path: str | os.PathLike) -> Path:
    """Returns the path with `~` replaced by the home folder; raises ValueError if it is none."""
    with contextlib.suppress(TypeError, RuntimeError):  # No path, or the home of nobody.
        return Path(path).expanduser()
    raise ValueError(f"path must be a path, its ~ a known home, got {shown(path)}")


def replace_file(path: str | os.PathLike, content: bytes | Callable[[BinaryIO], Any]) -> Path:
    """Writes a file as a whole or not at all: what fails or is interrupted leaves the old one.

    Args:
        path: Where to; `~` is the home folder, a missing folder is made, a symbolic link stays
            and its target is replaced, and a file that is there keeps its permissions.
        content: What to write, or a function that writes it to the open file that it is given.

    Returns:
        The path, with `~` replaced. An OSError names it.
    """
    given, path = path, as_path(path)
    target = Path(os.path.realpath(path))
    require(target.is_file() or not target.exists(), "path", "the path of a file", given)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Short, for the file's own name may be as long as the disk allows.
    temporary = target.with_name(f".nca-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            _lock_and_clean(file, temporary)
            if not temporary.exists():  # Another writer cleaned before the lock was there.
                return replace_file(path, content)
            with contextlib.suppress(OSError):  # None is there, or the disk keeps none.
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            os.fsync(file.fileno())  # Else a power cut may leave the name with nothing in it.
            if os.name == "nt":
                file.close()  # Windows renames no open file; elsewhere closing ends the lock.
            os.replace(temporary, target)
    except OSError as error:  # It names the temporary file, or none.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def claim(path: Path) -> None:
    """Marks a file as this process's own, until it ends or claims another one."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        _claimed.append(os.open(path, os.O_RDONLY))
        while len(_claimed) > 1:
            os.close(_claimed.pop(0))
        # The system ends the lock with the process, however that ends.
        fcntl.flock(_claimed[0], fcntl.LOCK_SH | fcntl.LOCK_NB)


def is_claimed_by_another(path: Path) -> bool:
    """Tells whether the file that is there is claimed by another process, which still runs."""
    try:
        import fcntl

        with path.open("r+b") as file:
            if not any(os.path.sameopenfile(file.fileno(), own) for own in _claimed):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):  # No file is there, or nobody can tell.
        pass
    return False


def fetch(url: str, limit: int) -> bytes:
    """Downloads at most `limit` bytes within `TIMEOUT` seconds, or raises OSError."""
    import requests
    from urllib3.exceptions import HTTPError

    agent = "nca_helpers"
    with contextlib.suppress(metadata.PackageNotFoundError):  # A checkout, not installed.
        # Wikimedia, for one, refuses who has no address.
        agent = f"{agent} ({metadata.metadata(agent)['Project-URL']})"
    options = {"headers": {"User-Agent": agent}, "timeout": TIMEOUT, "stream": True}
    data, deadline = bytearray(), time.monotonic() + TIMEOUT
    try:
        with requests.get(url, **options) as response:
            response.raise_for_status()
            # read1 returns what has arrived: a server that trickles cannot outlast the deadline.
            while chunk := response.raw.read1(2**16, decode_content=True):
                data += chunk
                if len(data) > limit:
                    raise OSError(f"{url:.200} has more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise OSError(f"{url:.200} took longer than {TIMEOUT} seconds")
    except (requests.RequestException, HTTPError) as error:
        # The reason alone: around it requests wraps two layers of words.
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        raise OSError(f"{url:.200} cannot be downloaded ({reason!s:.200})") from error
    return bytes(data)


def _lock_and_clean(file: BinaryIO, own: Path) -> None:
    """Removes the other temporary files that nobody has locked: their writers were killed."""
    with contextlib.suppress(ImportError, OSError):  # Windows and some network drives lock none.
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        for path in {*own.parent.glob(".nca-????????????????")} - {own}:
            with contextlib.suppress(OSError), path.open("r+b") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
