"""Records kept in files while no tracking store can be reached, and their upload later.

A spool file holds one JSON record a line, the run's header first; pictures and artefacts are copied beside
it. Each process appends to its own file and holds a lock on it, so `sync` can tell a file in use (its owner
uploads it) from one left behind. A line cut short by a kill is ignored. What was uploaded is marked by
position after each batch and the file is removed at the end, so an upload can stop anywhere and start
again.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np
from PIL import Image

from pipeline.engine.records import Kind, Record
from pipeline.engine.sink import Sink
from pipeline.engine.store import Rejected, Store, Unavailable, public, resolve_uri
from pipeline.errors import FacultyError, InputError
from pipeline.tracking import Status

log = logging.getLogger(__name__)

BATCH = 500
SUFFIX = ".spool.jsonl"
_HEADER = {"id", "local", "experiment", "name", "artifacts", "tags", "start", "parent"}


class Spool:
    """One run's records of one process, in a file that appears with the first record. Safe to use from
    threads.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], uri: str) -> None:
        self.path = folder / header["id"] / f"{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self._first = {"header": dict(header), "uri": uri}
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._copies = 0

    @property
    def empty(self) -> bool:
        """Whether everything recorded here has been uploaded."""
        return self._file is None

    def append(self, record: Record) -> None:
        """Write a record. Raises OSError where the disk does."""
        with self._lock:
            while self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = open(self.path, "ab", buffering=0)  # noqa: SIM115  kept open for its lock
                fcntl.flock(file, fcntl.LOCK_EX)
                if _gone(file):  # `sync` took it for one that was left behind
                    file.close()
                    continue
                self._file = file
                self._write(self._first)
            self._write(self._encode(record))

    def drain(self, write: Callable[[list[Record]], int]) -> int:
        """Upload everything and remove the file; returns the number of records. What `write` raises passes
        through.
        """
        if self._file is None:
            return 0
        total = 0
        while True:
            count, position = _upload(self.path, write)
            total += count
            with self._lock:
                if position < os.fstat(self._file.fileno()).st_size:
                    continue  # another thread has appended meanwhile
                self._file.close()
                self._file = None
                _remove(self.path)
                return total

    def release(self) -> None:
        """Let go of the file: from now on `sync` may upload it."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        data, start = json.dumps(line, default=str).encode() + b"\n", os.fstat(self._file.fileno()).st_size
        try:
            while data:  # a raw write may take a part only
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(start)  # a full disk must not leave half a line before the next one
            raise

    def _encode(self, record: Record) -> dict[str, Any]:
        line: dict[str, Any] = {
            "kind": record.kind,
            "time": record.time,
            "step": record.step,
            "name": record.name,
        }
        line["values"] = dict(record.values)
        if record.kind == "text":
            line["payload"] = record.payload
        elif record.payload is not None:
            line["payload"] = self._copy(record.payload)
        return line

    def _copy(self, payload: Any) -> str:
        """Keep a picture or an artefact beside the spool file; returns its name there."""
        folder = _copies(self.path) / str(self._copies)
        self._copies += 1
        folder.mkdir(parents=True)
        if isinstance(payload, np.ndarray):
            target = folder / "picture.png"
            Image.fromarray(payload).save(target)
        else:
            target = folder / Path(payload).name
            if Path(payload).is_dir():
                shutil.copytree(payload, target)
            elif Path(payload).exists():
                shutil.copy2(payload, target)  # where it is gone, the upload says so
        return str(target.relative_to(_copies(self.path)))


def sync(where: str | Path, uri: str | None = None) -> dict[str, int]:
    """Upload what was spooled below `where` (a run's folder, or a spool) to `uri`, by default the store
    first meant.

    Returns how many there were: files, records, of them metrics, params, tags, image, artifact, text,
    status stored now and `refused` ones; `busy` files belong to running processes, which upload them by
    themselves. Doing it twice stores nothing twice. Raises InputError for a missing folder, FacultyError
    where the store cannot be reached.
    """
    root = Path(where)
    if not root.exists():
        raise InputError(str(root), "a run's folder or its spool", "nothing there")
    files = [root] if root.is_file() else sorted(root.rglob(f"*{SUFFIX}"))
    total: Counter[str] = Counter(files=0, records=0, busy=0)
    for path in files:
        if path.is_dir():
            raise InputError(str(path), "a spool file", "a folder", "Move it elsewhere.")
        with ExitStack() as stack:
            try:
                file = stack.enter_context(open(path, "rb"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                total["busy"] += 1
                continue
            except FileNotFoundError:  # its owner has uploaded it meanwhile
                continue
            if _gone(file):
                continue
            total.update(_sync_file(path, resolve_uri(uri, root) if uri else None))
    return dict(total)


def _gone(file: IO[bytes]) -> bool:
    """Whether somebody removed an open file."""
    return os.fstat(file.fileno()).st_nlink == 0


def _sync_file(path: Path, uri: str | None) -> Counter[str]:
    with open(path, "rb") as file:
        first = file.readline()
    if not first.endswith(b"\n"):  # killed while the header was written: there is nothing after it
        _remove(path)
        return Counter()
    header, meant = _opening(path, first)
    store = Store(uri or meant)
    try:
        store.initialise()
        sink = Sink(store, store.locate(header, create=True), fresh=False)
        records, _ = _upload(path, sink.write)
    except Rejected as error:
        raise InputError(str(path), "a run that the store takes", str(error), "The file is kept.") from error
    except Unavailable as error:
        raise FacultyError(
            f"cannot upload {path} to {public(store.uri)}: {error}. It is kept; try again."
        ) from error
    _remove(path)
    return sink.counts + Counter({"files": 1, "records": records})


def _upload(path: Path, write: Callable[[list[Record]], int]) -> tuple[int, int]:
    """Hand the records after the mark to `write`, in batches, moving the mark; returns their number and its
    place.
    """
    total, position = 0, _position(path)
    with open(path, "rb") as file:
        header = len(file.readline())
        position = max(position, header)
        file.seek(position)
        while lines := list(itertools.islice(iter(file.readline, b""), BATCH)):
            if not lines[-1].endswith(b"\n"):
                lines.pop()  # cut short by a kill
            pending = [_decode(path, line) for line in lines]
            while pending:
                pending = pending[write(pending) :]
            total += len(lines)
            position += sum(map(len, lines))
            _mark(path, position)
    return total, position


def _decode(path: Path, line: bytes) -> Record:
    values = _parse(path, line)
    kinds = {"kind": str, "name": str, "time": int, "step": int, "values": dict}
    odd = values.keys() - {*kinds, "payload"} or values.get("kind") not in get_args(Kind)
    if odd or not all(type(values.get(key)) is kind for key, kind in kinds.items()):
        raise _damaged(path, line)
    record = Record(**values)
    if record.kind == "status" and record.name not in get_args(Status) + ("RUNNING",):
        raise _damaged(path, line)
    if record.kind in ("image", "artifact"):
        return replace(record, payload=_copies(path) / str(record.payload))
    return record


def _opening(path: Path, line: bytes) -> tuple[dict[str, Any], str]:
    """The header of the run in the first line, and the store that it was meant for."""
    opening = _parse(path, line)
    header, uri = opening.get("header"), opening.get("uri")
    while isinstance(header, dict) and set(header) == _HEADER and isinstance(header["tags"], dict):
        texts = all(isinstance(header[key], str) for key in ("id", "experiment", "name", "artifacts"))
        if not texts or type(header["start"]) is not int:
            break
        if header["parent"] is None and isinstance(uri, str):
            return opening["header"], uri
        header = header["parent"]
    raise _damaged(path, line)


def _parse(path: Path, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _damaged(path, line)
    return found


def _damaged(path: Path, line: bytes) -> InputError:
    shown = ascii(line[:60].decode(errors="replace"))
    remedy = "The file is damaged. Remove it; what it holds besides is lost to the store."
    return InputError(str(path), "one JSON record of a run a line, its header first", shown, remedy)


def _copies(path: Path) -> Path:
    return path.with_name(f"{path.name}.files")


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.mark")


def _position(path: Path) -> int:
    mark = _mark_of(path)
    text = mark.read_bytes() if mark.exists() else b"0"
    return int(text) if text.isdigit() else 0  # a damaged mark: from the start, for nothing is stored twice


def _mark(path: Path, position: int) -> None:
    temporary = path.with_name(f"{path.name}.mark.tmp")
    temporary.write_text(str(position))
    os.replace(temporary, _mark_of(path))


def _remove(path: Path) -> None:
    shutil.rmtree(_copies(path), ignore_errors=True)
    path.unlink()
    _mark_of(path).unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
