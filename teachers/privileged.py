"""PISR's privileged teacher (Lee, Lee, Kim, Ham; ECCV 2020, section 3.2): an encoder that sees the HR picture and hands
a code of LR size to a decoder of the student's own architecture.

    code = E(y),  picture = G_T(code)
    L_T = mean|picture - y| + lambda_T * mean|code - LR|
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from students.colour import in_colours
from students.layers import pass_through

ENCODER_PARAMETERS = 86_084
"""Of `Encoder(scale, colours=1)`, at every scale."""


class Encoder(nn.Module):
    """(B, colours, s*h, s*w) HR -> (B, colours, h, w) code: 5x5, 5x5 with stride s, 3x3, 3x3.

    Ours: it starts as the mean of each s x s box (of the inner 2 x 2 at x4), so that the code begins near the LR
    picture and the decoder, once it becomes the student, has been trained on something like its input.
    """

    def __init__(self, scale: int, *, colours: int = 1, d: int = 56, s: int = 12) -> None:
        super().__init__()
        self.scale = scale
        self.body = nn.Sequential(
            nn.Conv2d(colours, d, 5, padding=2),
            nn.PReLU(),
            nn.Conv2d(d, d, 5, stride=scale, padding=2),
            nn.PReLU(),
            nn.Conv2d(d, s, 3, padding=1),
            nn.PReLU(),
            nn.Conv2d(s, colours, 3, padding=1),
        )
        for layer in self.body:
            if isinstance(layer, nn.Conv2d):
                pass_through(layer, colours)
        self._start(colours)

    @torch.no_grad()
    def _start(self, colours: int) -> None:
        self.body[-1].weight[:, colours:] = 0
        box = {2: (2, 3), 3: (2, 3, 4), 4: (3, 4)}[self.scale]
        strided = self.body[2].weight
        for colour in range(colours):
            strided[colour] = 0
            for row in box:
                for column in box:
                    strided[colour, colour, row, column] = 1 / len(box) ** 2

    def forward(self, hr: Tensor) -> Tensor:
        return self.body(hr)


class Privileged(nn.Module):
    """Encoder and decoder: (B, 3 or colours, s*h, s*w) HR in [0, 1] -> the same picture, through an LR-size code."""

    def __init__(self, encoder: Encoder, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def code(self, hr: Tensor) -> Tensor:
        """(B, 3 or colours, s*h, s*w) HR -> (B, colours, h, w), close to [0, 1]. Raises InputError for other sizes."""
        scale = self.encoder.scale
        if hr.shape[-2] % scale or hr.shape[-1] % scale:
            raise InputError(
                "HR picture of the privileged teacher",
                f"sides that are multiples of the scale {scale}, {scale} times those of the LR picture",
                f"{hr.shape[-1]}x{hr.shape[-2]} pixels",
            )
        return self.encoder(in_colours(hr, self.decoder))

    def forward(self, hr: Tensor) -> Tensor:
        return self.decoder(self.code(hr))
