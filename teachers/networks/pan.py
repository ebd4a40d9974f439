"""PAN (Zhao, Kong, He, Qiao, Dong: Efficient Image Super-Resolution Using Pixel Attention, 2020):
self-calibrated blocks with pixel attention, nearest-neighbour upsampling inside, a bilinear skip around.

Key names are those of the authors' public checkpoints (zhaohengyuan1/PAN).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.native import Native, State, count, unit_range

SLOPE = 0.2  # of every leaky ReLU


class PixelAttentionConvolution(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k2 = nn.Conv2d(channels, channels, 1)
        self.k3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.k4 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.k4(self.k3(x) * torch.sigmoid(self.k2(x)))


class SelfCalibrated(nn.Module):
    """SCPA: one half of the channels under pixel attention, the other through a plain convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1_a = nn.Conv2d(channels, half, 1, bias=False)
        self.conv1_b = nn.Conv2d(channels, half, 1, bias=False)
        self.k1 = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False))
        self.PAConv = PixelAttentionConvolution(half)
        self.conv3 = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.k1(F.leaky_relu(self.conv1_a(x), SLOPE)), SLOPE)
        b = F.leaky_relu(self.PAConv(F.leaky_relu(self.conv1_b(x), SLOPE)), SLOPE)
        return self.conv3(torch.cat([a, b], dim=1)) + x


class PixelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.conv(x))


class PAN(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W). x4 upsamples twice by 2."""

    def __init__(self, scale: int, channels: int = 40, up_channels: int = 24, blocks: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.factors = (2, 2) if scale == 4 else (scale,)
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.SCPA_trunk = nn.Sequential(*(SelfCalibrated(channels) for _ in range(blocks)))
        self.trunk_conv = nn.Conv2d(channels, channels, 3, padding=1)
        for i in range(len(self.factors)):
            source = channels if i == 0 else up_channels
            self.add_module(f"upconv{i + 1}", nn.Conv2d(source, up_channels, 3, padding=1))
            self.add_module(f"att{i + 1}", PixelAttention(up_channels))
            self.add_module(f"HRconv{i + 1}", nn.Conv2d(up_channels, up_channels, 3, padding=1))
        self.conv_last = nn.Conv2d(up_channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv_first(x)
        out = out + self.trunk_conv(self.SCPA_trunk(out))
        for i, factor in enumerate(self.factors):
            out = getattr(self, f"upconv{i + 1}")(F.interpolate(out, scale_factor=factor, mode="nearest"))
            out = F.leaky_relu(getattr(self, f"att{i + 1}")(out), SLOPE)
            out = F.leaky_relu(getattr(self, f"HRconv{i + 1}")(out), SLOPE)
        skip = F.interpolate(x, scale_factor=self.scale, mode="bilinear", align_corners=False)
        return self.conv_last(out) + skip


def build(state: State, scale: int) -> PAN:
    return PAN(
        scale,
        channels=state["conv_first.weight"].shape[0],
        up_channels=state["upconv1.weight"].shape[0],
        blocks=count(state, "SCPA_trunk.{}.conv1_a.weight"),
    )


def scales(state: State) -> tuple[int, ...]:
    """x4 has a second upsampling step; x2 and x3 have the same tensors, so the caller must say which it is."""
    return (4,) if "upconv2.weight" in state else (2, 3)


NATIVE = (
    Native(
        "PAN",
        ("conv_first.weight", "SCPA_trunk.0.PAConv.k2.weight", "upconv1.weight", "att1.conv.weight"),
        scales,
        build,
        unit_range,
        ambiguous=True,
    ),
)
