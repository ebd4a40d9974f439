"""Pieces that several networks share: mean shift, channel attention on contrast, spatial attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MeanShift(nn.Module):
    """A fixed 1x1 convolution that takes the data set's mean away or puts it back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3).view(3, 3, 1, 1), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:  # fp32 also under autocast: 8 bits of mantissa would cost quality
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight, self.bias)


class ContrastAttention(nn.Module):
    """Channel attention on each channel's mean plus standard deviation (IMDN, Hui et al. 2019, section 3.3)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return x * self.conv_du(variance.sqrt() + mean)


class SpatialAttention(nn.Module):
    """ESA, enhanced spatial attention (RFANet, Liu et al. 2020), in the slimmer form of RLFN and BSRN.

    The mask is made at about 1/6 of the size by a strided convolution and a pooling of 7 pixels, which need
    an input of at least 15 pixels a side. `convolutions` are the layers between the pooling and the resizing.
    """

    def __init__(
        self, channels: int, inner: int, strided: nn.Module, convolutions: dict[str, nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.conv2 = strided
        self.names = tuple(convolutions)
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)
        self.conv4 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.conv1(x)
        mask = F.max_pool2d(self.conv2(first), kernel_size=7, stride=3)
        for i, name in enumerate(self.names):
            mask = getattr(self, name)(F.gelu(mask) if i else mask)
        mask = F.interpolate(mask, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(mask + self.conv_f(first)))
