"""Fusion with least-squares weights of their own for each kind of region and each band of detail.

Teachers differ in what they are good at: one keeps flat areas quiet, another draws edges. A pixel is flat, of an edge
or of texture, by the structure tensor J of the teachers' mean (luma, smoothed): flat where sqrt(trace J) is small, an
edge where J has one direction, (l1 - l2) / (l1 + l2) > 1/2, texture else. Each output is split into details of rising
size and a rest by the a trous transform (B3 spline, no decimation, so a sum of all gives the output back), and

    target = M + sum_k,b w[region, k, b] B_b(T_k) + offset[region],   M the teachers' mean,

with w fitted to HR - M over the training tiles, a small ridge towards the mean where a region has few pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.errors import InputError

Outputs = Sequence[np.ndarray]

REGIONS = ("flat", "edge", "texture")
FLAT = 4.0
"""Grey levels a pixel, of sqrt(trace J), below which a place is flat."""
RIDGE = 1e-3
"""Of the sum of squared weights, in squared grey levels a pixel."""
MIDDLE = 127.5
"""The rest is taken around the middle grey, which keeps the equations well conditioned."""
_SPLINE = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Regional:
    """Fitted weights."""

    levels: int
    """Bands of detail that have weights of their own; 0 for none."""
    values: tuple[tuple[float, ...], ...]
    """For each region, of each teacher in order: a weight for each band from the finest on and one for the rest; the
    last is an offset in grey levels."""


@dataclass(slots=True)
class RegionalFit:
    """The sums of the normal equations of each region; `add` batches in any order, then `solve`."""

    teachers: int
    levels: int
    moments: np.ndarray = field(init=False)
    """(3, F + 2, F + 2) sums of products of (F = teachers x (levels + 1) bands, 1, HR - mean)."""

    def __post_init__(self) -> None:
        side = self.teachers * (self.levels + 1) + 2
        self.moments = np.zeros((len(REGIONS), side, side))

    def add(self, outputs: Outputs, hr: np.ndarray) -> None:
        """Counts a batch: teachers' outputs and HR, (N, H, W, 3) uint8 each."""
        _check([*outputs, hr], self.teachers + 1)
        for tile in range(len(hr)):  # one at a time: float64 copies of a whole shard would be large
            planes = [_planes(x[tile : tile + 1]) for x in outputs]
            mean = torch.stack(planes).mean(0)
            kinds = regions(mean)[0].flatten()
            rows = torch.stack([*_bands(planes, self.levels), _planes(hr[tile : tile + 1]) - mean])
            for kind in range(len(REGIONS)):
                chosen = rows.flatten(3)[..., kinds == kind].flatten(1).double().numpy()
                values = np.insert(chosen, len(chosen) - 1, 1.0, axis=0)
                self.moments[kind] += values @ values.T

    def solve(self) -> Regional:
        """The weights of least squared error. Raises InputError before any tile was counted."""
        if not self.moments[:, -2, -2].any():
            raise InputError("fusion regions", "training tiles with HR to fit weights on", "none")
        found = []
        for moments in self.moments:
            pixels = max(moments[-2, -2], 1.0)
            gram, cross = moments[:-1, :-1] / pixels, moments[:-1, -1] / pixels
            found.append(tuple(map(float, np.linalg.solve(gram + RIDGE * np.eye(len(gram)), cross))))
        return Regional(self.levels, tuple(found))


def fuse_regions(outputs: Outputs, hr: np.ndarray | None = None, *, weights: Regional) -> np.ndarray:
    """The teachers by their region's weights, (N, H, W, 3) uint8.

    Raises InputError where the weights belong to another number of teachers.
    """
    _check(outputs, (len(weights.values[0]) - 1) // (weights.levels + 1))
    table = torch.tensor(weights.values, dtype=torch.float32)
    fused = []
    for tile in range(len(outputs[0])):
        planes = [_planes(x[tile : tile + 1]) for x in outputs]
        mean = torch.stack(planes).mean(0)
        kinds = regions(mean)
        total = mean + table[:, -1][kinds][:, None]
        for number, band in enumerate(_bands(planes, weights.levels)):
            total += table[:, number][kinds][:, None] * band
        fused.append((total + 0.5).floor().clamp(0, 255).byte())
    return torch.cat(fused).permute(0, 2, 3, 1).contiguous().numpy()


def regions(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) grey levels -> (N, H, W) int64: 0 flat, 1 edge, 2 texture."""
    luma = (pictures * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    wide = _mirrored(luma, 1)
    down = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]) / 2
    right = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]) / 2
    dd, rr, dr = (_smooth(x, 1)[:, 0] for x in (down * down, right * right, down * right))
    trace = dd + rr
    one_way = ((dd - rr).square() + 4 * dr.square()).sqrt() > trace / 2
    return torch.where(trace < FLAT**2, 0, torch.where(one_way, 1, 2))


def _planes(pictures: np.ndarray) -> Tensor:
    """A copy as (N, 3, H, W) float32: what comes from a cache is read-only."""
    return torch.tensor(pictures).permute(0, 3, 1, 2).float()


def _bands(planes: Sequence[Tensor], levels: int) -> list[Tensor]:
    """Of each teacher: its details from the finest on, and the rest around the middle grey."""
    found = []
    for rest in planes:
        for level in range(levels):
            smooth = _smooth(rest, 2**level)
            found.append(rest - smooth)
            rest = smooth
        found.append(rest - MIDDLE)
    return found


def _smooth(x: Tensor, step: int) -> Tensor:
    """(N, C, H, W) under the B3 spline with its taps `step` pixels apart, borders mirrored."""
    channels, margin = x.shape[1], 2 * step
    kernel = _SPLINE.expand(channels, 1, 5)
    x = F.conv2d(_mirrored(x, margin), kernel[..., None], dilation=(step, 1), groups=channels)
    return F.conv2d(x, kernel[:, :, None], dilation=(1, step), groups=channels)


def _mirrored(x: Tensor, margin: int) -> Tensor:
    """Half-sample mirrored borders, of pictures of any size."""
    for dim in (-2, -1):
        side = x.shape[dim]
        index = torch.arange(-margin, side + margin) % (2 * side)
        x = x.index_select(dim, torch.minimum(index, 2 * side - 1 - index))
    return x


def _check(arrays: Outputs, count: int) -> None:
    shapes = {x.shape for x in arrays}
    if len(arrays) != count or len(shapes) > 1 or any(x.dtype != np.uint8 for x in arrays):
        found = ", ".join(f"{x.dtype} {x.shape}" for x in arrays) or "none"
        raise InputError(
            "fusion regions", f"{count} uint8 arrays of one shape (tiles, height, width, 3)", found
        )
