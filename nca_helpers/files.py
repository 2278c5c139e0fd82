"""Files: written whole or not at all, and downloads with a limit and a deadline."""

import os
import time
import uuid
from pathlib import Path

TIMEOUT = 10.0  # seconds


def replace_file(path: str | os.PathLike, data: bytes) -> Path:
    """Writes a file as a whole or not at all: what fails or is interrupted leaves the old one.

    Args:
        path: Where to; `~` is the home folder, a missing folder is made, and a symbolic link
            stays: what it points to is replaced.
        data: What to write.

    Returns:
        The path, with `~` replaced.

    Raises:
        OSError: It cannot be written.
    """
    path = Path(path).expanduser()
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def fetch(url: str, limit: int) -> bytes:
    """Downloads at most `limit` bytes within `TIMEOUT` seconds.

    Raises:
        OSError: It cannot be reached, is larger, or takes longer.
    """
    import requests
    from urllib3.exceptions import HTTPError

    data, deadline = bytearray(), time.monotonic() + TIMEOUT
    try:
        with requests.get(url, timeout=TIMEOUT, stream=True) as response:
            response.raise_for_status()
            # read1 returns what has arrived: a server that trickles cannot outlast the deadline.
            while chunk := response.raw.read1(2**16, decode_content=True):
                data += chunk
                if len(data) > limit:
                    raise OSError(f"{url} has more than {limit} bytes")
                if time.monotonic() > deadline:
                    raise OSError(f"{url} took longer than {TIMEOUT} seconds")
    except (requests.RequestException, HTTPError) as error:
        # The reason alone: around it requests wraps two layers of words.
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        raise OSError(f"{url} cannot be downloaded ({reason})") from error
    return bytes(data)
