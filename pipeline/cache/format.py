"""A shard: one Arrow IPC file that is mapped into memory and read without copies.

One record batch, no compression. Pictures are fixed-shape tensor columns, (rows, height, width, channels) of
uint8 or float16; identifiers are strings; the rest are plain one-dimensional numbers. Each tensor column
names its value range and the file names its schema version, so that a shard explains itself. Arrow keeps no
checksums: the receipt does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.cache.node import CorruptShard, corrupt
from pipeline.cache.store import Store

__all__ = [
    "SCHEMA_VERSION",
    "SUFFIX",
    "CorruptShard",
    "Receipt",
    "Shard",
    "open_shard",
    "open_verified",
    "verify",
    "write_shard",
]

SCHEMA_VERSION = "1"
SUFFIX = ".arrow"
_VERSION_KEY = b"faculty.schema"
_RANGE_KEY = b"value_range"
_DEFAULT_RANGES = {"uint8": (0, 255), "float16": (0.0, 1.0)}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was committed: proof for readers, progress for an interrupted fill."""

    key: str
    """Name of the unit of work: the file's name without its suffix."""
    file: str
    """Name inside the store."""
    rows: int
    bytes: int
    sha256: str
    first_id: str
    last_id: str


@dataclass(frozen=True, slots=True)
class Shard:
    """An open shard: a mapped file, without a descriptor."""

    path: Path
    metadata: dict[str, str]
    value_ranges: dict[str, tuple[float, float]]
    """Of the tensor columns."""
    batch: pa.RecordBatch

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.batch.num_rows

    @property
    def columns(self) -> dict[str, Any]:
        """Every column: strings as a list, the rest as the array that `array` gives."""
        return {
            field.name: self.batch[field.name].to_pylist()
            if pa.types.is_string(field.type)
            else self.array(field.name)
            for field in self.batch.schema
        }

    def array(self, name: str) -> np.ndarray:
        """Return a tensor column (rows, *shape) or a numeric one (rows,), a read-only view of the mapped file.

        It keeps the file mapped. Raises KeyError if there is no such column.
        """
        column = self.batch[name]
        if isinstance(column.type, pa.FixedShapeTensorType):
            values = column.storage.flatten().to_numpy(zero_copy_only=True)
            return values.reshape(len(column), *column.type.shape)
        return column.to_numpy(zero_copy_only=True)


def write_shard(
    store: Store,
    rel: str,
    columns: Mapping[str, np.ndarray | list[str]],
    *,
    metadata: Mapping[str, str],
    value_ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Receipt:
    """Commit `columns` as the shard `rel` (its name ends in `.arrow`) and return its receipt.

    Arrays of two or more dimensions must be uint8 or float16; `id` (unique strings) is required and all
    columns have as many rows. `value_ranges` defaults to 0..255 for uint8 and 0..1 for float16. The same
    input gives the same bytes. Raises ValueError for columns that do not fit, FacultyError when the store
    cannot be written.
    """
    ids = columns["id"]
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError(f"{rel}: a shard needs at least one row and unique ids")
    fields, arrays = [], []
    for name, values in columns.items():
        if len(values) != len(ids):
            raise ValueError(f"{rel}: column {name} has {len(values)} rows, id has {len(ids)}")
        array = _to_arrow(name, values)
        note: dict[bytes, str] = {}
        if isinstance(array.type, pa.FixedShapeTensorType):
            low, high = (value_ranges or {}).get(name, _DEFAULT_RANGES[str(values.dtype)])
            note = {_RANGE_KEY: json.dumps([low, high])}
        fields.append(pa.field(name, array.type, nullable=False, metadata=note))
        arrays.append(array)
    notes = {_VERSION_KEY.decode(): SCHEMA_VERSION} | {key: metadata[key] for key in sorted(metadata)}
    schema = pa.schema(fields, metadata=notes)
    with store.stage(rel) as path, path.open("wb") as file:
        sink = _Hashing(file)
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        size = sink.tell()
    key = PurePosixPath(rel).name.removesuffix(SUFFIX)
    return Receipt(key, rel, len(ids), size, sink.sha256.hexdigest(), ids[0], ids[-1])


def open_shard(path: str | Path) -> Shard:
    """Map a shard.

    Raises CorruptShard for a file that is missing, truncated, foreign or of another schema version.
    """
    path = Path(path)
    try:
        # Arrays keep the mapping alive after the file is closed: thousands of shards, no open descriptor.
        with pa.memory_map(os.fspath(path)) as source, pa.ipc.open_file(source) as reader:
            notes = reader.schema.metadata or {}
            version = notes.pop(_VERSION_KEY, b"none").decode(errors="replace")
            if version != SCHEMA_VERSION:
                expected = f"a shard of schema version {SCHEMA_VERSION}"
                raise corrupt(str(path), expected, f"an Arrow file with version {version}")
            if reader.num_record_batches != 1:
                found = f"{reader.num_record_batches} record batches"
                raise corrupt(str(path), "one record batch", found)
            batch = reader.get_batch(0)
        batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise corrupt(str(path), "a complete shard", str(error)) from error
    ranges = {
        field.name: tuple(json.loads(field.metadata[_RANGE_KEY]))
        for field in batch.schema
        if field.metadata and _RANGE_KEY in field.metadata
    }
    metadata = {key.decode(): value.decode() for key, value in notes.items()}
    return Shard(path, metadata, ranges, batch)


def open_verified(store: Store, receipt: Receipt) -> Shard:
    """Map the stored shard of `receipt`, verified on this machine (fetched first from an object store).

    Raises CorruptShard, which names the stored file.
    """
    path = store.local(receipt.file, sha256=receipt.sha256, bytes=receipt.bytes)
    where = store.where(receipt.file)
    try:
        shard = open_shard(path)
    except CorruptShard as error:
        raise corrupt(where, error.expected, error.found) from error
    if shard.rows != receipt.rows:
        raise corrupt(where, f"{receipt.rows} rows", f"{shard.rows} rows")
    return shard


def verify(store: Store, receipt: Receipt, full: bool) -> None:
    """Raise CorruptShard unless the stored shard is the one of `receipt`.

    The size is always compared. `full` hashes the stored bytes now; otherwise they are hashed if this machine
    has not yet verified this state of the file (a remote shard is fetched for that, once).
    """
    where = store.where(receipt.file)
    if not store.exists(receipt.file):
        raise corrupt(where, f"a file of {receipt.bytes} bytes", "nothing there")
    if (size := store.size(receipt.file)) != receipt.bytes:
        raise corrupt(where, f"{receipt.bytes} bytes", f"{size} bytes")
    if not full:
        store.local(receipt.file, sha256=receipt.sha256, bytes=receipt.bytes)
    elif (digest := store.sha256(receipt.file)) != receipt.sha256:
        raise corrupt(where, f"sha256 {receipt.sha256}", f"sha256 {digest}")


class _Hashing:
    """A writable file for pyarrow that hashes and counts what passes."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def flush(self) -> None:
        self.file.flush()


def _to_arrow(name: str, values: np.ndarray | list[str]) -> pa.Array:
    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    if str(values.dtype) not in _DEFAULT_RANGES:
        raise ValueError(f"column {name}: a tensor column holds uint8 or float16, not {values.dtype}")
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(values))
