"""Where caches live: a local folder or an object store, with atomic writes and verified reads.

A reader never sees half a file. Locally a file is written under a temporary name (`*.tmp`), flushed to disk
and renamed; on an object store it appears when its upload completes. Names inside a store are relative POSIX
paths.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from pyarrow import fs

from pipeline.errors import FacultyError, InputError
from pipeline.shards.fingerprint import file_sha256, stream_sha256

TEMPORARY = ".tmp"
_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # no room
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),  # no place to write
}
_OBJECT_STORES = {"s3", "gcs", "abfs"}


class CorruptShard(InputError):
    """Stored bytes are not the bytes that were committed: missing, truncated, changed or foreign."""


def rebuild(where: str) -> str:
    """Return the remedy for a bad shard: remove that one file, then repeat the command that made it."""
    return f"Run `rm {where}`, then the same faculty command again: it rebuilds this shard alone."


def node_cache() -> Path:
    """Return this machine's folder for fetched shards and verification marks (`FACULTY_NODE_CACHE`)."""
    return Path(os.environ.get("FACULTY_NODE_CACHE") or Path.home() / ".cache/faculty/shards")


class Store:
    """One root of stored files. `Store.open` picks the kind; a pickled store reopens from its `uri`."""

    uri: str

    @staticmethod
    def open(root: str | Path) -> Store:
        """Open a local path, a `file://` URI or any pyarrow filesystem URI (`s3://bucket/prefix`,
        `gs://...`).

        `AWS_ENDPOINT_URL` and `AWS_REGION` are honoured for s3. Raises InputError for an unknown scheme.
        """
        text = str(root)
        if isinstance(root, Path) or "://" not in text:
            return LocalStore(Path(root))
        parts = urlsplit(text)
        return LocalStore(Path(unquote(parts.path))) if parts.scheme == "file" else RemoteStore(text)

    def where(self, rel: str) -> str:
        """Return the path or address of `rel` as messages show it."""
        raise NotImplementedError

    def stage(self, rel: str) -> AbstractContextManager[Path]:
        """Give a local path to write to; `rel` holds its content after a clean exit and is untouched
        otherwise.

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

    def sha256(self, rel: str) -> str:
        """Return the SHA-256 of the stored bytes as they are now. Raises FileNotFoundError."""
        raise NotImplementedError

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        """Return a local path whose content was verified against `sha256` and `bytes` on this machine.

        A local store's own file is hashed once for each (path, size, modification time); a remote one is
        fetched once into `node_cache()`. Raises CorruptShard.
        """
        raise NotImplementedError

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
        return self.root / _inside(rel)

    def where(self, rel: str) -> str:
        return str(self.path(rel))

    @contextmanager
    def stage(self, rel: str) -> Iterator[Path]:
        path = self.path(rel)
        temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
        except OSError as error:
            if error.errno in _UNWRITABLE:
                raise FacultyError(
                    f"{path}: cannot be written: {os.strerror(error.errno)}. Nothing was committed under this name; "
                    "make room there or choose another place, then run the same command again."
                ) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)

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

    def sha256(self, rel: str) -> str:
        return file_sha256(self.path(rel))

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        return _verified(self.path(rel), sha256, bytes)

    @contextmanager
    def lock(self, rel: str, *, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
        path = self.path(rel)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    file.seek(0)
                    on_wait(file.read() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


class RemoteStore(Store):
    """A folder on a filesystem that pyarrow reaches."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        try:
            self.fs, self._base = fs.FileSystem.from_uri(_with_environment(self.uri))
        except (ValueError, OSError) as error:
            raise InputError(
                uri,
                "a folder, or a URI of a filesystem that pyarrow opens",
                str(error),
                "Use s3://, gs:// or a path.",
            ) from error
        self._direct = self.fs.type_name in _OBJECT_STORES

    def where(self, rel: str) -> str:
        return f"{self.uri}/{rel}"

    def _key(self, rel: str) -> str:
        return f"{self._base}/{_inside(rel)}" if rel else self._base

    def _info(self, rel: str) -> fs.FileInfo:
        info = self.fs.get_file_info(self._key(rel))
        if info.type is not fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(rel))
        return info

    @contextmanager
    def stage(self, rel: str) -> Iterator[Path]:
        key = self._key(rel)
        with tempfile.TemporaryDirectory(prefix="faculty-") as folder:
            path = Path(folder, PurePosixPath(rel).name)
            yield path
            # An object appears as a whole when its upload closes; elsewhere only a rename is atomic.
            target = key if self._direct else f"{key}.{secrets.token_hex(4)}{TEMPORARY}"
            if not self._direct:
                self.fs.create_dir(key.rpartition("/")[0], recursive=True)
            with path.open("rb") as source, self.fs.open_output_stream(target) as sink:
                shutil.copyfileobj(source, sink, 8 << 20)
            if not self._direct:
                self.fs.move(target, key)

    def read_bytes(self, rel: str) -> bytes:
        self._info(rel)
        with self.fs.open_input_stream(self._key(rel)) as stream:
            return stream.read()

    def exists(self, rel: str) -> bool:
        return self.fs.get_file_info(self._key(rel)).type is fs.FileType.File

    def size(self, rel: str) -> int:
        return self._info(rel).size

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        selector = fs.FileSelector(self._key(prefix), recursive=True, allow_not_found=True)
        files = [info for info in self.fs.get_file_info(selector) if info.type is fs.FileType.File]
        return sorted((info.path[len(self._base) + 1 :], info.size) for info in files)

    def delete(self, rel: str) -> None:
        if self.exists(rel):
            self.fs.delete_file(self._key(rel))

    def sha256(self, rel: str) -> str:
        self._info(rel)
        with self.fs.open_input_stream(self._key(rel)) as stream:
            return stream_sha256(stream)

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        cache = LocalStore(node_cache())
        name = f"fetched/{sha256[:2]}/{sha256}{PurePosixPath(rel).suffix}"
        if not cache.exists(name) or cache.size(name) != bytes:
            where = self.where(rel)
            if not self.exists(rel):
                raise CorruptShard(where, f"a file of {bytes} bytes", "nothing there", rebuild(where))
            with cache.stage(name) as path:
                with self.fs.open_input_stream(self._key(rel)) as source, path.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 8 << 20)
                check(where, path, sha256, bytes)
        return _verified(cache.path(name), sha256, bytes)

    @contextmanager
    def lock(self, rel: str, *, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
        yield


def check(where: str, path: Path, sha256: str, bytes: int) -> None:
    """Raise CorruptShard, which says `where`, unless the file at `path` has this length and SHA-256."""
    if not path.is_file():
        raise CorruptShard(where, f"a file of {bytes} bytes", "nothing there", rebuild(where))
    if (found := path.stat().st_size) != bytes:
        raise CorruptShard(where, f"{bytes} bytes", f"{found} bytes", rebuild(where))
    if (digest := file_sha256(path)) != sha256:
        raise CorruptShard(where, f"sha256 {sha256}", f"sha256 {digest}", rebuild(where))


def _verified(path: Path, sha256: str, bytes: int) -> Path:
    """Return `path` after hashing it, once for each state of the file on this machine."""
    if path.is_file():
        stat = path.stat()
        state = f"{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{bytes}\n{sha256}"
        mark = node_cache() / "verified" / hashlib.sha256(state.encode()).hexdigest()
        if mark.exists():
            return path
    check(str(path), path, sha256, bytes)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    return path


def _inside(rel: str) -> str:
    path = PurePosixPath(rel)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(rel, "a name inside the store", "a path that leaves it")
    return str(path)


def _with_environment(uri: str) -> str:
    """Add AWS_ENDPOINT_URL and AWS_REGION to an s3 URI that does not say otherwise itself."""
    parts = urlsplit(uri)
    if parts.scheme != "s3":
        return uri
    query = dict(parse_qsl(parts.query))
    if (endpoint := os.environ.get("AWS_ENDPOINT_URL")) and "endpoint_override" not in query:
        scheme, _, address = endpoint.rpartition("://")
        query |= {"endpoint_override": address.rstrip("/"), "scheme": scheme or "https"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        query.setdefault("region", region)
    return parts._replace(query=urlencode(query)).geturl()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
