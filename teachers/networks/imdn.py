"""IMDN (Hui, Gao, Yang, Wang: Lightweight Image Super-Resolution with Information Multi-distillation Network,
2019): each block splits a quarter of its channels off after every convolution and joins them at the end.

Key names are those of the authors' public checkpoints (Zheng222/IMDN).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.blocks import ContrastAttention
from teachers.networks.native import Native, State, count, shuffle_scale, unit_range

SLOPE = 0.05  # of every leaky ReLU


class MultiDistillation(nn.Module):
    def __init__(self, channels: int, kept: int) -> None:
        super().__init__()
        rest = channels - kept
        self.kept, self.rest = kept, rest
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(rest, channels, 3, padding=1)
        self.c3 = nn.Conv2d(rest, channels, 3, padding=1)
        self.c4 = nn.Conv2d(rest, kept, 3, padding=1)
        self.c5 = nn.Conv2d(4 * kept, channels, 1)
        self.cca = ContrastAttention(4 * kept)

    def forward(self, x: Tensor) -> Tensor:
        distilled, rest = [], x
        for convolution in (self.c1, self.c2, self.c3):
            part, rest = F.leaky_relu(convolution(rest), SLOPE).split([self.kept, self.rest], dim=1)
            distilled.append(part)
        distilled.append(self.c4(rest))
        return self.c5(self.cca(torch.cat(distilled, dim=1))) + x


class IMDN(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W)."""

    def __init__(self, scale: int, channels: int = 64, kept: int = 16, blocks: int = 6) -> None:
        super().__init__()
        self.fea_conv = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = tuple(f"IMDB{i + 1}" for i in range(blocks))
        for name in self.blocks:
            self.add_module(name, MultiDistillation(channels, kept))
        self.c = nn.Sequential(nn.Conv2d(channels * blocks, channels, 1), nn.LeakyReLU(SLOPE))
        self.LR_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = out = self.fea_conv(x)
        outs = []
        for name in self.blocks:
            out = getattr(self, name)(out)
            outs.append(out)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outs, dim=1))) + first)


def build(state: State, scale: int) -> IMDN:
    channels = state["fea_conv.weight"].shape[0]
    kept = state["IMDB1.c4.weight"].shape[0]
    return IMDN(scale, channels, kept, count(state, "IMDB{}.c1.weight", start=1))


def scales(state: State) -> tuple[int, ...]:
    return (shuffle_scale(state["upsampler.0.weight"]),)


NATIVE = (
    Native(
        "IMDN",
        (
            "fea_conv.weight",
            "IMDB1.c1.weight",
            "IMDB1.cca.conv_du.0.weight",
            "LR_conv.weight",
            "upsampler.0.weight",
        ),
        scales,
        build,
        unit_range,
    ),
)
