"""FSRCNN (Dong, Loy, Tang; ECCV 2016), the small student of PISR and of short trainings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from students.colour import LumaOrRGB
from students.layers import (
    Features,
    Positive,
    Skip,
    bilinear_head,
    interpolate,
    pass_through,
    pixel_shuffle_head,
    zero,
)

PARAMETERS = {2: 12_644, 3: 12_644, 4: 12_644}
"""Of `fsrcnn(colours=1)`, d=56, s=12, m=4, deconvolution head; one shared slope in each PReLU."""


class FSRCNN(LumaOrRGB):
    """Feature extraction, shrinking, mapping, expanding, enlarging: (B, 3, h, w) RGB -> (B, 3, scale*h, scale*w).

    d: features before and after the mapping. s: features of the mapping. m: 3x3 convolutions in the mapping.
    colours: 3 works on RGB; 1 is the published luma network: RGB in, Y enlarged by it, chroma by bicubic, RGB out.
    head: the published 9x9 `deconv`, or a 3x3 convolution and a `pixelshuffle`, which trains faster on CPUs.
    skip: adds the interpolated input to the output (not published; None is). It needs no parameters.
    `expanding`, the last features (B, d, h, w), is what PISR compares.
    """

    feature_layer = "expanding"

    def __init__(
        self,
        scale: int,
        *,
        d: Features = 56,
        s: Features = 12,
        m: Positive = 4,
        colours: Literal[1, 3] = 3,
        head: Literal["deconv", "pixelshuffle"] = "deconv",
        skip: Skip | None = None,
    ) -> None:
        super().__init__(scale, colours)
        self.skip = skip
        self.feature_extraction = nn.Sequential(nn.Conv2d(colours, d, 5, padding=2), nn.PReLU())
        self.shrinking = nn.Sequential(nn.Conv2d(d, s, 1), nn.PReLU())
        mapping: list[nn.Module] = []
        for _ in range(m):
            mapping += [nn.Conv2d(s, s, 3, padding=1), nn.PReLU()]
        self.mapping = nn.Sequential(*mapping)
        self.expanding = nn.Sequential(nn.Conv2d(s, d, 1), nn.PReLU())
        if head == "deconv":
            self.last_layer: nn.Module = nn.ConvTranspose2d(
                d, colours, 9, stride=scale, padding=4, output_padding=scale - 1
            )
        else:
            self.last_layer = pixel_shuffle_head(d, colours, scale)
        self._start()

    def _start(self) -> None:
        """The picture passes straight through the first channels of every layer, the rest starts as PyTorch has it.

        So a fresh network enlarges bilinearly (with a skip: it is the skip) and learns what that lacks. The published
        start, N(0, 0.001) in the last layer, returns black and spends its first thousands of steps on the brightness.
        """
        last = self.last_layer if isinstance(self.last_layer, nn.ConvTranspose2d) else self.last_layer[0]
        if self.skip is not None:
            zero(last)
            return
        bilinear_head(last, self.colours, self.scale)
        mapping = [layer for layer in self.mapping if isinstance(layer, nn.Conv2d)]
        for layer in (self.feature_extraction[0], self.shrinking[0], *mapping, self.expanding[0]):
            pass_through(layer, self.colours)

    def enlarge(self, x: Tensor) -> Tensor:
        y = self.feature_extraction(x)
        y = self.expanding(self.mapping(self.shrinking(y)))
        y = self.last_layer(y)
        return y if self.skip is None else y + interpolate(x, self.scale, self.skip)
