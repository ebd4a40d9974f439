"""Which pictures of a batch are mixed, and how: a pure function of (seed, step, global batch), as the batch itself.

Sample i of a batch is mixed with sample pi(i), pi a keyed permutation of the global batch, another in each step; so
each is mixed in once, and labels keep their shares. What is drawn for a sample comes from its own counter. Boxes lie on
the grid of LR pixels, so that HR and LR views of a mixed picture show the same; lam is then what the box leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.order import epoch_keys, permute
from pipeline.losses.mixed import SHARE, partner
from pipeline.tasks.recognition.settings import Mixing

PICTURES = ("lr", "hr")
HALF = 2.0**32
"""How many values half of a random word has."""


@dataclass(frozen=True, slots=True)
class Mixed:
    """What is mixed into one worker's share of a batch."""

    tensors: dict[str, np.ndarray]
    """Of the partners, named and shaped as the share's own."""
    told: dict[str, np.ndarray]
    """As `lines` says."""


def partners(seed: int, samples: np.ndarray, batch: int) -> np.ndarray:
    """Numbers of the samples that are mixed into `samples` (n,) uint64, each of the same global batch, int64."""
    step, place = np.divmod(samples, np.uint64(batch))
    return (step * np.uint64(batch)).astype(np.int64) + permute(place, batch, epoch_keys(seed + 2, step))


def how(mixing: Mixing, words: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """From random words (4, n) uint64, of which the first is left to others:

    `share` (n,) float32, lam in [0, 1]; `outside` (n,) float32, the own picture's weight in each pixel outside the box,
    inside of which it is 0; `box` (n, 4) int64, top, bottom, left, right on a grid of (height, width).
    """
    _, first, second, third = words
    chosen, either = _unit(first)
    cut = either < 0.5 if mixing.mixup and mixing.cutmix else np.full(len(first), mixing.cutmix > 0)
    lam = np.where(cut, beta(mixing.cutmix or 1.0, second), beta(mixing.mixup or 1.0, second))
    lam[chosen >= mixing.share] = 1.0
    box = _box(np.where(cut, lam, 1.0), third, grid)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]) / (grid[0] * grid[1])
    return {
        "share": np.where(cut, 1 - area, lam).astype(np.float32),
        "outside": np.where(cut, 1.0, lam).astype(np.float32),
        "box": box,
    }


def lines(drawn: Mapping[str, np.ndarray], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Of what `how` says: `share` and `outside`, and which lines of the grid a box has, `rows` (n, height) and
    `columns` (n, width), float32 of 0 and 1.
    """
    found = {"share": drawn["share"], "outside": drawn["outside"]}
    for name, side, first in (("rows", grid[0], 0), ("columns", grid[1], 2)):
        begin, end = drawn["box"][:, first, None], drawn["box"][:, first + 1, None]
        at = np.arange(side)
        found[name] = ((at >= begin) & (at < end)).astype(np.float32)
    return found


def beta(a: float, words: np.ndarray) -> np.ndarray:
    """Beta(a, a), one for each random word (n,) uint64, in closed form, a > 0, so that each sample takes as many words.

    1/2 + S / (2 sqrt(1 + 1 / ((U^(-1/a) - 1) cos^2(2 pi V)))), S a random sign (Devroye, "Random variate generation in
    one line of code", 1996, section 3).
    """
    u, v = _unit(words)
    sign = np.where(words & np.uint64(1), 0.5, -0.5)
    with np.errstate(over="ignore", divide="ignore"):  # infinity is 0 or 1, which Beta of a small a nearly is
        spread = np.expm1(-np.log(u) / a) * np.cos(2 * np.pi * v) ** 2
        return 0.5 + sign / np.sqrt(1 + 1 / spread)


def _unit(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of words as numbers in (0, 1)."""
    high, low = words >> np.uint64(32), words & np.uint64(0xFFFFFFFF)
    return (high + 0.5) / HALF, (low + 0.5) / HALF


def _box(lam: np.ndarray, words: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(n, 4): of area 1 - lam, about a point drawn anywhere, and cut off at the borders (Yun et al., equation 2)."""
    edges = []
    for side, u in zip(grid, _unit(words), strict=True):
        long = np.floor(side * np.sqrt(1 - lam) + 0.5).astype(np.int64)
        begin = (u * side).astype(np.int64) - long // 2
        edges += [np.clip(begin, 0, side), np.clip(begin + long, 0, side)]
    return np.stack(edges, axis=1)


def mixed(
    own: Mapping[str, Tensor], other: Mapping[str, Tensor], told: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A batch's columns with those of its partners mixed in as `lines` tells: pictures pixel by pixel, labels and
    logits left as they are beside `partner/<column>` of the others, everything else by `share`.
    """
    share, found = told["share"], {SHARE: told["share"]}
    for name, x in own.items():
        if name in PICTURES:
            found[name] = torch.lerp(other[name], x, _weight(told, x))
        elif name == "label" or name.endswith("/logits"):
            found |= {name: x, partner(name): other[name]}
        else:
            found[name] = torch.lerp(other[name], x, share.view(-1, *[1] * (x.ndim - 1)))
    return found


def _weight(told: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The own picture's weight in each pixel of (b, 3, H, W): (b, 1, H, W)."""
    rows, columns = told["rows"][:, None, :, None], told["columns"][:, None, None, :]
    # Outside of a box it is 1, so what is left inside is 0; where there is no box nothing is taken off.
    weight = torch.addcmul(told["outside"].view(-1, 1, 1, 1), rows, columns, value=-1)
    b, _, height, width = weight.shape
    factor = x.shape[-1] // width
    if factor == 1:
        return weight
    larger = weight[:, :, :, None, :, None].expand(b, 1, height, factor, width, factor)
    return larger.reshape(b, 1, height * factor, width * factor)
