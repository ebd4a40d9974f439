"""How LR arises from an HR view, in exact integer arithmetic: the same on every machine, in every process.

`bicubic`     MATLAB's antialiased imresize (data/degrade.py), step by step above a gap of 4
`average`     the mean of gap x gap pixels, as a sensor with larger pixels sees it
`blur_noise`  a Gaussian of half a gap's deviation, every gap-th point, and noise of 8 grey levels: y = (k * x) down + n

Sums are of integers below 2^53, so their order does not matter, and are rounded half up once. Noise is binomial, the
number of ones among 256 random bits less 128: a normal distribution's shape, and integers. It follows from what names a
view, so that a view's LR picture is always the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import numpy as np

from pipeline.cache.order import words
from pipeline.tasks.recognition.settings import Degradation, Views
from pipeline.tasks.recognition.views import enlarge, shrink

BLUR = 0.5
"""Standard deviation of the Gaussian over the gap."""
REACH = 3
"""Standard deviations at which it ends."""
FINE = 4096
"""Its weights are multiples of 1 / FINE of the one at the middle."""
BITS = 256
"""Random bits a pixel: noise of standard deviation sqrt(BITS) / 2."""


def student_pictures(
    hr: np.ndarray,
    gap: int,
    enlarged: bool,
    kind: Degradation = "bicubic",
    names: Sequence[str] = (),
) -> np.ndarray:
    """What the student gets of HR pictures (n, H, W, 3) uint8: shrunk by the gap, and enlarged again where asked.

    `names` (n), as `noise_name` makes them, are what noise follows from.
    """
    lr = shrink(hr, gap) if kind == "bicubic" else _gathered(hr, gap, kind)
    if kind == "blur_noise":
        lr = np.clip(lr + _noise(names, lr.shape), 0, 255).astype(np.uint8)
    return enlarge(lr, gap) if enlarged else lr


def noise_name(views: Views, picture: str, number: int) -> str:
    """What the noise of a picture's view follows from."""
    return f"{views.seed}:{picture}:{number}:noise"


def _gathered(pictures: np.ndarray, gap: int, kind: str) -> np.ndarray:
    """(n, H, W, C) uint8 -> (n, H/gap, W/gap, C) uint8: each LR pixel a weighted mean of HR pixels."""
    down, along = (_weights(kind, gap, side) for side in pictures.shape[1:3])
    planes = pictures.transpose(0, 3, 1, 2).astype(np.float64)
    total = down @ planes @ along.T
    whole = down[0].sum() * along[0].sum()
    return np.floor(total / whole + 0.5).astype(np.uint8).transpose(0, 2, 3, 1)


@cache
def _weights(kind: str, gap: int, side: int) -> np.ndarray:
    """(side / gap, side) integers: what each HR line counts in each LR line; borders are mirrored."""
    middle = (gap - 1) / 2
    if kind == "average":
        lines, weights = np.arange(gap), np.ones(gap)
    else:
        reach = int(REACH * BLUR * gap)
        lines = np.arange(-reach, gap + reach)
        weights = np.floor(FINE * np.exp(-0.5 * ((lines - middle) / (BLUR * gap)) ** 2) + 0.5)
    found = np.zeros((side // gap, side))
    for row in range(side // gap):
        at = (lines + row * gap) % (2 * side)
        np.add.at(found[row], np.minimum(at, 2 * side - 1 - at), weights)
    return found


def _noise(names: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """int64 of this shape (n, ...), from n names."""
    count, noise = int(np.prod(shape[1:])), np.empty(shape, np.int64)
    for n, name in enumerate(names):
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        ones = np.bitwise_count(words(seed, 0, count)).sum(0, dtype=np.int64)
        noise[n] = (ones - BITS // 2).reshape(shape[1:])
    return noise
