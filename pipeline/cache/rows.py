"""The rows of a set of shards as one table in the order of their ids, mapped into memory."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from mmap import mmap

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from pipeline.cache.format import Shard, open_verified
from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.errors import InputError


class Rows:
    """All rows of a set, numbered in the order of their ids however they are packed into shards.

    Eight bytes a row are held in memory; ids and tensors stay in the mapped files.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        """Open and verify every shard. Raises CorruptShard, or InputError for an empty set or a repeated id."""
        self.name = f"{manifest.kind} {manifest.fingerprint}"
        if not manifest.shards:
            raise InputError(self.name, "at least one shard", "none")
        # Their pages are read as long as this object lives: no other training may have them evicted.
        self._hold = store.hold((receipt.file, receipt.sha256) for receipt in manifest.shards)
        with ThreadPoolExecutor() as pool:  # hashing and fetching run without the interpreter lock
            shards = list(pool.map(lambda receipt: open_verified(store, receipt), manifest.shards))
        self._ids = [shard.batch["id"] for shard in shards]
        self._arrays = [_arrays(shard) for shard in shards]
        counts = [shard.rows for shard in shards]
        order = pc.sort_indices(pa.chunked_array(self._ids)).to_numpy()
        self.shard = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]
        self.row = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])[order]
        self._first = np.cumsum([0, *counts[:-1]])
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
        return pa.chunked_array(self._ids).combine_chunks().take(self._order)

    @property
    def _order(self) -> np.ndarray:
        """Where each row lies when the shards are joined in the manifest's order."""
        return self._first[self.shard] + self.row

    def ordered(self, values: np.ndarray) -> np.ndarray:
        """Return (n, ...): values of the rows in the manifest's order, brought into the order of the ids.

        Raises InputError where there are not as many as rows.
        """
        if len(values) != len(self):
            raise InputError(self.name, f"a value for each of {len(self)} rows", str(len(values)))
        return values[self._order]

    def known(self, column: str) -> np.ndarray:
        """Say for each row whether it has `column`: its shard does, and `has_<column>`, if there, is not 0."""
        parts = []
        for ids, arrays in zip(self._ids, self._arrays, strict=True):
            everywhere = np.full(len(ids), column in arrays)
            parts.append(everywhere & arrays.get(f"has_{column}", everywhere).astype(bool))
        return np.concatenate(parts)[self._order]

    def shape(self, column: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Return the shape and type of one row's tensor, None if no shard has it.

        Raises InputError if shards differ.
        """
        present = [arrays[column] for arrays in self._arrays if column in arrays]
        kinds = {(array.shape[1:], array.dtype) for array in present}
        if len(kinds) > 1:
            raise InputError(f"{self.name}: {column}", "tiles of one shape", f"{sorted(map(str, kinds))}")
        return kinds.pop() if kinds else None

    def take(self, column: str, numbers: np.ndarray, inner: np.ndarray | None = None) -> np.ndarray:
        """Return (n, ...): a copy of the column's values in these rows; with `inner` (n,) of each row only the part of
        that number. Raises KeyError if a shard lacks it.
        """
        shards, rows = self.shard[numbers], self.row[numbers]
        parts = rows if inner is None else (rows, inner)
        if (shards == shards[0]).all():
            return self._arrays[shards[0]][column][parts]
        shape, dtype = (
            self._arrays[shards[0]][column].shape[1 if inner is None else 2 :],
            self._arrays[shards[0]][column].dtype,
        )
        result = np.empty((len(numbers), *shape), dtype)
        for shard in np.unique(shards):
            at = shards == shard
            places = rows[at] if inner is None else (rows[at], inner[at])
            result[at] = self._arrays[shard][column][places]
        return result

    def crops(self, column: str, shape: tuple[int, ...], dtype: np.dtype, side: int) -> Crops:
        """Return a cutter of squares of `side` pixels; rows in shards without the column give zeros."""
        nothing = np.frombuffer(mmap(-1, int(np.prod(shape)) * dtype.itemsize), dtype).reshape(1, *shape)
        return Crops([arrays.get(column, nothing) for arrays in self._arrays], side)


class Crops:
    """Cuts squares out of the (height, width, channels) tiles of several mapped arrays, a batch in one call.

    A crop is `side` lines of adjacent bytes at equal distances, wherever its array lies. So one view that
    begins at the lowest array, with an element at every byte, names each line of each crop by its distance
    from there, and one indexing operation copies a batch. Only elements inside the arrays are ever touched.
    """

    def __init__(self, arrays: Sequence[np.ndarray], side: int) -> None:
        """Take C-ordered arrays alike but for their rows; one of a single row serves any row."""
        self._arrays = arrays  # keeps their files mapped
        _, height, width, channels = arrays[0].shape
        self._dtype, self._shape = arrays[0].dtype, (side, side, channels)
        self._pixel = channels * self._dtype.itemsize
        self._line = width * self._pixel
        self._row = np.array([height * self._line if len(array) > 1 else 0 for array in arrays])
        addresses = np.array([array.ctypes.data for array in arrays], np.int64)
        self._start = addresses - addresses.min()
        lowest = arrays[int(addresses.argmin())].reshape(-1)
        line = lowest[: side * channels].view(f"V{side * self._pixel}")
        end = max(start + array.nbytes for start, array in zip(self._start.tolist(), arrays, strict=True))
        self._lines = as_strided(line, (end, side), (1, self._line), writeable=False)

    def cut(self, shard: np.ndarray, row: np.ndarray, y: np.ndarray, x: np.ndarray) -> Tensor:
        """Return (n, side, side, channels): squares with corners (y, x) in the given rows, all integers (n,)."""
        place = self._start[shard] + row * self._row[shard] + y * self._line + x * self._pixel
        return torch.from_numpy(self._lines[place].view(self._dtype).reshape(len(place), *self._shape))


def _arrays(shard: Shard) -> dict[str, np.ndarray]:
    fields = [field for field in shard.batch.schema if not pa.types.is_string(field.type)]
    return {field.name: shard.array(field.name) for field in fields}
