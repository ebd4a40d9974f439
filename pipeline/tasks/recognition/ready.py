"""Batches whose tensors are made by the thread that reads ahead, several steps in one go.

A step of a small student takes a few milliseconds on a CPU, of which a tenth went into what is small but counts by
call: indexing, conversions, mixing. Interpreter time of one thread delays the other, so what helps is fewer calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.cache.order import read_ahead

if TYPE_CHECKING:
    from pipeline.tasks.recognition.sampler import ViewBatch, ViewSampler

STEPS = 8
"""Steps that are read in one go, at most."""
BYTES = 2**23
"""Of what is read for them: larger pictures take fewer steps."""
SINGLE = 2**15
"""Numbers of a tensor up to which PyTorch's operations use one thread: reading takes no cores from the training's."""


@dataclass(frozen=True, slots=True)
class ReadyBatch:
    """One worker's share of a batch, as losses read it."""

    tensors: dict[str, Tensor]
    ids: list[str]
    """Of its samples."""

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """As `ViewBatch.to` gives them."""
        return {name: x.to(device) for name, x in self.tensors.items()}


class ReadyViews:
    """A sampler's batches for a training on a CPU: the tensors that `batch(step).to("cpu")` has, bit for bit."""

    def __init__(self, sampler: ViewSampler) -> None:
        self.sampler = sampler
        each = sum(x.nbytes for x in sampler.example().values()) * (2 if sampler.mixing else 1)
        self.steps = max(1, min(STEPS, BYTES // (each * sampler.size)))
        largest = max(x.size for x in sampler.example().values())
        self.together = max(1, SINGLE // (largest * sampler.size))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> ViewBatch:
        """One worker's share of a batch. Raises InputError if the batch does not divide by `world`."""
        return self.sampler.batch(step, rank, world)

    def iterate(
        self, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[int, ReadyBatch]]:
        """(step, share) for the steps of [start, stop) while one thread prepares the next ones."""

        def read(part: int, rank: int, world: int) -> list[ReadyBatch]:
            first = max(part * self.steps, start)
            steps = min((part + 1) * self.steps, stop) - first
            found, size = [], self.sampler.size // world
            for batch in self.sampler.read_steps(first, steps, rank, world).split(size * self.together):
                tensors = batch.to("cpu")
                for begin in range(0, len(batch.ids), size):
                    own = {name: x[begin : begin + size] for name, x in tensors.items()}
                    found.append(ReadyBatch(own, batch.ids[begin : begin + size]))
            return found

        parts = range(start // self.steps, -(-stop // self.steps)) if start < stop else range(0)
        for part, batches in read_ahead(read, parts.start, parts.stop, rank, world):
            yield from enumerate(batches, max(part * self.steps, start))
