"""Pieces that several students share: the mean shift, interpolation skips, upsamplers and their starting weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

Positive = Annotated[int, Field(ge=1)]
Skip = Literal["nearest", "bilinear", "bicubic"]
Features = Annotated[int, Field(ge=3)]
"""Channels: at least three, because the picture passes through them (`start_bilinear`)."""

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

    def as_convolutions(self) -> dict[str, Tensor]:
        """Both shifts as the 1x1 convolutions `sub_mean` and `add_mean` of EDSR's and RCAN's published code."""
        identity, mean = torch.eye(3).view(3, 3, 1, 1), self.mean.detach().flatten().cpu()
        return {
            "sub_mean.weight": identity,
            "sub_mean.bias": -mean,
            "add_mean.weight": identity.clone(),
            "add_mean.bias": mean.clone(),
        }


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def upsampler(scale: int, features: int) -> nn.Sequential:
    """Convolution + pixel shuffle, x4 in two, x1 in none: (B, features, h, w) -> (B, features, scale*h, scale*w)."""
    stages: tuple[int, ...] = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[scale]
    layers: list[nn.Module] = []
    for stage in stages:
        layers += [conv3(features, features * stage**2), nn.PixelShuffle(stage)]
    return nn.Sequential(*layers)


def pixel_shuffle_head(features: int, channels: int, scale: int) -> nn.Sequential:
    """One convolution and one pixel shuffle: (B, features, h, w) -> (B, channels, scale*h, scale*w)."""
    return nn.Sequential(conv3(features, channels * scale**2), nn.PixelShuffle(scale))


def zero(layer: nn.Module) -> None:
    """All weights of one layer 0: what it is added to starts unchanged."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


@torch.no_grad()
def pass_through(layer: nn.Conv2d, channels: int) -> None:
    """The first `channels` outputs become copies of the first `channels` inputs; other outputs stay."""
    layer.weight[:channels] = 0
    layer.bias[:channels] = 0
    centre = layer.kernel_size[0] // 2
    for channel in range(channels):
        layer.weight[channel, channel, centre, centre] = 1


@torch.no_grad()
def bilinear_head(layer: nn.Module, channels: int, scale: int) -> None:
    """Make the first `channels` outputs of an enlarging layer its first `channels` inputs, enlarged bilinearly.

    `layer` is a transposed convolution with stride `scale`, or a 3x3 convolution before a pixel shuffle.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        zero(layer)
        at = torch.arange(layer.kernel_size[0]) - layer.padding[0]  # HR pixels from an LR pixel's first one
        taps = (1 - (at - (scale - 1) / 2).abs() / scale).clamp(min=0)
        for phase in range(scale):  # at x4 the kernel is one tap short of the triangle
            taps[at % scale == phase] /= taps[at % scale == phase].sum()
        for channel in range(channels):
            layer.weight[channel, channel] = torch.outer(taps, taps)
        return
    at = (torch.arange(scale) + 0.5) / scale - 0.5  # an HR pixel's place in LR pixels
    phases = (1 - (torch.arange(-1, 2) - at[:, None]).abs()).clamp(min=0)  # (scale, 3)
    layer.weight[: channels * scale**2] = 0
    layer.bias[: channels * scale**2] = 0
    kernels = torch.einsum("py,qx->pqyx", phases, phases).flatten(0, 1)
    for channel in range(channels):
        layer.weight[channel * scale**2 : (channel + 1) * scale**2, channel] = kernels


@torch.no_grad()
def start_bilinear(head: nn.Conv2d, join: nn.Conv2d, stages: nn.Sequential, last: nn.Conv2d | None) -> None:
    """Let a network with one long skip start as bilinear enlargement; every other weight keeps its usual start.

    The picture takes the first three channels of the first convolution `head`; the body's last convolution `join`
    adds nothing to them, `stages` (convolutions and pixel shuffles) enlarge them, and `last` returns them alone.
    The network then learns what bilinear enlargement lacks, from its first step on.
    """
    pass_through(head, 3)
    join.weight[:3] = 0
    join.bias[:3] = 0
    for convolution, shuffle in zip(stages[::2], stages[1::2], strict=True):
        bilinear_head(convolution, 3, shuffle.upscale_factor)
    if last is not None:
        zero(last)
        pass_through(last, 3)
