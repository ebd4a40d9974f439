"""A store in a folder: written under a temporary name (`*.tmp`), flushed to disk, renamed."""

from __future__ import annotations

import errno
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.cache.base_store import LOCK, TEMPORARY, Store, inside
from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.locks import abandoned, locked, unlock
from pipeline.cache.node import check
from pipeline.errors import FacultyError

_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),  # no place to write
}


class LocalStore(Store):
    """A folder on a file system that this machine mounts."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = self.root.as_uri()

    def path(self, rel: str) -> Path:
        """Return the path of `rel`."""
        return self.root / inside(rel)

    def where(self, rel: str) -> str:
        return str(self.path(rel))

    def below(self, rel: str) -> LocalStore:
        return LocalStore(self.path(rel))

    @contextmanager
    def stage(self, rel: str) -> Iterator[Path]:
        path = self.path(rel)
        writer = f"{os.getpid()}-{secrets.token_hex(4)}@{socket.gethostname()}"
        temporary = path.with_name(f"{path.name}.{writer}{TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
                _flush(temporary)
                os.replace(temporary, path)
                _flush(path.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _UNWRITABLE:
                raise FacultyError(
                    f"{path}: cannot be written: {os.strerror(error.errno)}. Nothing was committed under this name; "
                    "make room there or choose another place, then run the same command again."
                ) from error
            raise

    def read_bytes(self, rel: str) -> bytes:
        return self.path(rel).read_bytes()

    def exists(self, rel: str) -> bool:
        return self.path(rel).is_file()

    def size(self, rel: str) -> int:
        return self.path(rel).stat().st_size

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        found = []
        for folder, _, names in os.walk(self.path(prefix)):
            for name in names:
                path = Path(folder, name)
                try:
                    found.append((path.relative_to(self.root).as_posix(), path.stat().st_size))
                except FileNotFoundError:  # another process committed or swept it meanwhile
                    continue
        return sorted(found)

    def delete(self, rel: str) -> None:
        self.path(rel).unlink(missing_ok=True)

    def rename(self, rel: str, to: str) -> None:
        os.rename(self.path(rel), self.path(to))

    def sweep(self) -> None:
        for folder, _, names in os.walk(self.root):
            for name in names:
                if name.endswith(TEMPORARY) and abandoned(Path(folder, name)):
                    Path(folder, name).unlink(missing_ok=True)
                elif name.endswith(LOCK):
                    unlock(Path(folder, name))

    def sha256(self, rel: str) -> str:
        return file_sha256(self.path(rel))

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        check(self.where(rel), self.path(rel), sha256, bytes)
        return self.path(rel)

    @contextmanager
    def lock(self, rel: str, *, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
        path = self.path(rel)
        file = locked(path, on_wait)
        try:
            yield
        finally:
            path.unlink(
                missing_ok=True
            )  # while it is held: who waits sees that its file is no longer the one there
            file.close()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
