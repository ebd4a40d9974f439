"""BSRN (Li et al.: Blueprint Separable Residual Network for Efficient Image Super-Resolution, 2022):
distillation blocks whose convolutions are a pointwise one followed by a depthwise one.

Key names are those of the authors' public checkpoints (xiaom233/BSRN).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.blocks import ContrastAttention, SpatialAttention
from teachers.networks.native import Native, State, count, shuffle_scale, unit_range

COPIES = 4  # the RGB input is stacked so many times


class Blueprint(nn.Module):
    """BSConv-U: 1x1 without bias, then depthwise 3x3."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.pw = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.dw = nn.Conv2d(channels, channels, 3, stride=stride, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


class EfficientDistillation(nn.Module):
    """ESDB: three refining steps, each leaving a distilled half behind, then both attentions."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        half = channels // 2
        for i in (1, 2, 3):
            self.add_module(f"c{i}_d", nn.Conv2d(channels, half, 1))
            self.add_module(f"c{i}_r", Blueprint(channels, channels))
        self.c4 = Blueprint(channels, half)
        self.c5 = nn.Conv2d(4 * half, channels, 1)
        pooled = {name: Blueprint(inner, inner) for name in ("conv_max", "conv3", "conv3_")}
        self.esa = SpatialAttention(channels, inner, Blueprint(inner, inner, stride=2, padding=0), pooled)
        self.cca = ContrastAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        distilled, rest = [], x
        for i in (1, 2, 3):
            distilled.append(F.gelu(getattr(self, f"c{i}_d")(rest)))
            rest = F.gelu(getattr(self, f"c{i}_r")(rest) + rest)
        distilled.append(F.gelu(self.c4(rest)))
        return self.cca(self.esa(self.c5(torch.cat(distilled, dim=1)))) + x


class BSRN(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W)."""

    def __init__(self, scale: int, channels: int = 64, inner: int = 16, blocks: int = 8) -> None:
        super().__init__()
        self.fea_conv = Blueprint(3 * COPIES, channels)
        self.blocks = tuple(f"B{i + 1}" for i in range(blocks))
        for name in self.blocks:
            self.add_module(name, EfficientDistillation(channels, inner))
        self.c1 = nn.Conv2d(channels * blocks, channels, 1)
        self.c2 = Blueprint(channels, channels)
        step = nn.Sequential(nn.Conv2d(channels, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.upsampler = nn.ModuleDict({"upsampleOneStep": step})

    def forward(self, x: Tensor) -> Tensor:
        first = out = self.fea_conv(torch.cat([x] * COPIES, dim=1))
        outs = []
        for name in self.blocks:
            out = getattr(self, name)(out)
            outs.append(out)
        out = self.c2(F.gelu(self.c1(torch.cat(outs, dim=1)))) + first
        return self.upsampler["upsampleOneStep"](out)


def build(state: State, scale: int) -> BSRN:
    return BSRN(
        scale,
        channels=state["fea_conv.pw.weight"].shape[0],
        inner=state["B1.esa.conv1.weight"].shape[0],
        blocks=count(state, "B{}.c5.weight", start=1),
    )


def scales(state: State) -> tuple[int, ...]:
    return (shuffle_scale(state["upsampler.upsampleOneStep.0.weight"]),)


NATIVE = (
    Native(
        "BSRN",
        (
            "fea_conv.pw.weight",
            "B1.c1_r.pw.weight",
            "B1.esa.conv_max.pw.weight",
            "upsampler.upsampleOneStep.0.weight",
        ),
        scales,
        build,
        unit_range,
        minimum_side=15,
    ),
)
