"""PSNR and SSIM as the super-resolution literature reports them.

The protocol: 8-bit pictures, luma of BT.601 in studio swing, `shave` pixels cut from each border (the scale
factor in published tables), averaged over pictures by the caller. A picture stored with one channel is taken as
it is, in full range, as the usual MATLAB code does (`if size(im, 3) > 1, rgb2ycbcr`): pass `grey=True`. Luma of
colours stays in floating point: MATLAB's rounding of it moves a picture by about 0.01 dB.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch

Picture: TypeAlias = "np.ndarray | torch.Tensor"

# Luma of 8-bit RGB, ITU-R BT.601 studio swing: 16 for black, 235 for white.
LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
LUMA_OFFSET = 16.0
# Full-range grey of an RGB prediction, BT.601: equal channels give their value.
GREY = np.array([0.299, 0.587, 0.114])
PROTOCOL = 2
"""2: pictures stored with one channel are measured as they are, no longer in studio swing."""

SSIM_SIDE = 11
SSIM_SIGMA = 1.5
SSIM_C1 = (0.01 * 255.0) ** 2
SSIM_C2 = (0.03 * 255.0) ** 2


def quantise(x: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) float in [0, 1] to (N, H, W, 3) uint8 on the same device, clamped and rounded."""
    return x.detach().float().mul(255.0).round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)


def to_y(picture: Picture, grey: bool = False) -> np.ndarray:
    """Luma, float64 in [16, 235], of (..., 3) uint8 RGB; with `grey` the grey levels 0..255, rounded."""
    if grey:
        return np.rint(_float64(picture) @ GREY)
    return _float64(picture) @ LUMA + LUMA_OFFSET


def psnr_y(prediction: Picture, target: Picture, shave: int = 0, grey: bool = False) -> float:
    """Peak signal to noise ratio in dB of the luma of two (H, W, 3) uint8 pictures, inf for equal ones."""
    return _psnr(_shave(to_y(prediction, grey), shave), _shave(to_y(target, grey), shave))


def psnr_rgb(prediction: Picture, target: Picture, shave: int = 0) -> float:
    """PSNR in dB over all three channels of two (H, W, 3) uint8 RGB pictures; about 2 dB below `psnr_y`."""
    return _psnr(_shave(_float64(prediction), shave), _shave(_float64(target), shave))


def ssim_y(prediction: Picture, target: Picture, shave: int = 0, grey: bool = False) -> float:
    """Structural similarity of the luma of two (H, W, 3) uint8 RGB pictures (Wang et al., TIP 2004).

    An 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, mean over the positions
    where the window lies inside the picture. Raises ValueError where fewer than 11 pixels a side are left
    after shaving.
    """
    x, y = _shave(to_y(prediction, grey), shave), _shave(to_y(target, grey), shave)
    if x.shape != y.shape:
        raise ValueError(f"pictures differ in size: {x.shape} and {y.shape}")
    if min(x.shape) < SSIM_SIDE:
        raise ValueError(f"SSIM needs {SSIM_SIDE} pixels a side, found {x.shape} after shaving {shave}")
    # The variances enter only as their sum, so four blurred maps do.
    mean_x, mean_y, squares, product = _blur(np.stack([x, y, x * x + y * y, x * y]))
    cross = mean_x * mean_y
    power = mean_x * mean_x + mean_y * mean_y
    structure = (2.0 * (product - cross) + SSIM_C2) / (squares - power + SSIM_C2)
    return float(np.mean((2.0 * cross + SSIM_C1) / (power + SSIM_C1) * structure))


def _float64(picture: Picture) -> np.ndarray:
    array = picture.detach().cpu().numpy() if isinstance(picture, torch.Tensor) else picture
    if array.dtype != np.uint8 or array.shape[-1] != 3:
        raise ValueError(f"expected uint8 RGB with channels last, found {array.dtype} {array.shape}")
    return array.astype(np.float64)


def _shave(x: np.ndarray, border: int) -> np.ndarray:
    return x[border : x.shape[0] - border, border : x.shape[1] - border]


def _psnr(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"expected two pictures of one size with pixels left, found {x.shape} and {y.shape}")
    error = float(np.mean((x - y) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(255.0**2 / error)


def _window() -> np.ndarray:
    offsets = np.arange(SSIM_SIDE) - SSIM_SIDE // 2
    weights = np.exp(-(offsets**2) / (2.0 * SSIM_SIGMA**2))
    return weights / weights.sum()


def _blur(maps: np.ndarray) -> np.ndarray:
    """Separable Gaussian of (n, H, W) over the valid area: (n, H - 10, W - 10)."""
    weights, half = _window(), SSIM_SIDE // 2
    for axis in (1, 2):
        size = maps.shape[axis] - SSIM_SIDE + 1
        taps = [_slice(maps, axis, i, size) for i in range(SSIM_SIDE)]
        total = taps[half] * weights[half]
        for i in range(half):  # symmetric: six products, not eleven
            pair = taps[i] + taps[-1 - i]
            pair *= weights[i]
            total += pair
        maps = total
    return maps


def _slice(x: np.ndarray, axis: int, start: int, size: int) -> np.ndarray:
    return x[(slice(None),) * axis + (slice(start, start + size),)]
