"""The resolution gap: MATLAB's antialiased bicubic `imresize`, in exact integer arithmetic.

The cubic kernel (Keys, "Cubic convolution interpolation", 1981, a = -1/2) is a polynomial with rational
coefficients and is only met at multiples of 1/(2 scale), so every weight is an integer over a common
denominator and every sum of 8-bit values is an integer below 2**24. Float32 holds those exactly: results do
not depend on the order of summation, the number of threads or the device, and equal MATLAB's bit for bit.

As in MATLAB, borders are mirrored about their edge, rows are resized before columns, and each of the two
passes rounds half up to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError

SCALES = (1, 2, 3, 4)
Pictures = TypeVar("Pictures", np.ndarray, Tensor)


def modcrop(x: np.ndarray, scale: int) -> np.ndarray:
    """Return HWC `x` without the bottom rows and right columns that exceed a multiple of `scale` (a view)."""
    return x[: x.shape[0] // scale * scale, : x.shape[1] // scale * scale]


def downscale(x: np.ndarray, scale: int) -> np.ndarray:
    """Shrink an HWC uint8 picture whose sides are multiples of `scale`: (H, W, C) -> (H/scale, W/scale, C).

    Raises ValueError for other sides or another dtype.
    """
    return _planar(downscale_tensor, x, scale)


def upscale(x: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge an HWC uint8 picture: (H, W, C) -> (H*scale, W*scale, C). Raises ValueError for another dtype."""
    return _planar(upscale_tensor, x, scale)


def downscale_tensor(x: Pictures, scale: int) -> Pictures:
    """Shrink uint8 pictures (..., H, W), a tensor on any device or an array, to the bits of `downscale`."""
    plan = _plan(scale, shrink=True)
    if x.shape[-2] % scale or x.shape[-1] % scale:
        raise ValueError(f"downscale needs sides that are multiples of {scale}, not {tuple(x.shape[-2:])}")
    return _resize(_resize(x, -2, plan), -1, plan)


def upscale_tensor(x: Pictures, scale: int) -> Pictures:
    """Enlarge uint8 pictures (..., H, W), a tensor on any device or an array, to the bits of `upscale`."""
    plan = _plan(scale, shrink=False)
    return _resize(_resize(x, -2, plan), -1, plan)


DEGRADATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"bicubic": downscale}
"""Name -> function that makes the LR picture of a mod-cropped HR picture."""


def degrade(hr: np.ndarray, kind: str, scale: int) -> np.ndarray:
    """Return the LR picture of an HWC uint8 picture whose sides are multiples of `scale`.

    Raises InputError for a degradation that is not in `DEGRADATIONS`.
    """
    if kind not in DEGRADATIONS:
        raise InputError("degradation", f"one of {', '.join(sorted(DEGRADATIONS))}", repr(kind))
    return DEGRADATIONS[kind](hr, scale)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One pass: output i * len(phases) + r is the sum of weight * input[i * stride + offset] / denominator
    over the taps of phase r.
    """

    phases: list[list[tuple[int, int]]]
    """For each phase, its taps: (offset, weight)."""
    stride: int
    denominator: int


@cache
def _plan(scale: int, shrink: bool) -> _Plan:
    if scale not in SCALES:
        raise InputError("scale", "1, 2, 3 or 4", repr(scale))
    s = scale
    if (
        shrink
    ):  # output i lies at input s i + (s-1)/2; the kernel is stretched by s, its weights sum to 16 s^4
        stride, total = s, 16 * s**4
        phases = [[(p, _kernel(2 * p + 1 - s, s)) for p in range(-2 * s, 3 * s)]]
    else:  # output s i + r lies at input i + (2r+1-s)/(2s); weights sum to 16 s^3
        stride, total = 1, 16 * s**3
        phases = [[(p, _kernel(2 * r + 1 - s - 2 * s * p, s)) for p in range(-2, 4)] for r in range(s)]
    common = gcd(*(weight for taps in phases for _, weight in taps))
    used = [[(p, weight // common) for p, weight in taps if weight] for taps in phases]
    return _Plan(used, stride, total // common)


def _kernel(n: int, scale: int) -> int:
    """The cubic kernel at n / (2 scale), times 16 scale^3: an integer."""
    n, s = abs(n), scale
    if n <= 2 * s:
        return 3 * n**3 - 10 * s * n**2 + 16 * s**3
    return -(n**3) + 10 * s * n**2 - 32 * s**2 * n + 32 * s**3 if n < 4 * s else 0


def _resize(x: Pictures, dim: int, plan: _Plan) -> Pictures:
    """One pass over dimension -2 or -1 of a uint8 array or tensor (..., H, W); the same code serves both."""
    xp = np if isinstance(x, np.ndarray) else torch
    if x.dtype != xp.uint8:
        raise ValueError(f"bicubic resizing takes uint8, not {x.dtype}")
    tail: Any = (slice(None),) * (-1 - dim)
    span = (x.shape[dim] // plan.stride - 1) * plan.stride + 1
    offsets = [offset for taps in plan.phases for offset, _ in taps]
    first = min(offsets)
    index = np.arange(first, max(offsets) + span) % (2 * x.shape[dim])
    mirrored = np.minimum(index, 2 * x.shape[dim] - 1 - index)
    padded = xp.asarray(x[(..., mirrored, *tail)], dtype=xp.float32)
    phases = []
    for taps in plan.phases:
        total: Any = plan.denominator // 2
        for offset, weight in taps:
            part = padded[(..., slice(offset - first, offset - first + span, plan.stride), *tail)] * weight
            part += total
            total = part
        total /= plan.denominator
        phases.append(xp.asarray(xp.clip(xp.floor(total), 0, 255), dtype=xp.uint8))
    shape = list(x.shape)
    shape[dim] = shape[dim] // plan.stride * len(phases)
    return xp.stack(phases, dim).reshape(shape)


def _planar(resize: Callable[[Any, int], Any], x: np.ndarray, scale: int) -> np.ndarray:
    """Apply `resize` to an HWC picture as planes: long rows vectorise, runs of three channels do not."""
    return np.ascontiguousarray(resize(np.ascontiguousarray(x.transpose(2, 0, 1)), scale).transpose(1, 2, 0))
