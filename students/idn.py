"""IDN (Hui, Wang, Gao: Fast and Accurate Single Image Super-Resolution via Information Distillation Network; CVPR
2018)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from students.colour import LumaOrRGB
from students.layers import Positive, conv3, interpolate, zero

PARAMETERS = {2: 552_769, 3: 552_769, 4: 552_769}
"""Of `idn(colours=1)`: four blocks of 64 features (the published 553 k)."""

SLOPE = 0.05
KERNEL = 17
Width = Annotated[int, Field(ge=16, multiple_of=16)]


def _convolve(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    return F.leaky_relu(convolution(x), SLOPE)


class DistillationBlock(nn.Module):
    """Enhancement unit and compression unit (IDN, sections 3.2 and 3.3): (B, f, h, w) -> (B, f, h, w).

    After three convolutions a quarter of the channels goes past the other three and is put beside the input.
    """

    def __init__(self, f: int) -> None:
        super().__init__()
        step = f // 4
        self.kept = step
        self.below = nn.ModuleList(
            [
                conv3(f, f - step),
                nn.Conv2d(f - step, f - 2 * step, 3, padding=1, groups=4),
                conv3(f - 2 * step, f),
            ]
        )
        self.above = nn.ModuleList(
            [
                conv3(f - step, f),
                nn.Conv2d(f, f - step, 3, padding=1, groups=4),
                conv3(f - step, f + step),
            ]
        )
        self.compress = nn.Conv2d(f + step, f, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.below:
            y = _convolve(y, convolution)
        kept, y = y[:, : self.kept], y[:, self.kept :]
        for convolution in self.above:
            y = _convolve(y, convolution)
        return _convolve(y + torch.cat((x, kept), 1), self.compress)


class IDN(LumaOrRGB):
    """(B, 3, h, w) RGB -> (B, 3, scale*h, scale*w): feature extraction, information distillation, a 17x17
    transposed convolution, added to bicubic enlargement.

    `body`, the output of the last block (B, features, h, w), is what PISR compares by default.
    """

    feature_layer = "body"

    def __init__(
        self, scale: int, *, features: Width = 64, blocks: Positive = 4, colours: Literal[1, 3] = 3
    ) -> None:
        super().__init__(scale, colours)
        self.head = nn.Sequential(
            conv3(colours, features), nn.LeakyReLU(SLOPE), conv3(features, features), nn.LeakyReLU(SLOPE)
        )
        self.body = nn.Sequential(*(DistillationBlock(features) for _ in range(blocks)))
        odd = (KERNEL - scale) % 2
        self.last_layer = nn.ConvTranspose2d(
            features, colours, KERNEL, stride=scale, padding=(KERNEL - scale + odd) // 2, output_padding=odd
        )
        zero(self.last_layer)  # the network starts as bicubic enlargement

    def enlarge(self, x: Tensor) -> Tensor:
        return interpolate(x, self.scale, "bicubic") + self.last_layer(self.body(self.head(x)))
