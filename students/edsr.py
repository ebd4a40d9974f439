"""EDSR (Lim et al.; CVPR Workshops 2017). The defaults are the published baseline of 16 blocks and 64 features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students.layers import MeanShift, Positive, conv3, upsampler

PARAMETERS = {2: 1_369_859, 3: 1_554_499, 4: 1_517_571}
"""Of `edsr()`; the constant mean shift is not counted."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, no batch normalisation, scaled by `res_scale` and added to the input."""

    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3(features, features), nn.ReLU(inplace=True), conv3(features, features))
        self.res_scale = res_scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) * self.res_scale


class EDSR(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w); mean shifted, values in 0..255 inside."""

    def __init__(
        self, scale: int, *, blocks: Positive = 16, features: Positive = 64, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shift = MeanShift()
        self.head = nn.Sequential(conv3(3, features))
        body = [ResidualBlock(features, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv3(features, features))
        self.tail = nn.Sequential(upsampler(scale, features), conv3(features, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.shift(x))
        x = x + self.body(x)
        return self.shift.undo(self.tail(x))
