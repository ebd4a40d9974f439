"""Lock files that vanish when they are let go, and what killed processes leave in a folder."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

ABANDONED_S = 86400.0
"""A temporary file of another machine that nobody wrote to for so long was left by a killed process."""
_TEMPORARY_NAME = re.compile(r"\.(\d+)-[0-9a-f]{8}(?:@(.+))?\.tmp$")


def locked(path: Path, on_wait: Callable[[str], object] | None) -> IO[str]:
    """Open and lock the file that is at `path` once the lock is ours, with this process's name in it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", errors="replace")  # noqa: SIM115 it is held until it is unlocked
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                file.seek(0)
                on_wait(file.read() or "another process")
                on_wait = None
            fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(file, path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def unlock(path: Path) -> None:
    """Remove a lock file that no process holds."""
    try:
        with open(path, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                path.unlink(missing_ok=True)
    except OSError:  # held, gone, or not ours to remove
        return


def abandoned(path: Path) -> bool:
    """Say whether the writer of a temporary file is gone: dead, if it ran here, or silent for long."""
    found = _TEMPORARY_NAME.search(path.name)
    try:
        if found and found[2] == socket.gethostname():
            os.kill(int(found[1]), 0)
            return False
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except ProcessLookupError:
        return True
    except OSError:
        return False
