"""Views that live on a GPU: each is made once, when it is first drawn, and batches say only which they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.placed import Place, pictures, sent
from pipeline.tasks.recognition.mixing import PICTURES, mixed

if TYPE_CHECKING:
    from pipeline.tasks.recognition.sampler import ViewSampler


def as_read(name: str, x: Tensor) -> Tensor:
    """A column as losses read it."""
    if name in PICTURES:
        return pictures(x)
    return x.float() if x.is_floating_point() else x.long()


class ResidentViews(Place):
    """A sampler's columns on a device, a row for each view of each picture and degradation."""

    def __init__(self, sampler: ViewSampler, device: torch.device) -> None:
        self.sampler, self.device = sampler, device
        rows = len(sampler.gallery) * sampler.variants
        self._known = np.zeros(rows, bool)
        self.columns = {
            name: torch.zeros((rows, *x.shape[1:]), dtype=torch.from_numpy(x).dtype, device=device)
            for name, x in sampler.example().items()
        }

    def ids(self, step: int, rank: int, world: int) -> list[str]:
        """The pictures' ids."""
        return [self.sampler.gallery.ids[n] for n in self.sampler.where(step, rank, world)[0]]

    def ahead(self, step: int, count: int, rank: int, world: int) -> dict[str, np.ndarray]:
        """{"row": (count, b) int64}; these rows are there then. Where pictures are mixed also "partner", the rows that
        are mixed in, and how (`mixing.lines`), each (count, b, ...).
        """
        rows = {"row": self._rows(*self.sampler.where(step, rank, world, count))}
        if self.sampler.mixing is not None:
            *others, told = self.sampler.partners(step, rank, world, count)
            rows |= {"partner": self._rows(*others), **told}
        return {name: x.reshape(count, -1, *x.shape[1:]) for name, x in rows.items()}

    def _rows(self, numbers: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Of these views; what is not there is made."""
        variants = self.sampler.variants
        rows = numbers.astype(np.int64) * variants + chosen
        missing = np.unique(rows[~self._known[rows]])
        if len(missing):
            made = self.sampler.read(*np.divmod(missing, variants))
            to = sent(torch.from_numpy(missing), self.device)
            for name, x in made.items():
                self.columns[name].index_copy_(0, to, sent(torch.from_numpy(x), self.device))
            self._known[missing] = True
        return rows

    def __call__(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The columns of {"row": (b,)}, mixed with those of {"partner": (b,)} where there are any."""
        own = self._at(raw["row"])
        return mixed(own, self._at(raw["partner"]), raw) if "partner" in raw else own

    def _at(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: as_read(name, x.index_select(0, rows)) for name, x in self.columns.items()}
