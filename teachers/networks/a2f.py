"""A2F (Wang et al.: Lightweight Single-Image Super-Resolution Network with Attentive Auxiliary Feature Learning,
2020): every block also gets all earlier blocks' outputs, through a 1x1 convolution and channel attention.

Key names and the 0..255 range are those of the authors' public checkpoints (wxxxxxxh/A2F-SR), whose weight
normalisation is folded into plain weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teachers.networks.native import Native, State, byte_range, count, shuffle_scale

MEAN = (0.4488, 0.4371, 0.4040)  # RGB of [0, 1], in code and not in the checkpoints
HALF = 127.5


class Scale(nn.Module):
    """One learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class ChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean(dim=(2, 3), keepdim=True))


class Block(nn.Module):
    def __init__(self, features: int, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(features, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, features, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class A2F(nn.Module):
    """(N, 3, H, W) RGB in [0, 255] -> (N, 3, scale*H, scale*W) in [0, 255]."""

    mean: Tensor

    def __init__(self, scale: int, features: int = 16, wide: int = 128, blocks: int = 8) -> None:
        super().__init__()
        self.register_buffer("mean", 255.0 * torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        colours = 3 * scale**2
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1))
        self.body = nn.ModuleList(Block(features, wide) for _ in range(blocks))
        self.x_scale_list = nn.ModuleList(Scale() for _ in range(blocks))
        self.res_scale_list = nn.ModuleList(Scale() for _ in range(blocks))
        self.auxilary_scale_list = nn.ModuleList(Scale() for _ in range(blocks))
        self.fusion_conv_list = nn.ModuleList(
            nn.Sequential(nn.Conv2d(features * (i + 1), features, 1, bias=False), ChannelAttention(features))
            for i in range(blocks)
        )
        self.tail = nn.Sequential(nn.Conv2d(features, colours, 3, padding=1), nn.PixelShuffle(scale))
        self.skip = nn.Sequential(nn.Conv2d(3, colours, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / HALF
        skip = self.skip(x)
        out = self.head(x)
        kept = [out]
        for i, block in enumerate(self.body):
            support = self.fusion_conv_list[i](torch.cat(kept, dim=1))
            out = self.x_scale_list[i](out) + self.res_scale_list[i](block(out))
            out = out + self.auxilary_scale_list[i](support)
            kept.append(out)
        return (self.tail(out) + skip) * HALF + self.mean


def fold_weight_norm(state: State) -> State:
    """Turns each pair `weight_g` (C, 1, 1, 1), `weight_v` (C, ...) into `weight` = g v / |v|."""
    folded = {}
    for key, value in state.items():
        if key.endswith(".weight_v"):
            norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
            folded[key.removesuffix("_v")] = state[key.removesuffix("_v") + "_g"] * value / norm
        elif not key.endswith(".weight_g"):
            folded[key] = value
    return folded


def adapt(state: State) -> State:
    return fold_weight_norm(state) if "auxilary_scale_list.0.scale" in state else state


def build(state: State, scale: int) -> A2F:
    wide, features = state["body.0.body.0.weight"].shape[:2]
    return A2F(scale, features, wide, count(state, "body.{}.body.0.weight"))


def scales(state: State) -> tuple[int, ...]:
    return (shuffle_scale(state["tail.0.weight"]),)


NATIVE = (
    Native(
        "A2F",
        ("auxilary_scale_list.0.scale", "fusion_conv_list.0.1.conv_du.0.weight", "skip.0.weight"),
        scales,
        build,
        byte_range,
        adapt=adapt,
    ),
)
