"""Where caches live: a local folder or an object store, with atomic writes and verified reads.

A reader never sees half a file. Locally a file is written under a temporary name (`*.tmp`), flushed to disk
and renamed; on an object store it appears when its upload completes. Names inside a store are relative POSIX
paths.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.locks import abandoned, locked, unlock
from pipeline.cache.node import CorruptShard, check, node_cache
from pipeline.errors import FacultyError, InputError

__all__ = ["TEMPORARY", "CorruptShard", "LocalStore", "Store", "node_cache"]

TEMPORARY = ".tmp"
LOCK = ".lock"
DAMAGED = ".damaged"
_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),  # no place to write
}


class Store:
    """One root of stored files. `Store.open` picks the kind; a pickled store reopens from its `uri`."""

    uri: str

    @staticmethod
    def open(root: str | Path) -> Store:
        """Open a local path, a `file://` URI or a pyarrow filesystem URI (`s3://bucket/prefix`, `gs://...`).

        `AWS_ENDPOINT_URL` and `AWS_REGION` are honoured for s3. Raises InputError for an unknown scheme.
        """
        text = str(root)
        if isinstance(root, Path) or "://" not in text:
            return LocalStore(Path(root))
        if text.startswith("file:"):
            return LocalStore(Path(unquote(urlsplit(text).path)))
        from pipeline.cache.remote import RemoteStore

        return RemoteStore(text)

    def where(self, rel: str) -> str:
        """Return the path or address of `rel` as messages show it."""
        raise NotImplementedError

    def stage(self, rel: str) -> AbstractContextManager[Path]:
        """Give a local path to write to: after a clean exit `rel` holds its content, otherwise what it held.

        Raises FacultyError naming the path when the disk is full or not writable.
        """
        raise NotImplementedError

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write a whole file atomically."""
        with self.stage(rel) as path:
            path.write_bytes(data)

    def put_file(self, rel: str, local_path: str | Path) -> None:
        """Copy a local file in atomically."""
        with self.stage(rel) as path:
            shutil.copyfile(local_path, path)

    def read_bytes(self, rel: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError."""
        raise NotImplementedError

    def exists(self, rel: str) -> bool:
        """Say whether the file is there."""
        raise NotImplementedError

    def size(self, rel: str) -> int:
        """Return a file's length in bytes. Raises FileNotFoundError."""
        raise NotImplementedError

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return (name, bytes) of every file under the folder `prefix`, sorted by name; none if it is absent."""
        raise NotImplementedError

    def delete(self, rel: str) -> None:
        """Remove a file; no error if it is gone already."""
        raise NotImplementedError

    def rename(self, rel: str, to: str) -> None:
        """Give a file another name. Raises FileNotFoundError."""
        raise NotImplementedError

    def set_aside(self, rel: str) -> str | None:
        """Rename a damaged file to `<rel>.damaged` (`.damaged-2`, ... where that is taken), for people to look at.

        Returns the new name, None where there is no such file. Raises FacultyError where it cannot be renamed.
        """
        number = 1
        while self.exists(name := rel + DAMAGED + (f"-{number}" if number > 1 else "")):
            number += 1
        try:
            self.rename(rel, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FacultyError(
                f"{self.where(rel)}: it is damaged and cannot be set aside: {error.strerror}. Make its folder writable."
            ) from error
        return name

    def sweep(self) -> None:
        """Remove what killed processes left: half-written temporary files and locks that nobody holds."""

    def sha256(self, rel: str) -> str:
        """Return the SHA-256 of the stored bytes as they are now. Raises FileNotFoundError."""
        raise NotImplementedError

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        """Return a local path whose content was verified against `sha256` and `bytes` on this machine.

        A local store's own file is hashed once for each (path, size, modification time); a remote one is
        fetched once into `node_cache()`. Raises CorruptShard.
        """
        raise NotImplementedError

    def hold(self, files: Iterable[tuple[str, str]]) -> object:
        """Keep the local copies of these (name, sha256) from being evicted as long as the result lives."""
        return None

    def lock(
        self, rel: str, *, on_wait: Callable[[str], object] | None = None
    ) -> AbstractContextManager[None]:
        """Hold the lock file `rel`, after `on_wait(owner)` once if another process has it.

        The kernel frees it when its holder dies, however it dies. On an object store there is nothing to
        hold: writes there are atomic and their content follows from their name, so that two writers agree.
        """
        raise NotImplementedError

    def __reduce__(self) -> tuple:
        return Store.open, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


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


def inside(rel: str) -> str:
    """Return a name as it is stored. Raises InputError for one that leaves its store."""
    path = PurePosixPath(rel)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(rel, "a name inside the store", "a path that leaves it")
    return str(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
