"""Importance sampling in whole numbers: how many places each tile has in an epoch, and what a sample of it weighs.

Tiles with more to learn are drawn more often, with weights that keep the expected gradient that of uniform sampling
(Zhao and Zhang, "Stochastic optimization with importance sampling for regularized loss minimization", ICML 2015).
Theirs is p_i proportional to a bound on the gradient's norm; ours to a tile's gain, bounded on both sides.

An epoch is a permutation of a list in which tile i stands slots_i times. So p_i = slots_i / S with S = sum_i slots_i,
counts are exact in each epoch, and so is the mean of the weights over it:

    w_i = 1 / (N p_i) = S / (N slots_i),   sum_i slots_i w_i / S = 1
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.errors import InputError

LEAST, MOST = 0.5, 3.0
"""Bounds of a tile's p_i over that of a tile of mean gain: none is forgotten, and no weight is above MOST / LEAST."""
UNIT = 4
"""Slots of a tile of mean gain: p_i is rounded to multiples of a quarter of its own."""


def slots_of(gains: np.ndarray) -> np.ndarray:
    """Return (n,) int64 slots >= 1, proportional to clip(gain / mean gain, LEAST, MOST) rounded to 1 / UNIT, without
    their common divisor: gains that are all alike, zero included, give one slot each.

    `gains` (n,) are finite and not negative, n > 0; their order does not matter. Raises InputError for others.
    """
    if not (np.isfinite(gains).all() and (gains >= 0).all()):
        raise InputError("gains of tiles", "finite numbers of at least 0", str(gains.min()))
    mean = math.fsum(gains.tolist()) / len(gains)  # exact, so that it is the same on every machine
    ratio = gains / mean if mean > 0 else np.ones(len(gains))
    slots = np.rint(UNIT * np.clip(ratio, LEAST, MOST)).astype(np.int64)
    return slots // np.gcd.reduce(slots)


def weights_of(slots: np.ndarray) -> np.ndarray:
    """Return (n,) float32 importance weights of tiles with these slots; their mean over an epoch is 1."""
    return (slots.sum() / (len(slots) * slots)).astype(np.float32)
