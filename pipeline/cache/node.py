"""What this machine knows of stored files: fetched copies and marks of files that it has verified.

The copies are bounded (`FACULTY_NODE_CACHE_GB`): before a file is fetched, those that were used longest ago go, except
what a living process holds. A holder's list lies in a file that it keeps locked, so the kernel lets go of it when the
holder dies, however it dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.cache.fingerprint import file_sha256
from pipeline.errors import FacultyError, InputError

_log = logging.getLogger(__name__)


class Damaged(InputError):
    """A stored file that can be made again is not what was written: missing, truncated, changed or foreign."""


class CorruptShard(Damaged):
    """Stored bytes are not the bytes that were committed: missing, truncated, changed or foreign."""


def corrupt(where: str, expected: str, found: str) -> CorruptShard:
    """Return the error for a bad shard; its remedy rebuilds that one file alone."""
    return CorruptShard(where, expected, found, _remedy(where))


def damaged(where: str, expected: str, found: str) -> Damaged:
    """Return the error for another bad file that can be made again."""
    return Damaged(where, expected, found, _remedy(where))


def _remedy(where: str) -> str:
    remove = f"Delete {where}" if "://" in where else f"Run `rm {where}`"
    return f"{remove}, then the same faculty command again: it rebuilds this file alone."


def node_cache() -> Path:
    """Return this machine's folder for fetched shards and marks (`FACULTY_NODE_CACHE`)."""
    return Path(os.environ.get("FACULTY_NODE_CACHE") or Path.home() / ".cache/faculty/shards")


def check(where: str, path: Path, sha256: str, size: int) -> None:
    """Raise CorruptShard, which says `where`, unless the file at `path` has this SHA-256 and size in bytes.

    A file is hashed once in `FRESH_S` for each (path, size, modification time) on this machine: a bit that the disk
    flips changes neither.
    """
    if not path.is_file():
        raise corrupt(where, f"a file of {size} bytes", "nothing there")
    if (found := path.stat().st_size) != size:
        raise corrupt(where, f"{size} bytes", f"{found} bytes")
    mark = _mark(path, sha256)
    if _fresh(mark):
        return
    if (digest := file_sha256(path)) != sha256:
        raise corrupt(where, f"sha256 {sha256}", f"sha256 {digest}")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        _log.warning(
            "%s: no marks can be kept here (%s): %s is hashed at each use.", mark.parent, error, where
        )


def _fresh(mark: Path) -> bool:
    try:
        return time.time() - mark.stat().st_mtime < FRESH_S
    except OSError:
        return False


FRESH_S = 3600.0
"""How long a verified file needs no hashing: the workers of one run share it."""
SHARE_OF_DISK = 0.9
"""Of what is free or holds copies already, where FACULTY_NODE_CACHE_GB does not say otherwise."""
RECENT_S = 5.0
"""A copy used less long ago may be about to be opened; it is not deleted."""
ABANDONED_S = 3600.0
"""A half fetched file that nobody wrote to for so long was left by a killed process."""
_REMEDY = "FACULTY_NODE_CACHE names a folder on another disk, FACULTY_NODE_CACHE_GB (10^9 bytes) bounds what is kept."


def limit() -> int:
    """Bytes that fetched copies may take on this machine. Raises InputError for a bound that is no number."""
    text = os.environ.get("FACULTY_NODE_CACHE_GB")
    if text is None:
        folder = node_cache()
        while not folder.exists():
            folder = folder.parent
        return int(SHARE_OF_DISK * (shutil.disk_usage(folder).free + sum(size for _, size, _ in _copies())))
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes > 0:
        raise InputError("FACULTY_NODE_CACHE_GB", "a number above 0", repr(text))
    return int(gigabytes * 1e9)


def make_room(size: int, where: str) -> None:
    """Delete the copies used longest ago until one of `size` bytes fits.

    Raises FacultyError, which says `where`, when what is left is held by living processes.
    """
    most = limit()
    copies = sorted(_copies(), key=lambda copy: copy[2])
    used = sum(copy[1] for copy in copies)
    if used + size <= most:
        return
    held, now = _held(), time.time_ns()
    in_use = 0
    for path, bytes_, last in copies:
        spare = ABANDONED_S if path.suffix == ".tmp" else RECENT_S
        if path.name in held:
            in_use += bytes_
        elif now - last > spare * 1e9:
            path.unlink(missing_ok=True)  # a process that has it mapped keeps its pages
            used -= bytes_
            if used + size <= most:
                return
    if in_use + size > most:
        raise full(
            where, f"{size / 1e9:.3g} GB do not fit: {in_use / 1e9:.3g} of {most / 1e9:.3g} GB are in use"
        )


def full(where: str, why: str) -> FacultyError:
    """The error for a machine whose cache has no room."""
    return FacultyError(
        f"{where}: the shard cache {node_cache()} on {socket.gethostname()} is full: {why}. {_REMEDY}"
    )


def used(path: Path) -> None:
    """Note that a copy is used now: its access time, because its modification time is part of its mark."""
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


class Hold:
    """Keeps files of the cache from being deleted as long as this object, and this process, lives."""

    def __init__(self, names: Iterable[str]) -> None:
        folder = node_cache() / "held"
        folder.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name, so that nobody sees it without its holder.
        temporary = folder / f"{secrets.token_hex(8)}.new"
        self._file: IO[str] = temporary.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        json.dump(sorted(names), self._file)
        self._file.flush()
        self._path = temporary.rename(temporary.with_suffix(".json"))

    def __del__(self) -> None:
        if hasattr(self, "_path"):
            self._path.unlink(missing_ok=True)
            self._file.close()


@contextmanager
def fetching(sha256: str) -> Iterator[None]:
    """One process of this machine at a time fetches a file; the others then find it."""
    path = node_cache() / "fetching" / sha256[:2]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("w")
    except OSError as error:
        raise FacultyError(
            f"the shard cache {node_cache()} on {socket.gethostname()} cannot be written: {error.strerror}. "
            "FACULTY_NODE_CACHE names another folder."
        ) from error
    with opened as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copies() -> list[tuple[Path, int, int]]:
    """(path, bytes, last use in ns) of every fetched copy."""
    found = []
    for path in (node_cache() / "fetched").glob("*/*"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found.append((path, stat.st_size, stat.st_atime_ns))
    return found


def _held() -> set[str]:
    """Names of the copies that living processes hold; lists of dead ones are swept."""
    names: set[str] = set()
    for path in (node_cache() / "held").glob("*.json"):
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(json.load(file))
                else:
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
    return names


def _mark(path: Path, sha256: str) -> Path:
    stat = path.stat()
    state = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{sha256}"
    return node_cache() / "verified" / hashlib.sha256(state.encode()).hexdigest()
