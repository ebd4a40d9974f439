"""The rows of a set of shards as one table in the order of their ids, mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from pipeline.errors import InputError
from pipeline.shards.format import CorruptShard, Receipt, Shard, open_shard
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store, rebuild


class Rows:
    """All rows of a set, numbered in the order of their ids however they are packed into shards.

    Eight bytes a row are held in memory; ids and tensors stay in the mapped files.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Open and verify every shard. Raises CorruptShard, or InputError for an empty set or a repeated id."""
        self.name = f"{manifest.kind} {manifest.fingerprint}"
        if not manifest.shards:
            raise InputError(self.name, "at least one shard", "none")
        with ThreadPoolExecutor() as pool:  # hashing and fetching run without the interpreter lock
            shards = list(pool.map(lambda receipt: _open(store, receipt), manifest.shards))
        self._ids = [shard.batch["id"] for shard in shards]
        self._arrays = [_arrays(shard) for shard in shards]
        counts = [shard.rows for shard in shards]
        self._first = np.cumsum([0, *counts[:-1]])
        order = pc.sort_indices(pa.chunked_array(self._ids)).to_numpy()
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self.row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]
        ids = self.ids()
        if (repeated := pc.index(pc.equal(ids[1:], ids[:-1]), True).as_py()) >= 0:
            raise InputError(self.name, "every id once", f"{ids[repeated]} more than once")

    def __len__(self) -> int:
        return len(self.row)

    def id(self, number: int) -> str:
        """Return the id of one row."""
        return self._ids[self.shard[number]][int(self.row[number])].as_py()

    def ids(self) -> pa.Array:
        """Return all ids, sorted: a copy, to be dropped after use."""
        return pa.chunked_array(self._ids).combine_chunks().take(self._first[self.shard] + self.row)

    def known(self, column: str) -> np.ndarray:
        """Say for each row whether it has `column`: its shard does, and `has_<column>`, if there, is not 0."""
        parts = []
        for ids, arrays in zip(self._ids, self._arrays, strict=True):
            flags = (
                arrays.get(f"has_{column}", np.ones(len(ids), bool))
                if column in arrays
                else np.zeros(len(ids))
            )
            parts.append(np.asarray(flags, bool))
        return np.concatenate(parts)[self._first[self.shard] + self.row]

    def shape(self, column: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Return the shape and type of one row's tensor, None if no shard has it.

        Raises InputError if shards differ.
        """
        kinds = {
            (arrays[column].shape[1:], arrays[column].dtype) for arrays in self._arrays if column in arrays
        }
        if len(kinds) > 1:
            raise InputError(f"{self.name}: {column}", "tiles of one shape", f"{sorted(map(str, kinds))}")
        return kinds.pop() if kinds else None

    def crops(self, column: str, shape: tuple[int, ...], dtype: np.dtype, side: int) -> Crops:
        """Return a cutter of squares of `side` pixels; rows in shards without the column give zeros."""
        nothing = np.zeros((), dtype)
        arrays = [
            arrays[column] if column in arrays else np.broadcast_to(nothing, (len(ids), *shape))
            for ids, arrays in zip(self._ids, self._arrays, strict=True)
        ]
        return Crops(arrays, side)


class Crops:
    """Cuts squares out of the (height, width, channels) tiles of several arrays."""

    def __init__(self, arrays: Sequence[np.ndarray], side: int) -> None:
        self._windows = [_windows(array, side) for array in arrays]
        self._shape = (side, side, arrays[0].shape[-1])
        self._dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype

    def cut(self, shards: list[int], rows: list[int], ys: list[int], xs: list[int]) -> Tensor:
        """Return (n, side, side, channels): the squares with corners (y, x) of the given rows."""
        result = torch.empty(len(rows), *self._shape, dtype=self._dtype)
        windows = self._windows
        for square, shard, row, y, x in zip(result.flatten(2).numpy(), shards, rows, ys, xs, strict=True):
            square[...] = windows[shard][row, y, x]
        return result


def _windows(array: np.ndarray, side: int) -> np.ndarray:
    """View (rows, height, width, channels) as (rows, y, x, side, side * channels): one index names a square.

    The last axis joins pixels with their channels, so that a square is copied in runs as long as its lines.
    """
    rows, height, width, channels = array.shape
    row, line, pixel, value = array.strides
    shape = (rows, height - side + 1, width - side + 1, side, side * channels)
    return as_strided(array, shape, (row, line, pixel, line, value), writeable=False)


def _open(store: Store, receipt: Receipt) -> Shard:
    shard = open_shard(store.local(receipt.file, sha256=receipt.sha256, bytes=receipt.bytes))
    if shard.rows != receipt.rows:
        where = store.where(receipt.file)
        raise CorruptShard(where, f"{receipt.rows} rows", f"{shard.rows} rows", rebuild(where))
    return shard


def _arrays(shard: Shard) -> dict[str, np.ndarray]:
    fields = [field for field in shard.batch.schema if not pa.types.is_string(field.type)]
    return {field.name: shard.array(field.name) for field in fields}
