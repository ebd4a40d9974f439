"""Networks that come in two colour spaces: RGB, or, as published, the luma of BT.601 alone with bicubic chroma."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students.layers import interpolate

# BT.601 studio swing on [0, 1]: rows Y, Cb, Cr of R, G, B.
_TO_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


class LumaOrRGB(nn.Module):
    """A network `enlarge` on `colours` channels that takes and gives RGB, in [0, 1].

    colours 3: `enlarge` works on RGB. colours 1: Y is enlarged by it, chroma by bicubic, and RGB comes out; a picture
    of one channel is taken as Y and comes out as Y, which is how it is trained.
    """

    def __init__(self, scale: int, colours: int) -> None:
        super().__init__()
        self.scale, self.colours = scale, colours
        to_ycbcr = torch.tensor(_TO_YCBCR) / 255
        self.register_buffer("to_ycbcr", to_ycbcr.view(3, 3, 1, 1), persistent=False)
        to_rgb = torch.linalg.inv(to_ycbcr.double()).float()
        self.register_buffer("to_rgb", to_rgb.view(3, 3, 1, 1), persistent=False)
        self.register_buffer("offset", torch.tensor(_OFFSET).view(1, 3, 1, 1) / 255, persistent=False)

    def enlarge(self, x: Tensor) -> Tensor:
        """The bare network: (B, colours, h, w) -> (B, colours, scale*h, scale*w)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == self.colours:
            return self.enlarge(x)
        ycbcr = nn.functional.conv2d(x, self.to_ycbcr) + self.offset
        luma = self.enlarge(ycbcr[:, :1])
        chroma = interpolate(ycbcr[:, 1:], self.scale, "bicubic")
        return nn.functional.conv2d(torch.cat((luma, chroma), 1) - self.offset, self.to_rgb)


def luma(rgb: Tensor) -> Tensor:
    """Y of BT.601 in [16/255, 235/255]: (B, 3, H, W) RGB in [0, 1] -> (B, 1, H, W)."""
    weights = rgb.new_tensor(_TO_YCBCR[0]) / 255
    return (rgb * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) + _OFFSET[0] / 255


def grey(y: Tensor) -> Tensor:
    """The grey RGB picture of luma `y`: (B, 1, H, W) -> (B, 3, H, W)."""
    return ((y - 16 / 255) * (255 / 219)).expand(-1, 3, -1, -1)


def colours_of(network: nn.Module) -> int:
    """Channels that a network is trained on: 1 for one that enlarges luma alone, else 3."""
    return getattr(network, "colours", 3)


def in_colours(rgb: Tensor, network: nn.Module) -> Tensor:
    """A picture as `network` is trained on it; one that has the network's channels is left alone."""
    return luma(rgb) if rgb.shape[1] > colours_of(network) else rgb
