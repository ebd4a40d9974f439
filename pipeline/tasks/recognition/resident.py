"""Views that live on a GPU: each is made once, when it is first drawn, and batches say only which they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.placed import MOST, Placed, pictures, sent

if TYPE_CHECKING:
    from pipeline.tasks.recognition.sampler import ViewSampler

PICTURES = ("lr", "hr")


def as_read(name: str, x: Tensor) -> Tensor:
    """A column as losses read it."""
    if name in PICTURES:
        return pictures(x)
    return x.float() if x.is_floating_point() else x.long()


class ResidentViews:
    """A sampler's columns on a device, a row for each view of each picture."""

    def __init__(self, sampler: ViewSampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        rows = len(sampler.gallery) * sampler.views.count
        self._known = np.zeros(rows, bool)
        self.columns = {
            name: torch.zeros((rows, *x.shape[1:]), dtype=torch.from_numpy(x).dtype, device=device)
            for name, x in _one(sampler).items()
        }

    @staticmethod
    def fits(sampler: ViewSampler, device: torch.device) -> bool:
        """Whether all views take at most `MOST` of the device's free memory."""
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        each = sum(x.nbytes for x in _one(sampler).values())
        return len(sampler.gallery) * sampler.views.count * each <= MOST * free

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Placed:
        """As the sampler's."""
        return Placed(self, step, rank, world)

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Placed]]:
        """As the sampler's; nothing is read ahead but by who asks for several steps at once."""
        for step in range(start, stop):
            yield step, self.batch(step, rank, world)

    def ids(self, step: int, rank: int, world: int) -> list[str]:
        """The pictures' ids."""
        return [self.sampler.gallery.ids[n] for n in self.sampler.where(step, rank, world)[0]]

    def ahead(self, step: int, count: int, rank: int, world: int) -> dict[str, np.ndarray]:
        """{"row": (count, b) int64}; these rows are there then."""
        views = self.sampler.views.count
        if world == 1:
            drawn = [self.sampler.where(step, steps=count)]
        else:
            drawn = [self.sampler.where(n, rank, world) for n in range(step, step + count)]
        numbers, chosen = (np.concatenate(x).astype(np.int64) for x in zip(*drawn, strict=True))
        rows = (numbers * views + chosen).reshape(count, -1)
        missing = np.unique(rows[~self._known[rows]])
        if len(missing):
            made = self.sampler.read(*np.divmod(missing, views))
            to = sent(torch.from_numpy(missing), self.device)
            for name, x in made.items():
                self.columns[name].index_copy_(0, to, sent(torch.from_numpy(x), self.device))
            self._known[missing] = True
        return {"row": rows}

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of {"row": (b,)}."""
        return {name: as_read(name, x.index_select(0, raw["row"])) for name, x in self.columns.items()}


def _one(sampler: ViewSampler) -> dict[str, np.ndarray]:
    return sampler.read(np.zeros(1, np.int64), np.zeros(1, np.int64))
