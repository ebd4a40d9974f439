"""Pieces that several students share: the mean shift, interpolation skips, upsamplers and their starting weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

Positive = Annotated[int, Field(ge=1)]
Skip = Literal["nearest", "bilinear", "bicubic"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of DIV2K in [0, 1], as EDSR, RCAN and SwinIR subtract it."""


def interpolate(x: Tensor, scale: int, kind: Skip) -> Tensor:
    """Enlarge `x` (B, C, h, w) to (B, C, scale*h, scale*w).

    Pixel centres as in MATLAB's `imresize`. `bicubic` uses the kernel with a = -0.5 (PyTorch's plain bicubic has
    a = -0.75, its antialiased one -0.5; enlarging needs no antialiasing, so only the kernel differs).
    """
    if kind == "nearest":
        return F.interpolate(x, scale_factor=scale, mode="nearest")
    size = (x.shape[-2] * scale, x.shape[-1] * scale)
    return F.interpolate(x, size=size, mode=kind, align_corners=False, antialias=kind == "bicubic")


class MeanShift(nn.Module):
    """[0, 1] RGB to zero-mean values in `+-value_range`, and back with `undo`. Holds no parameters."""

    def __init__(self, value_range: float = 255.0) -> None:
        super().__init__()
        self.value_range = value_range
        mean = value_range * torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value_range - self.mean

    def undo(self, x: Tensor) -> Tensor:
        return (x + self.mean) / self.value_range


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def upsampler(scale: int, features: int) -> nn.Sequential:
    """Convolution + pixel shuffle, twice x2 for x4: (B, features, h, w) -> (B, features, scale*h, scale*w)."""
    stages = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
    layers: list[nn.Module] = []
    for stage in stages:
        layers += [conv3(features, features * stage**2), nn.PixelShuffle(stage)]
    return nn.Sequential(*layers)


def pixel_shuffle_head(features: int, channels: int, scale: int) -> nn.Sequential:
    """One convolution and one pixel shuffle: (B, features, h, w) -> (B, channels, scale*h, scale*w)."""
    return nn.Sequential(conv3(features, channels * scale**2), nn.PixelShuffle(scale))


@torch.no_grad()
def start_small(layer: nn.Module, std: float = 1e-3) -> None:
    """Zero bias and weights N(0, std): the layer starts by adding almost nothing (FSRCNN, section 3.2)."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
