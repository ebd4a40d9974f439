"""Training batches from shards: random crops in an order that is a pure function of (seed, step, global
batch).

There is no sampler state. Sample number n = step * batch + i belongs to epoch n // tiles; a keyed permutation
of the tiles, another in each epoch, names its tile, and a counter-based generator its crop and its move. So a
resumed run, or one on another number of workers, sees exactly the same global batches, and the order depends
on the tiles' ids alone, not on how they are packed into shards.

With gains, the permutation is one of slots, of which a tile has the more the larger its gain is (slots.py), and samples
carry importance weights; all of it as pure a function of the same numbers.

Crops are copied from the mapped files straight into the batch. The eight moves of the square are left to
`to_device`, which does them where the batch is used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.order import below, epoch_keys, permute, read_ahead, uneven, words
from pipeline.cache.placed import Parts, Resident, block_of, fits, moved, pictures
from pipeline.cache.rows import Rows
from pipeline.cache.slots import slots_of, weights_of
from pipeline.cache.store import Store
from pipeline.errors import InputError

_BLOCK = 4096  # samples planned at once: enough to vectorise, few enough to throw away


@dataclass(frozen=True, slots=True)
class Source:
    """One column of one set of shards."""

    store: Store
    manifest: Manifest
    column: str

    @property
    def set(self) -> tuple[str, tuple[Receipt, ...]]:
        """What tells one set of shards from another."""
        return self.store.uri, self.manifest.shards


@dataclass(frozen=True, slots=True)
class Batch:
    """Crops of the same tiles at the same places, before their moves."""

    tensors: dict[str, Tensor]
    """Name -> (b, side, side, 3) in the column's type; side is the patch at that source's scale."""
    ops: np.ndarray
    """(b,) moves 0..7: bit 0 mirrors left and right, bit 1 top and bottom, bit 2 transposes after that."""
    has_hr: np.ndarray
    """(b,) bool: False where HR is unknown and `hr` holds zeros."""
    _numbers: np.ndarray = field(repr=False)
    _rows: Rows = field(repr=False)
    weights: np.ndarray | None = None
    """(b,) float32 importance weights; None where all samples count alike."""

    @property
    def ids(self) -> list[str]:
        """The tiles' ids."""
        return [self._rows.id(number) for number in self._numbers.tolist()]

    def parts(self, device: torch.device) -> Parts:
        """(what is sent to a device, what makes tensors of it there)."""
        return block_of(self, device)

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """`to_device` of the tensors, `has_hr` (b,) bool and, where there are some, the weights: `weight` (b,)."""
        tensors = to_device(self, device)
        tensors["has_hr"] = torch.from_numpy(self.has_hr).to(device, non_blocking=True)
        if self.weights is not None:
            tensors["weight"] = torch.from_numpy(self.weights).to(device, non_blocking=True)
        return tensors


class Sampler:
    """Random crops from tile shards (`lr`, `hr`) and from output shards of the same tiles (any other name)."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        *,
        scale: int,
        patch: int,
        batch: int,
        seed: int,
        margin: int,
        augment: bool = True,
        require_hr: bool = False,
        gains: np.ndarray | None = None,
    ) -> None:
        """Open and verify every shard of `sources`; `lr` must be among them.

        `patch` and `margin` are in LR pixels; crops keep `margin` from the edges of tiles that have room for
        it. `batch` counts the samples of all workers together. `require_hr` leaves out tiles without HR.
        `gains` (rows of `lr`'s manifest, in its order; finite, not negative) have tiles drawn in their proportion.
        Raises CorruptShard for a shard that does not verify, InputError for sources that fit neither each
        other nor the patch.
        """
        self._batch, self._seed, self._augment, self.patch = batch, seed, augment, patch
        sets = {source.set: source for source in sources.values()}
        opened = {key: Rows(source.store, source.manifest) for key, source in sets.items()}
        self._rows = {name: opened[source.set] for name, source in sources.items()}
        self._tiles = self._rows["lr"]
        height, width = _tile_shape("lr", self._tiles, sources["lr"].column, None)[0][:2]
        self._corners = np.array([_corners(side, patch, margin) for side in (height, width)])
        self._crops = {}
        self._sources, self._shapes = dict(sources), {}
        for name, source in sources.items():
            rows = self._rows[name]
            _expect_same_ids(name, rows, self._tiles)
            large = (height * scale, width * scale, 3)
            shape, dtype = _tile_shape(name, rows, source.column, large if name == "hr" else None)
            if shape[:2] not in ((height, width), large[:2]):
                expected = f"tiles of {height}x{width} or {scale} times that"
                raise InputError(f"training source {name}", expected, f"{shape[0]}x{shape[1]}")
            factor = shape[0] // height
            self._shapes[name] = shape, dtype, factor
            self._crops[name] = factor, rows.crops(source.column, shape, dtype, patch * factor)
        self._has_hr = np.zeros(len(self._tiles), bool)
        if "hr" in sources:
            self._has_hr = self._rows["hr"].known(sources["hr"].column)
        self._chosen = np.flatnonzero(self._has_hr) if require_hr else np.arange(len(self._tiles))
        if not self.tiles:
            raise InputError("training tiles", "at least one tile with HR", "LR alone")
        self._slots = self._chosen
        self._weights: np.ndarray | None = None
        if gains is not None:
            slots = slots_of(self._tiles.ordered(gains)[self._chosen])
            self._slots = self._chosen.repeat(slots)
            weights = np.zeros(len(self._tiles), np.float32)
            weights[self._chosen] = weights_of(slots)
            self._weights = weights
        self._plan = lru_cache(maxsize=2)(self._make_plan)

    @property
    def tiles(self) -> int:
        """Tiles that are drawn from."""
        return len(self._chosen)

    @property
    def epoch(self) -> int:
        """Samples in one epoch: as many as tiles, without gains."""
        return len(self._slots)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """Return samples [rank * b, (rank + 1) * b) of global batch `step`, where b = batch / world.

        Raises InputError if the batch does not divide by `world`.
        """
        numbers, ys, xs, ops, has_hr = self.where(step, rank, world)
        tensors = {}
        for name, (factor, crops) in self._crops.items():
            rows = self._rows[name]
            tensors[name] = crops.cut(rows.shard[numbers], rows.row[numbers], ys * factor, xs * factor)
        return Batch(tensors, ops, has_hr, numbers, self._tiles, self.weights(numbers))

    def on(self, device: torch.device) -> Sampler | Resident:
        """The same batches for a training on this device: from tiles that live there, where they fit."""
        return Resident(self, device) if fits(self.nbytes, device) else self

    def where(self, step: int, rank: int = 0, world: int = 1, steps: int = 1) -> tuple[np.ndarray, ...]:
        """(row, y, x in LR pixels, move, whether there is HR) of each sample of `batch`; of those of `steps` steps, one
        after the other, where one worker has them all. Raises as `batch` does.
        """
        if self._batch % world:
            raise uneven("train.batch", self._batch, world)
        share = self._batch // world
        assert world == 1 or steps == 1
        numbers, ys, xs, ops = self._samples(step * self._batch + rank * share, steps * share)
        return numbers, ys, xs, ops, self._has_hr[numbers]

    def weights(self, numbers: np.ndarray) -> np.ndarray | None:
        """Importance weights, float32, of samples of the tiles in these rows; None without gains."""
        return None if self._weights is None else self._weights[numbers]

    def ids(self, numbers: np.ndarray) -> list[str]:
        """Ids of the tiles in these rows."""
        return [self._tiles.id(number) for number in numbers.tolist()]

    @property
    def nbytes(self) -> int:
        """Of all tiles of all sources."""
        return sum(
            len(self._tiles) * int(np.prod(shape)) * dtype.itemsize
            for shape, dtype, _ in self._shapes.values()
        )

    def columns(self) -> dict[str, tuple[Hashable, Callable[[], np.ndarray], int]]:
        """Name -> (what tells it from others, all its tiles (n, height, width, 3) in rows, its factor to LR)."""
        return {
            name: ((source.set, source.column), partial(self._whole, name), self._shapes[name][2])
            for name, source in self._sources.items()
        }

    def _whole(self, name: str) -> np.ndarray:
        """A copy of a column; zeros where rows lack it."""
        shape, dtype, _ = self._shapes[name]
        known = self._rows[name].known(self._sources[name].column)
        tiles = np.zeros((len(self._tiles), *shape), dtype)
        if len(found := np.flatnonzero(known)):
            tiles[found] = self._rows[name].take(self._sources[name].column, found)
        return tiles

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Batch]]:
        """Yield (step, batch) for the steps of [start, stop) while one thread prepares the next batch."""
        return read_ahead(self.batch, start, stop, rank, world)

    def _samples(self, first: int, count: int) -> np.ndarray:
        """Return (4, count) int64: row number, y, x, move of the samples numbered from `first`."""
        parts = []
        while count:
            block, offset = divmod(first, _BLOCK)
            parts.append(self._plan(block)[:, offset : offset + count])
            first, count = first + parts[-1].shape[1], count - parts[-1].shape[1]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _make_plan(self, block: int) -> np.ndarray:
        samples = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=np.uint64)
        epoch, position = np.divmod(samples, np.uint64(self.epoch))
        numbers = self._slots[permute(position, self.epoch, epoch_keys(self._seed, epoch))]
        draws = words(self._seed, block * _BLOCK, _BLOCK)
        corners = self._corners[:, :1] + below(draws[:2], self._corners[:, 1:])
        moves = below(draws[2], 8 if self._augment else 1)
        return np.stack([numbers, *corners, moves])


def to_device(
    batch: Batch, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return the tensors as (b, 3, side, side) in [0, 1] and channels_last, each sample's move done."""
    if torch.device(device).type == "cpu":
        return {n: pictures(_moved_on_cpu(crops, batch.ops), dtype) for n, crops in batch.tensors.items()}
    ops = torch.from_numpy(batch.ops).to(device)
    return {n: pictures(moved(crops.to(device), ops), dtype) for n, crops in batch.tensors.items()}


def _moved_on_cpu(x: Tensor, ops: np.ndarray) -> Tensor:
    """Move each square of (b, side, side, 3), a pixel at a time rather than a channel at a time."""
    result = torch.empty_like(x)
    pixel = f"V{x.shape[-1] * x.element_size()}"
    sources, targets = x.numpy().view(pixel)[..., 0], result.numpy().view(pixel)[..., 0]
    for source, target, op in zip(sources, targets, ops.tolist(), strict=True):
        if op & 1:
            source = source[:, ::-1]
        if op & 2:
            source = source[::-1]
        target[...] = source.T if op & 4 else source
    return result


def _corners(side: int, patch: int, margin: int) -> tuple[int, int]:
    """Return the first corner and the number of corners that crops may have along one side."""
    if side < patch:
        raise InputError("training patch", f"at most the {side} LR pixels of a tile", str(patch))
    margin = margin if side >= patch + 2 * margin else 0
    return margin, side - 2 * margin - patch + 1


def _tile_shape(
    name: str, rows: Rows, column: str, fallback: tuple[int, ...] | None
) -> tuple[tuple[int, ...], np.dtype]:
    found = rows.shape(column)
    if found is None and fallback is not None:
        return fallback, np.dtype(np.uint8)
    if found is None or (fallback is None and not rows.known(column).all()):
        expected = f"the column {column} in every shard of {rows.name}"
        raise InputError(f"training source {name}", expected, "shards without it")
    return found


def _expect_same_ids(name: str, rows: Rows, tiles: Rows) -> None:
    if rows is tiles:
        return
    mine, theirs = rows.ids(), tiles.ids()
    if not mine.equals(theirs):
        missing = pc.sum(pc.invert(pc.is_in(theirs, mine))).as_py()
        extra = pc.sum(pc.invert(pc.is_in(mine, theirs))).as_py()
        found = f"{missing} of them missing and {extra} others"
        raise InputError(f"training source {name}", f"the {len(tiles)} ids of {tiles.name}", found)
