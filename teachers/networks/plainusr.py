"""PlainUSR (Wang et al.: PlainUSR: Chasing Faster ConvNet for Efficient Super-Resolution, 2024), the re-parameterised
network for inference in its general size: plain convolutions on the first channels, the rest passes unchanged.

Key names are those of the authors' public checkpoints (icandle/PlainUSR).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.native import Native, State, shuffle_scale, unit_range

SLOPE = 0.05  # of every leaky ReLU
ORDER = ("block1", "block2", "blockm", "block3", "block4")


class SoftPooling(nn.Module):
    """Average of each 7x7 window, every 3 pixels, weighted by the exponential of the values themselves."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.exp(x)
        return F.avg_pool2d(weight * x, 7, stride=3) / F.avg_pool2d(weight, 7, stride=3)


class LocalAttention(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            SoftPooling(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1),
            nn.Conv2d(inner, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = F.interpolate(self.body(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * mask * torch.sigmoid(x[:, :1])


class PartialBlock(nn.Module):
    """Runs on the first `channels` channels and leaves the others as they are."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.channels = channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(channels, channels, 3, padding=1),
            LocalAttention(channels, inner),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x[:, : self.channels]), x[:, self.channels :]], dim=1)


class PlainUSR(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W)."""

    def __init__(self, scale: int, features: int, channels: dict[str, int], inner: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, features, 3, padding=1)
        for name in ORDER:
            self.add_module(name, PartialBlock(channels[name], inner))
        self.tail = nn.Sequential(nn.Conv2d(features, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        for name in ORDER:
            x = getattr(self, name)(x)
        return self.tail(x)


def build(state: State, scale: int) -> PlainUSR:
    channels = {name: state[f"{name}.body.0.weight"].shape[0] for name in ORDER}
    inner = state["block1.body.3.body.0.weight"].shape[0]
    return PlainUSR(scale, state["head.weight"].shape[0], channels, inner)


def scales(state: State) -> tuple[int, ...]:
    return (shuffle_scale(state["tail.0.weight"]),)


NATIVE = (
    Native(
        "PlainUSR",
        ("head.weight", "blockm.body.3.body.0.weight", "block4.body.3.body.3.weight", "tail.0.weight"),
        scales,
        build,
        unit_range,
        minimum_side=8,
    ),
)
