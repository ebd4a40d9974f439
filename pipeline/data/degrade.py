"""The resolution gap: MATLAB's antialiased bicubic `imresize`, in exact integer arithmetic.

The cubic kernel (Keys, "Cubic convolution interpolation", 1981, a = -1/2) is a polynomial with rational coefficients
and is only met at multiples of 1/(2 scale), so every weight is an integer over a common denominator and every sum of
8-bit values is an integer below 2**24. Float32 holds those exactly: results do not depend on the order of summation,
the number of threads or the device, and equal MATLAB's bit for bit.

As in MATLAB, borders are mirrored about their edge, rows are resized before columns, and each of the two passes rounds
half up to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import gcd

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError

SCALES = (2, 3, 4)


def modcrop(x: np.ndarray, scale: int) -> np.ndarray:
    """Return HWC `x` without the bottom rows and right columns that exceed a multiple of `scale` (a view)."""
    return x[: x.shape[0] // scale * scale, : x.shape[1] // scale * scale]


def downscale(x: np.ndarray, scale: int) -> np.ndarray:
    """Shrink an HWC uint8 picture whose sides are multiples of `scale`: (H, W, C) -> (H/scale, W/scale, C).

    Raises ValueError for other sides or another dtype.
    """
    return _on_tensor(downscale_tensor, x, scale)


def upscale(x: np.ndarray, scale: int) -> np.ndarray:
    """Enlarge an HWC uint8 picture: (H, W, C) -> (H*scale, W*scale, C)."""
    return _on_tensor(upscale_tensor, x, scale)


def downscale_tensor(x: Tensor, scale: int) -> Tensor:
    """Shrink uint8 pictures (N, C, H, W) of any memory format and device; the bits of `downscale`."""
    plan = _plan(scale, shrink=True)
    if x.shape[-2] % scale or x.shape[-1] % scale:
        raise ValueError(f"downscale needs sides that are multiples of {scale}, not {tuple(x.shape[-2:])}")
    return _resize(_resize(x, 2, plan), 3, plan)


def upscale_tensor(x: Tensor, scale: int) -> Tensor:
    """Enlarge uint8 pictures (N, C, H, W) of any memory format and device; the bits of `upscale`."""
    plan = _plan(scale, shrink=False)
    return _resize(_resize(x, 2, plan), 3, plan)


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
    """Output `i * phases + r` of a pass is the sum of weight * input[i * stride + offset] over the taps of phase r."""

    phases: tuple[tuple[tuple[int, int], ...], ...]
    """For each phase, its (offset, weight) pairs."""
    stride: int
    denominator: int


@cache
def _plan(scale: int, shrink: bool) -> _Plan:
    if scale not in SCALES:
        raise InputError("scale", "2, 3 or 4", repr(scale))
    s = scale
    if shrink:  # output i has its centre at input s*i + (s-1)/2 and a kernel stretched by s: weights sum to 16 s^4
        phases = [[(p, _kernel(2 * p + 1 - s, s)) for p in range(-2 * s, 3 * s)]]
    else:  # output s*i + r has its centre at input i + (2r+1-s)/(2s): weights sum to 16 s^3
        phases = [[(p, _kernel(2 * r + 1 - s - 2 * s * p, s)) for p in range(-2, 4)] for r in range(s)]
    phases = [[(p, weight) for p, weight in taps if weight] for taps in phases]
    common = gcd(*(weight for taps in phases for _, weight in taps))
    denominator = 16 * s**3 * (s if shrink else 1) // common
    return _Plan(tuple(tuple((p, w // common) for p, w in taps) for taps in phases), s if shrink else 1, denominator)


def _kernel(n: int, scale: int) -> int:
    """The cubic kernel at n / (2 scale), times 16 scale^3: an integer."""
    n, s = abs(n), scale
    if n <= 2 * s:
        return 3 * n**3 - 10 * s * n**2 + 16 * s**3
    return -(n**3) + 10 * s * n**2 - 32 * s**2 * n + 32 * s**3 if n < 4 * s else 0


def _resize(x: Tensor, dim: int, plan: _Plan) -> Tensor:
    """One pass along `dim`, uint8 to uint8."""
    count = x.shape[dim] // plan.stride
    span = (count - 1) * plan.stride + 1
    offsets = [offset for taps in plan.phases for offset, _ in taps]
    if x.dtype != torch.uint8:
        raise ValueError(f"bicubic resizing takes uint8, not {x.dtype}")
    index = torch.arange(min(offsets), max(offsets) + span, device=x.device) % (2 * x.shape[dim])
    mirrored = torch.minimum(index, 2 * x.shape[dim] - 1 - index)
    padded = x.index_select(dim, mirrored).float()
    phases = []
    for taps in plan.phases:
        total = torch.full((), plan.denominator // 2, dtype=torch.float32, device=x.device)
        for offset, weight in taps:
            part = padded.narrow(dim, offset - min(offsets), span)
            part = part[(slice(None),) * dim + (slice(None, None, plan.stride),)]
            total = torch.add(total, part, alpha=weight) if total.ndim == 0 else total.add_(part, alpha=weight)
        phases.append(total.div_(plan.denominator).floor_().clamp_(0, 255).to(torch.uint8))
    return torch.stack(phases, dim + 1).flatten(dim, dim + 1) if len(phases) > 1 else phases[0]


def _on_tensor(resize: Callable[[Tensor, int], Tensor], x: np.ndarray, scale: int) -> np.ndarray:
    planes = torch.from_numpy(np.array(x.transpose(2, 0, 1), order="C"))
    return resize(planes[None], scale)[0].permute(1, 2, 0).contiguous().numpy()
