"""Stores on object stores and other filesystems that pyarrow reaches."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pyarrow import NativeFile, fs

from pipeline.cache.base_store import TEMPORARY, Store, inside
from pipeline.cache.fingerprint import stream_sha256
from pipeline.cache.local_store import LocalStore
from pipeline.cache.node import (
    CorruptShard,
    Hold,
    check,
    corrupt,
    fetching,
    full,
    make_room,
    node_cache,
    used,
)
from pipeline.errors import FacultyError, InputError

_OBJECT_STORES = {"s3", "gcs", "abfs"}
_CHUNK = 8 << 20
_CAUSES = (
    (
        ("NO_SUCH_BUCKET", "NoSuchBucket", "bucket does not exist"),
        "a bucket named {}",
        "Make it first, or mend cache.root or output in the recipe.",
    ),
    (
        (
            "ACCESS_DENIED",
            "INVALID_ACCESS_KEY_ID",
            "SIGNATURE_DOES_NOT_MATCH",
            "InvalidAccessKeyId",
            "HTTP status 403",
        ),
        "credentials that may use the bucket {}",
        "They come from the environment alone: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the "
        "machine's role; AWS_ENDPOINT_URL and AWS_REGION say where.",
    ),
)
"""(signs in what pyarrow says, what was expected, what to do)"""


def copy_name(rel: str, sha256: str) -> str:
    """Where a node keeps its copy: under its content, so that equal files are kept once."""
    return f"fetched/{sha256[:2]}/{sha256}{PurePosixPath(rel).suffix}"


class RemoteStore(Store):
    """A folder on a filesystem that pyarrow reaches."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        parts = urlsplit(self.uri)  # which may hold a password and options: no matter for messages
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        try:
            self.fs, self._base = fs.FileSystem.from_uri(_with_environment(self.uri))
        except (ValueError, OSError) as error:
            expected = "a folder, or the URI of a filesystem that pyarrow opens"
            raise InputError(
                self._shown, expected, str(error).replace(uri, self._shown), "Use s3://, gs:// or a path."
            ) from error
        self._direct = self.fs.type_name in _OBJECT_STORES

    def where(self, rel: str) -> str:
        return f"{self._shown}/{rel}"

    def below(self, rel: str) -> RemoteStore:
        parts = urlsplit(self.uri)
        return RemoteStore(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{rel}")))

    @contextmanager
    def stage(self, rel: str) -> Iterator[Path]:
        key = self._key(rel)
        # An object appears as a whole when its upload closes; elsewhere only a rename is atomic.
        target = key if self._direct else f"{key}.{secrets.token_hex(4)}{TEMPORARY}"
        with tempfile.TemporaryDirectory(prefix="faculty-") as folder:
            path = Path(folder, PurePosixPath(rel).name)
            yield path
            with self._reaching(rel):
                if not self._direct:
                    self.fs.create_dir(key.rpartition("/")[0], recursive=True)
                try:
                    with path.open("rb") as source, self.fs.open_output_stream(target) as sink:
                        shutil.copyfileobj(source, sink, _CHUNK)
                except BaseException:  # closing commits what there is of an object
                    with suppress(OSError):
                        self.fs.delete_file(target)
                    raise
                if not self._direct:
                    self.fs.move(target, key)

    def read_bytes(self, rel: str) -> bytes:
        with self._reading(rel) as stream:
            return stream.read()

    def exists(self, rel: str) -> bool:
        with self._reaching(rel):
            return self.fs.get_file_info(self._key(rel)).type is fs.FileType.File

    def size(self, rel: str) -> int:
        with self._reaching(rel):
            info = self.fs.get_file_info(self._key(rel))
        if info.type is not fs.FileType.File:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(rel))
        return info.size

    def list(self, prefix: str = "") -> list[tuple[str, int]]:
        selector = fs.FileSelector(self._key(prefix), recursive=True, allow_not_found=True)
        with self._reaching(prefix):
            found = self.fs.get_file_info(selector)
        files = [info for info in found if info.type is fs.FileType.File]
        return sorted((info.path[len(self._base) + 1 :], info.size) for info in files)

    def delete(self, rel: str) -> None:
        with self._reaching(rel):
            if self.exists(rel):
                self.fs.delete_file(self._key(rel))

    def rename(self, rel: str, to: str) -> None:
        self.size(rel)  # raises FileNotFoundError alike on every filesystem
        with self._reaching(rel):
            self.fs.move(self._key(rel), self._key(to))

    def sha256(self, rel: str) -> str:
        with self._reading(rel) as stream:
            return stream_sha256(stream)

    def local(self, rel: str, *, sha256: str, bytes: int) -> Path:
        cache, where = LocalStore(node_cache()), self.where(rel)
        name = copy_name(rel, sha256)
        copy = cache.path(name)
        try:
            check(where, copy, sha256, bytes)
        except CorruptShard:  # not fetched yet, or damaged since
            self._fetch(rel, cache, name, sha256, bytes)
        used(copy)
        return copy

    def _fetch(self, rel: str, cache: LocalStore, name: str, sha256: str, bytes: int) -> None:
        where, copy = self.where(rel), cache.path(name)
        with fetching(sha256):
            try:
                return check(where, copy, sha256, bytes)  # another process was faster
            except CorruptShard:
                copy.unlink(missing_ok=True)
            if not self.exists(rel):
                raise corrupt(where, f"a file of {bytes} bytes", "nothing there")
            with cache.lock("room.lock"):
                make_room(bytes, where)
            with self._reading(rel) as source:
                try:
                    with cache.stage(name) as path, path.open("wb") as sink:
                        shutil.copyfileobj(source, sink, _CHUNK)
                except FacultyError as error:
                    raise full(where, str(error)) from error
            try:
                check(where, copy, sha256, bytes)
            except CorruptShard:
                copy.unlink(missing_ok=True)
                raise

    def hold(self, files: Iterable[tuple[str, str]]) -> Hold:
        return Hold(PurePosixPath(copy_name(rel, sha256)).name for rel, sha256 in files)

    @contextmanager
    def lock(self, rel: str, *, on_wait: Callable[[str], object] | None = None) -> Iterator[None]:
        yield

    def _key(self, rel: str) -> str:
        return f"{self._base}/{inside(rel)}" if rel else self._base

    @contextmanager
    def _reaching(self, rel: str) -> Iterator[None]:
        """Turn a failure of the network or of the service into an error that names what was wanted."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._unreachable(rel, error) from error

    def _unreachable(self, rel: str, error: OSError) -> FacultyError:
        """What the service said, and what to do about the usual causes."""
        text, bucket = str(error), self._base.split("/")[0]
        for signs, expected, remedy in _CAUSES:
            if any(sign in text for sign in signs):
                return InputError(
                    self.where(rel), expected.format(bucket), text.splitlines()[0][:300], remedy
                )
        return FacultyError(
            f"{self.where(rel)}: cannot be reached: {text} (AWS_ENDPOINT_URL says where it is)."
        )

    @contextmanager
    def _reading(self, rel: str) -> Iterator[NativeFile]:
        self.size(rel)  # raises FileNotFoundError alike on every filesystem
        with self._reaching(rel), self.fs.open_input_stream(self._key(rel)) as stream:
            yield stream


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
