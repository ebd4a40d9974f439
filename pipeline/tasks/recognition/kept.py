"""The student's pictures, kept once they are made."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

KEPT_BYTES = 256 * 2**20
"""Of the student's pictures that a sampler keeps once they are made."""


class Kept:
    """Pictures that stay once they are made, as many as KEPT_BYTES hold: views are few, and drawn again and again."""

    def __init__(self, rows: int) -> None:
        self._slot = np.full(rows, -1, np.int64)
        self._pictures = np.empty(0, np.uint8)
        self.count = 0

    def of(self, rows: np.ndarray, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Pictures (n, ...) of these rows (n,), those that are not there from `make`."""
        slots = self._slot[rows]
        if (slots >= 0).all():
            return self._pictures[slots]
        known = slots >= 0
        missing, place = np.unique(rows[~known], return_inverse=True)
        made = make(missing)
        if not self.count:  # memory is taken as it is written to
            room = min(len(self._slot), KEPT_BYTES // made[0].nbytes)
            self._pictures = np.empty((room, *made.shape[1:]), np.uint8)
        result = np.empty((len(rows), *made.shape[1:]), np.uint8)
        result[known], result[~known] = self._pictures[slots[known]], made[place]
        end = min(self.count + len(missing), len(self._pictures))
        self._pictures[self.count : end] = made[: end - self.count]
        self._slot[missing[: end - self.count]] = np.arange(self.count, end)
        self.count = end
        return result
