"""CARN (Ahn, Kang, Sohn: Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual Network; ECCV
2018), for one scale."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from students.colour import LumaOrRGB
from students.layers import bilinear_head, conv3, pass_through
from teachers.networks.carn import CascadingBlock, Fuse, Upsample

PARAMETERS = {2: 964_163, 3: 1_148_803, 4: 1_111_875}
"""Of `carn()`: 64 features. The published 1,592 k counts the upsamplers of all three scales."""


class CARN(LumaOrRGB):
    """(B, 3, h, w) RGB -> (B, 3, scale*h, scale*w): three cascading blocks whose outputs are kept and fused.

    The published constant mean shift is left out: with values in [0, 1] every ReLU lets the picture pass, and the
    network starts as bilinear enlargement. `c3`, the last fusion (B, features, h, w), is what PISR compares by default.
    """

    feature_layer = "c3"

    def __init__(
        self,
        scale: int,
        *,
        features: Annotated[int, Field(ge=8)] = 64,
        colours: Literal[1, 3] = 3,
    ) -> None:
        super().__init__(scale, colours)
        self.entry = conv3(colours, features)
        self.b1, self.b2, self.b3 = (CascadingBlock(features, 1, False) for _ in range(3))
        self.c1, self.c2, self.c3 = (Fuse(features * n, features) for n in (2, 3, 4))
        self.upsample = Upsample(features, scale, 1)
        self.exit = conv3(features, colours)
        for layer in (self.entry, self.c1.body[0], self.c2.body[0], self.c3.body[0], self.exit):
            pass_through(layer, colours)
        for convolution, shuffle in zip(self.upsample.body[::3], self.upsample.body[2::3]):
            bilinear_head(convolution, colours, shuffle.upscale_factor)
        with torch.no_grad():
            self.exit.weight[:, colours:] = 0

    def enlarge(self, x: Tensor) -> Tensor:
        kept = out = self.entry(x)
        for block, fuse in ((self.b1, self.c1), (self.b2, self.c2), (self.b3, self.c3)):
            kept = torch.cat([kept, block(out)], dim=1)
            out = fuse(kept)
        return self.exit(self.upsample(out))
