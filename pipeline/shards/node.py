"""What this machine knows of stored files: fetched copies and marks of files that it has verified."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.shards.fingerprint import file_sha256

_log = logging.getLogger(__name__)


class CorruptShard(InputError):
    """Stored bytes are not the bytes that were committed: missing, truncated, changed or foreign."""


def corrupt(where: str, expected: str, found: str) -> CorruptShard:
    """Return the error for a bad shard; its remedy rebuilds that one file alone."""
    remove = f"Delete {where}" if "://" in where else f"Run `rm {where}`"
    remedy = f"{remove}, then the same faculty command again: it rebuilds this file alone."
    return CorruptShard(where, expected, found, remedy)


def node_cache() -> Path:
    """Return this machine's folder for fetched shards and marks (`FACULTY_NODE_CACHE`)."""
    return Path(os.environ.get("FACULTY_NODE_CACHE") or Path.home() / ".cache/faculty/shards")


def check(where: str, path: Path, sha256: str, size: int) -> None:
    """Raise CorruptShard, which says `where`, unless the file at `path` has this SHA-256 and size in bytes.

    A file is hashed once for each (path, size, modification time) on this machine.
    """
    if not path.is_file():
        raise corrupt(where, f"a file of {size} bytes", "nothing there")
    if (found := path.stat().st_size) != size:
        raise corrupt(where, f"{size} bytes", f"{found} bytes")
    mark = _mark(path, sha256)
    if mark.exists():
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


def _mark(path: Path, sha256: str) -> Path:
    stat = path.stat()
    state = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{sha256}"
    return node_cache() / "verified" / hashlib.sha256(state.encode()).hexdigest()
