"""EDSR (Lim et al.; CVPR Workshops 2017). The defaults are the published baseline of 16 blocks and 64 features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students.layers import Features, MeanShift, Positive, conv3, start_bilinear, upsampler

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
        self, scale: int, *, blocks: Positive = 16, features: Features = 64, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = scale
        self.shift = MeanShift()
        self.head = nn.Sequential(conv3(3, features))
        body = [ResidualBlock(features, res_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv3(features, features))
        self.tail = nn.Sequential(upsampler(scale, features), conv3(features, 3))
        start_bilinear(self.head[0], self.body[-1], self.tail[0], self.tail[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.shift(x))
        x = x + self.body(x)
        return self.shift.undo(self.tail(x))

    @torch.no_grad()
    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """This network as an RCAN, because spandrel knows no EDSR; the picture is the same.

        One group holds all blocks. Its channel gates are open: no weights and a bias whose sigmoid is 1. RCAN adds the
        head's features twice, after the group and after the identity convolution that follows it; so the last
        convolution of the body is doubled and the first of the upsampler halved, both exact in floating point.
        """
        state = self.shift.as_convolutions()
        for key, value in self.state_dict().items():
            value = value.detach().cpu()
            state[f"body.0.{key}" if key.startswith("body.") else key] = value
        features, blocks = self.head[0].out_channels, len(self.body) - 1
        for i in range(blocks):
            block = f"body.0.body.{i}.body"
            for part in ("weight", "bias"):
                state[f"{block}.2.{part}"] = state[f"{block}.2.{part}"] * self.body[i].res_scale
            state[f"{block}.3.conv_du.0.weight"] = torch.zeros(1, features, 1, 1)
            state[f"{block}.3.conv_du.0.bias"] = torch.zeros(1)
            state[f"{block}.3.conv_du.2.weight"] = torch.zeros(features, 1, 1, 1)
            state[f"{block}.3.conv_du.2.bias"] = torch.full((features,), 100.0)
        for part in ("weight", "bias"):
            state[f"body.0.body.{blocks}.{part}"] = state[f"body.0.body.{blocks}.{part}"] * 2
        first = "tail.0.0" if self.scale > 1 else "tail.1"
        state[f"{first}.weight"] = state[f"{first}.weight"] / 2
        identity = nn.Conv2d(features, features, 3)
        nn.init.dirac_(identity.weight)
        return {**state, "body.1.weight": identity.weight.detach(), "body.1.bias": torch.zeros(features)}
