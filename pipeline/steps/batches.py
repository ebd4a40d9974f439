"""Batches that become smaller where a GPU has no memory for them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import FacultyError

HALVED = "halved_to"
"""The statistic that tells of it."""
SPARE = 1.25
"""Of a batch: how much larger it may be so that no small rest is left."""
_FITS: dict[str, int] = {}
"""By network: the batch that this process found to fit."""
_METER = threading.local()


@contextmanager
def metered(tell: Callable[[float], None]) -> Iterator[None]:
    """Have `tell(samples)` called after each batch of this thread, for as long as the context lasts."""
    _METER.tell = tell
    try:
        yield
    finally:
        del _METER.tell


class Halving:
    """Slices of `count` rows, `batch` at a time; half as many after each that did not fit, from there on.

        batches = Halving(name, batch, count)
        for rows in batches:
            with batches.tried():
                ...
            if batches.again:
                continue

    `name` is what the finding is remembered under in this process. `even`: all slices of about one size, up to `SPARE`
    times `batch`; a GPU takes almost as long for four rows as for thirty. `passes`: how many such a sample takes, for
    the meter.
    """

    def __init__(self, name: str, batch: int, count: int, even: bool = False, passes: int = 1) -> None:
        self.name, self.wanted, self.count, self.passes = name, batch, count, passes
        self.batch = min(_FITS.get(name, batch), batch)
        if even and self.batch == batch and count:
            self.batch = math.ceil(count / math.ceil(count / int(SPARE * batch)))
        self.again = False
        """Whether the last slice did not fit."""

    @property
    def said(self) -> dict[str, float]:
        """{`HALVED`: rows a batch} where there are fewer than wanted."""
        return {HALVED: float(self.batch)} if self.batch < self.wanted else {}

    def __iter__(self) -> Iterator[slice]:
        begin = 0
        while begin < self.count:
            rows = slice(begin, begin + self.batch)
            yield rows
            if not self.again:
                if tell := getattr(_METER, "tell", None):
                    tell((min(rows.stop, self.count) - begin) / self.passes)
                begin = rows.stop

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Raises FacultyError where even one row does not fit."""
        self.again = False
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self.batch == 1:
                raise FacultyError(
                    f"{self.name}: one sample does not fit into the GPU's memory ({error}). Take smaller ones "
                    "(data.tile, data.size), fewer networks on a GPU (teach.gpus_per_actor, a teacher's gpus), or 0 "
                    "there for the CPU."
                ) from None
            self.batch = _FITS[self.name] = self.batch // 2
            self.again = True
        if self.again and torch.cuda.is_available():
            torch.cuda.empty_cache()
