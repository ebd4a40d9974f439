"""What every store does: names inside a root, atomic writes, verified reads, locks.

A reader never sees half a file: one appears under its name when it is whole. Names are relative POSIX paths.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import ClassVar

from pipeline.errors import FacultyError, InputError

TEMPORARY = ".tmp"
LOCK = ".lock"
DAMAGED = ".damaged"


class Store(ABC):
    """One root of stored files. `Store.open` picks the kind; a pickled store reopens from its `uri`."""

    uri: str
    opener: ClassVar[Callable[[str | Path], Store]]
    """Knows the kinds of stores; store.py sets it."""

    @staticmethod
    def open(root: str | Path) -> Store:
        """Open a local path, a `file://` URI or a pyarrow filesystem URI (`s3://bucket/prefix`, `gs://...`).

        `AWS_ENDPOINT_URL` and `AWS_REGION` are honoured for s3. Raises InputError for an unknown scheme.
        """
        return Store.opener(root)

    @abstractmethod
    def where(self, rel: str) -> str:
        """Return the path or address of `rel` as messages show it."""

    @abstractmethod
    def stage(self, rel: str) -> AbstractContextManager[Path]:
        """Give a local path to write to: after a clean exit `rel` holds its content, otherwise what it held.

        Raises FacultyError naming the path when the disk is full or not writable.
        """

    def write_bytes(self, rel: str, data: bytes) -> None:
        """Write a whole file atomically."""
        with self.stage(rel) as path:
            path.write_bytes(data)

    def put_file(self, rel: str, local_path: str | Path) -> None:
        """Copy a local file in atomically."""
        with self.stage(rel) as path:
            shutil.copyfile(local_path, path)

    @abstractmethod
    def read_bytes(self, rel: str) -> bytes:
        """Return a whole file. Raises FileNotFoundError."""

    @abstractmethod
    def below(self, rel: str) -> Store:
        """The folder `rel` of this one as a store of its own, with all that the address says besides."""

    @abstractmethod
    def exists(self, rel: str) -> bool:
        """Say whether the file is there."""

    @abstractmethod
    def size(self, rel: str) -> int:
        """Return a file's length in bytes. Raises FileNotFoundError."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        """Return (name, bytes) of every file under the folder `prefix`, sorted by name; none if it is absent."""

    @abstractmethod
    def delete(self, rel: str) -> None:
        """Remove a file; no error if it is gone already."""

    @abstractmethod
    def rename(self, rel: str, to: str) -> None:
        """Give a file another name. Raises FileNotFoundError."""

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
        return None

    @abstractmethod
    def sha256(self, rel: str) -> str:
        """Return the SHA-256 of the stored bytes as they are now. Raises FileNotFoundError."""

    @abstractmethod
    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        """Return a local path whose content was verified against `sha256` and `bytes` on this machine.

        A local store's own file is hashed once for each (path, size, modification time); a remote one is
        fetched once into `node_cache()`. Raises CorruptShard.
        """

    def hold(self, files: Iterable[tuple[str, str]]) -> object:
        """Keep the local copies of these (name, sha256) from being evicted as long as the result lives."""
        return None

    @abstractmethod
    def lock(
        self, rel: str, *, on_wait: Callable[[str], object] | None = None
    ) -> AbstractContextManager[None]:
        """Hold the lock file `rel`, after `on_wait(owner)` once if another process has it.

        The kernel frees it when its holder dies, however it dies. On an object store there is nothing to
        hold: writes there are atomic and their content follows from their name, so that two writers agree.
        """

    def __reduce__(self) -> tuple:
        return Store.open, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def inside(rel: str) -> str:
    """Return a name as it is stored. Raises InputError for one that leaves its store."""
    path = PurePosixPath(rel)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(rel, "a name inside the store", "a path that leaves it")
    return str(path)
