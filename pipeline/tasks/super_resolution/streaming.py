"""A shard through a network on a GPU without waiting for any of its batches.

Copying, the forward pass, rounding, the error and copying back follow one another on the device; the host only queues
them, and waits once, at the shard's end. What comes out is what the CPU's way gives of the same forward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.placed import pictures as as_pictures
from pipeline.errors import FacultyError
from pipeline.metrics import LUMA
from pipeline.steps.batches import Halving


def through(
    network: Callable[[Tensor], Tensor],
    lr: np.ndarray,
    hr: np.ndarray | None,
    scale: int,
    dtype: torch.dtype,
    batches: Halving,
    device: torch.device,
) -> tuple[np.ndarray, float, int]:
    """(pictures (n, H, W, 3) as they are stored, sum of squared luma errors in levels^2, pixels of these).

    `lr` (n, h, w, 3) uint8, `hr` the same at `scale` times the size. Raises FacultyError for a size or a value that is
    wrong.
    """
    wanted = (len(lr), lr.shape[1] * scale, lr.shape[2] * scale, 3)
    pinned = device.type == "cuda"
    out = torch.empty(wanted, dtype=dtype, pin_memory=pinned)
    error = torch.zeros((), dtype=torch.float64, device=device)
    good = torch.ones((), dtype=torch.bool, device=device)
    weights = torch.tensor(LUMA, dtype=torch.float32, device=device)
    pixels = 0
    for rows in batches:
        with batches.tried():
            sr = network(as_pictures(_sent(lr[rows], device)))
            if tuple(sr.shape) != (len(lr[rows]), 3, *wanted[1:3]):
                raise FacultyError(f"an output of shape {tuple(sr.shape)} instead of {wanted}")
            good &= torch.isfinite(sr).all()
            stored = _stored(sr.permute(0, 2, 3, 1), dtype)
            off = None if hr is None else _off(stored, _sent(hr[rows], device), scale, weights)
        if batches.again:
            continue
        out[rows].copy_(stored, non_blocking=True)
        if off is not None:
            error += off.square().sum(dtype=torch.float64)
            pixels += off.numel()
    if pinned:
        torch.cuda.current_stream(device).synchronize()
    if not bool(good):
        raise FacultyError("an output that is not finite; precision: fp32 may help")
    return out.numpy(), float(error), pixels


def _sent(pictures: np.ndarray, device: torch.device) -> Tensor:
    x = torch.empty(pictures.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    np.copyto(x.numpy(), pictures)
    return x.to(device, non_blocking=True)


def _stored(sr_NHWC: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        return sr_NHWC.mul(255).round().clamp(0, 255).to(torch.uint8).contiguous()
    return sr_NHWC.to(dtype).contiguous()


def _off(stored: Tensor, hr: Tensor, shave: int, weights: Tensor) -> Tensor:
    """Differences of luma in grey levels, `shave` pixels cut; the luma's offset falls out."""
    inner = (slice(None), slice(shave, -shave), slice(shave, -shave))
    return (_levels(stored[inner]) - _levels(hr[inner])) @ weights


def _levels(stored: Tensor) -> Tensor:
    return stored.float() if stored.dtype == torch.uint8 else (stored.float() * 255).round().clamp(0, 255)
