"""RCAN (Zhang et al.; ECCV 2018). The defaults are MTKD's light student: 10 groups of 6 blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students.layers import Features, MeanShift, Positive, conv3, start_bilinear, upsampler

PARAMETERS = {2: 5_023_603, 3: 5_208_243, 4: 5_171_315}
"""Of `rcan()`; the constant mean shift is not counted."""


class ChannelAttention(nn.Module):
    """Scale each channel by a gate computed from all channels' means."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, features // reduction)
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, features, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True))


class AttentionBlock(nn.Module):
    """Two 3x3 convolutions and channel attention, added to the input."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3(features, features),
            nn.ReLU(inplace=True),
            conv3(features, features),
            ChannelAttention(features, reduction),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Group(nn.Module):
    """`blocks` attention blocks and a convolution, added to the input."""

    def __init__(self, blocks: int, features: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(AttentionBlock(features, reduction) for _ in range(blocks)), conv3(features, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class RCAN(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w); mean shifted, values in 0..255 inside."""

    def __init__(
        self,
        scale: int,
        *,
        groups: Positive = 10,
        blocks: Positive = 6,
        features: Features = 64,
        reduction: Positive = 16,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shift = MeanShift()
        self.head = nn.Sequential(conv3(3, features))
        body = [Group(blocks, features, reduction) for _ in range(groups)]
        self.body = nn.Sequential(*body, conv3(features, features))
        self.tail = nn.Sequential(upsampler(scale, features), conv3(features, 3))
        self._start()
        start_bilinear(self.head[0], self.body[-1], self.tail[0], self.tail[1])

    @torch.no_grad()
    def _start(self) -> None:
        """A tenth of the usual weights at the end of every residual branch.

        With the usual ones the signal doubles in each of the 70 additions: a fresh network returns values of 1e9.
        """
        for module in self.body.modules():
            if isinstance(module, AttentionBlock):
                module.body[2].weight.mul_(0.1)
            elif isinstance(module, Group):
                module.body[-1].weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.shift(x))
        x = x + self.body(x)
        return self.shift.undo(self.tail(x))

    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """The state dict as spandrel's RCAN has it: with the mean shift as two frozen 1x1 convolutions."""
        return {**self.shift.as_convolutions(), **self.state_dict()}
