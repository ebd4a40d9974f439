"""Batches on a GPU: all crops of a step in one copy, or none at all where the tiles live there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
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
    """(name, first byte, shape, type); `ops` and `has_hr` among them, and `weight` where samples have one."""

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        block, found = raw["block"], {}
        for name, begin, shape, dtype in self.places:
            size = int(np.prod(shape)) * dtype.itemsize
            found[name] = block[begin : begin + size].view(dtype).view(shape)
        ops = found.pop("ops")
        told: dict[str, Tensor] = {n: found.pop(n) for n in ("has_hr", "weight") if n in found}
        return {**{n: pictures(moved(x, ops)) for n, x in found.items()}, **told}


def block_of(batch: Batch, device: torch.device) -> Parts:
    """A batch as one block of bytes, sent to the device at once and without waiting, and what unpacks it there."""
    tensors = {**batch.tensors, "ops": torch.from_numpy(batch.ops), "has_hr": torch.from_numpy(batch.has_hr)}
    if batch.weights is not None:
        tensors["weight"] = torch.from_numpy(batch.weights)
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
    if x.dtype != torch.uint8:
        y = x.to(dtype)
    elif x.device.type == "cpu":
        y = x.to(dtype).div_(255)
    else:
        y = torch.div(x, _white(x.device)).to(dtype)
    return y.permute(0, 3, 1, 2)


@lru_cache
def _white(device: torch.device) -> Tensor:
    """255 on a device: by a number CUDA multiplies with its reciprocal, which rounds otherwise than the CPU."""
    with torch.inference_mode(False):
        return torch.tensor(255.0, device=device)


class Place(ABC):
    """Samples that live on a device, and batches of them that say only which they are."""

    @abstractmethod
    def ids(self, step: int, rank: int, world: int) -> list[str]:
        """Of a batch's samples."""

    @abstractmethod
    def ahead(self, step: int, count: int, rank: int, world: int) -> dict[str, np.ndarray]:
        """What is sent for the batches of `count` steps (one, of several workers), each (count, ...); what it points at
        is there then.
        """

    @abstractmethod
    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses' tensors from what was sent for a batch."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Placed:
        """As the sampler's."""
        return Placed(self, step, rank, world)

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Placed]]:
        """As the sampler's; nothing is read ahead but by who asks for several steps at once."""
        for step in range(start, stop):
            yield step, self.batch(step, rank, world)


def fits(nbytes: int, device: torch.device) -> bool:
    """Whether as much takes at most `MOST` of a GPU's free memory; never on a CPU, where nothing is gained."""
    return device.type == "cuda" and nbytes <= MOST * torch.cuda.mem_get_info(device)[0]


class Resident(Place):
    """A sampler's tiles on a device, as they are cached; its batches say only where their crops lie."""

    def __init__(self, sampler: Sampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        self.columns: dict[str, tuple[Tensor, tuple[int, int, int]]] = {}
        """Name -> (pixels of all tiles (n * height * width, 3), (height, width, how many times LR's size))."""
        loaded: dict[Any, Tensor] = {}
        for name, (key, tiles, factor) in sampler.columns().items():
            if key not in loaded:
                loaded[key] = torch.from_numpy(tiles()).to(device)
            x = loaded[key]
            self.columns[name] = x.reshape(-1, x.shape[3]), (x.shape[1], x.shape[2], factor)
        self.layouts = list(dict.fromkeys(layout for _, layout in self.columns.values()))
        sides = {sampler.patch * factor for *_, factor in self.layouts}
        self._lines = {side: torch.arange(side, device=device) for side in sides}

    def ids(self, step: int, rank: int, world: int) -> list[str]:
        """The tiles' ids."""
        return self.sampler.ids(self.sampler.where(step, rank, world)[0])

    def ahead(self, step: int, count: int, rank: int, world: int) -> dict[str, np.ndarray]:
        """{"where": (count, 1 + 3 * layouts, b) int64}: whether there is HR; for each layout the number of the pixel at
        a crop's upper left corner, after its move, how far from there the pixel below is, and the one at the right.
        Where samples have weights, {"weight": (count, b) float32} too.
        """
        drawn = self.sampler.where(step, rank, world, count)
        numbers, ys, xs, ops, has_hr = (x.reshape(count, -1) for x in drawn)
        turned, upside_down, mirrored = ops & 4 > 0, ops & 2 > 0, ops & 1 > 0
        rows = [has_hr.astype(np.int64)]
        for height, width, factor in self.layouts:
            last = self.sampler.patch * factor - 1
            y, x = ys * factor + last * upside_down, xs * factor + last * mirrored
            row, column = np.where(upside_down, -width, width), np.where(mirrored, -1, 1)
            rows.append((numbers * height + y) * width + x)
            rows += [np.where(turned, column, row), np.where(turned, row, column)]
        weights = self.sampler.weights(numbers)
        return {"where": np.stack(rows, axis=1), **({} if weights is None else {"weight": weights})}

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Crops and moves of {"where": as `where` says}: one gathering a column."""
        has_hr, *rows = raw["where"].unbind()
        places = {}
        for number, layout in enumerate(self.layouts):
            first, down, right = (row.view(-1, 1, 1) for row in rows[3 * number : 3 * number + 3])
            line = self._lines[self.sampler.patch * layout[2]]
            places[layout] = torch.addcmul(torch.addcmul(first, down, line.view(-1, 1)), right, line)
        found = {name: pictures(pixels[places[layout]]) for name, (pixels, layout) in self.columns.items()}
        return {**found, "has_hr": has_hr > 0, **{k: raw[k] for k in ("weight",) if k in raw}}


@dataclass(frozen=True, slots=True)
class Placed:
    """A batch of samples that live on a device."""

    _place: Place = field(repr=False)
    _step: int
    _rank: int
    _world: int

    @property
    def ids(self) -> list[str]:
        """The samples' ids."""
        return self._place.ids(self._step, self._rank, self._world)

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """As a batch's that was made on the CPU."""
        raw, unpack = self.parts(torch.device(device))
        return unpack(raw)

    def parts(self, device: torch.device) -> tuple[dict[str, Tensor], Place]:
        """(what is sent, what makes tensors of it there)."""
        return {k: sent(torch.from_numpy(v[0]), device) for k, v in self.ahead(1).items()}, self._place

    def ahead(self, count: int) -> dict[str, np.ndarray]:
        """What is sent of this batch and of those of the steps after it, each (count, ...)."""
        return self._place.ahead(self._step, count, self._rank, self._world)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
