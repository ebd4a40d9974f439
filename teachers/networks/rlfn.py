"""RLFN (Kong et al.: Residual Local Feature Network for Efficient Super-Resolution, 2022): blocks of three plain
convolutions, a residual sum and spatial attention.

Key names and the 0..255 range are those of the authors' public checkpoints (bytedance/RLFN).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.blocks import SpatialAttention
from teachers.networks.native import Native, State, byte_range, count, shuffle_scale

SLOPE = 0.05  # of every leaky ReLU


class LocalFeature(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c3_r = nn.Conv2d(channels, channels, 3, padding=1)
        self.c5 = nn.Conv2d(channels, channels, 1)
        strided = nn.Conv2d(inner, inner, 3, stride=2)
        self.esa = SpatialAttention(
            channels, inner, strided, {"conv3": nn.Conv2d(inner, inner, 3, padding=1)}
        )

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for convolution in (self.c1_r, self.c2_r, self.c3_r):
            out = F.leaky_relu(convolution(out), SLOPE)
        return self.esa(self.c5(out + x))


class RLFN(nn.Module):
    """(N, 3, H, W) RGB in [0, 255] -> (N, 3, scale*H, scale*W) in [0, 255]."""

    def __init__(self, scale: int, channels: int = 52, inner: int = 16, blocks: int = 6) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = tuple(f"block_{i + 1}" for i in range(blocks))
        for name in self.blocks:
            self.add_module(name, LocalFeature(channels, inner))
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = out = self.conv_1(x)
        for name in self.blocks:
            out = getattr(self, name)(out)
        return self.upsampler(self.conv_2(out) + first)


def build(state: State, scale: int) -> RLFN:
    return RLFN(
        scale,
        channels=state["conv_1.weight"].shape[0],
        inner=state["block_1.esa.conv1.weight"].shape[0],
        blocks=count(state, "block_{}.c1_r.weight", start=1),
    )


def scales(state: State) -> tuple[int, ...]:
    return (shuffle_scale(state["upsampler.0.weight"]),)


NATIVE = (
    Native(
        "RLFN",
        (
            "conv_1.weight",
            "block_1.c1_r.weight",
            "block_1.esa.conv_f.weight",
            "conv_2.weight",
            "upsampler.0.weight",
        ),
        scales,
        build,
        byte_range,
        minimum_side=15,
    ),
)
