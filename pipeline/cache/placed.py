"""Batches on a GPU: all crops of a step in one copy, or none at all where the tiles live there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.cache.sampler import Batch, Sampler

MOST = 0.25
"""Share of a GPU's free memory that tiles may take."""
_ALIGNED = 16
"""Bytes at whose multiples a part of a block begins."""
Parts = tuple[dict[str, Tensor], "Unpack"]


@dataclass(frozen=True, slots=True)
class Unpack:
    """Makes the losses' tensors of a block of bytes, on the block's device."""

    places: tuple[tuple[str, int, tuple[int, ...], torch.dtype], ...]
    """(name, first byte, shape, type); `ops` and `has_hr` among them."""

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        block, found = raw["block"], {}
        for name, begin, shape, dtype in self.places:
            size = int(np.prod(shape)) * dtype.itemsize
            found[name] = block[begin : begin + size].view(dtype).view(shape)
        ops, has_hr = found.pop("ops"), found.pop("has_hr")
        return {**{n: pictures(moved(x, ops)) for n, x in found.items()}, "has_hr": has_hr}


def block_of(batch: Batch, device: torch.device) -> Parts:
    """A batch as one block of bytes, sent to the device at once and without waiting, and what unpacks it there."""
    tensors = {**batch.tensors, "ops": torch.from_numpy(batch.ops), "has_hr": torch.from_numpy(batch.has_hr)}
    places, end = [], 0
    for name, tensor in tensors.items():
        places.append((name, end, tuple(tensor.shape), tensor.dtype))
        end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    block = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for (_, begin, _, _), tensor in zip(places, tensors.values(), strict=True):
        block[begin : begin + tensor.nbytes] = tensor.contiguous().view(-1).view(torch.uint8)
    return {"block": block.to(device, non_blocking=True)}, Unpack(tuple(places))


def moved(x: Tensor, ops: Tensor) -> Tensor:
    """Move each square of (b, side, side, 3) by its number of `ops` (b,): few kernels, whatever the batch."""
    moves = ops.view(-1, 1, 1, 1)
    x = torch.where(moves & 1 > 0, x.flip(2), x)
    x = torch.where(moves & 2 > 0, x.flip(1), x)
    return torch.where(moves & 4 > 0, x.transpose(1, 2), x).contiguous()


def pictures(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(b, side, side, 3) as they are cached to (b, 3, side, side) in [0, 1], channels_last."""
    y = x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)
    return y.permute(0, 3, 1, 2)


class Resident:
    """A sampler's tiles on a device, as they are cached; its batches say only where their crops lie."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self.columns: dict[str, tuple[Tensor, tuple[int, int], int]] = {}
        """Name -> (pixels of all tiles (n * height * width, 3), (height, width), how many times LR's size)."""
        loaded: dict[Any, Tensor] = {}
        for name, (key, tiles, factor) in sampler.columns().items():
            if key not in loaded:
                loaded[key] = torch.from_numpy(tiles()).to(device)
            x = loaded[key]
            self.columns[name] = x.reshape(-1, x.shape[3]), (x.shape[1], x.shape[2]), factor

    @staticmethod
    def fits(sampler: Sampler, device: torch.device) -> bool:
        """Whether they take at most `MOST` of the device's free memory."""
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return sampler.nbytes <= MOST * free

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Placed:
        """As the sampler's."""
        numbers, ys, xs, ops, has_hr = self.sampler.where(step, rank, world)
        return Placed(np.stack([numbers, ys, xs, ops, has_hr.astype(np.int64)]), self)

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Placed]]:
        """As the sampler's; nothing needs to be read ahead."""
        for step in range(start, stop):
            yield step, self.batch(step, rank, world)

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Crops and moves of {"where": (5, b) row, y, x, move, whether there is HR}: one gathering a column."""
        number, y, x, ops, has_hr = raw["where"].unbind()
        found = {}
        for name, (pixels, (height, width), factor) in self.columns.items():
            side = self.sampler.patch * factor
            line = torch.arange(side, device=pixels.device)
            down, across = line.view(1, -1, 1), line.view(1, 1, -1)
            move = ops.view(-1, 1, 1)
            # Row and column of the square that come to lie at (down, across): the moves, the last one first.
            row = torch.where(move & 4 > 0, across, down)
            column = torch.where(move & 4 > 0, down, across)
            row = torch.where(move & 2 > 0, side - 1 - row, row) + (y * factor).view(-1, 1, 1)
            column = torch.where(move & 1 > 0, side - 1 - column, column) + (x * factor).view(-1, 1, 1)
            place = (number.view(-1, 1, 1) * height + row) * width + column
            found[name] = pictures(pixels[place])
        return {**found, "has_hr": has_hr > 0}


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the crops of a batch lie in tiles on a device."""

    where: np.ndarray
    """(5, b) int64: row, y, x in LR pixels, move, whether there is HR."""
    _tiles: Resident = field(repr=False)

    @property
    def ids(self) -> list[str]:
        """The tiles' ids."""
        return self._tiles.sampler.ids(self.where[0])

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """As a batch's that was cut on the CPU."""
        raw, unpack = self.parts(torch.device(device))
        return unpack(raw)

    def parts(self, device: torch.device) -> tuple[dict[str, Tensor], Resident]:
        """(what is sent, what makes tensors of it there)."""
        where = torch.from_numpy(self.where)
        where = where.pin_memory() if device.type == "cuda" else where
        return {"where": where.to(device, non_blocking=True)}, self._tiles
