"""VDSR (Kim, Lee, Lee: Accurate Image Super-Resolution Using Very Deep Convolutional Networks; CVPR 2016)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from students.colour import LumaOrRGB
from students.layers import Positive, conv3, interpolate, zero

PARAMETERS = {2: 665_921, 3: 665_921, 4: 665_921}
"""Of `vdsr(colours=1)`: 20 convolutions of 64 features, with biases (the published 666 k)."""


class VDSR(LumaOrRGB):
    """(B, 3, h, w) RGB -> (B, 3, scale*h, scale*w): bicubic enlargement plus what `depth` convolutions add to it.

    Everything is computed at high resolution. `body` holds all layers but the last; its output (B, features, scale*h,
    scale*w) is what PISR compares by default.
    """

    feature_layer = "body"

    def __init__(
        self,
        scale: int,
        *,
        features: Positive = 64,
        depth: Annotated[int, Field(ge=3)] = 20,
        colours: Literal[1, 3] = 3,
    ) -> None:
        super().__init__(scale, colours)
        layers: list[nn.Module] = [conv3(colours, features), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [conv3(features, features), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        for layer in self.body:
            if isinstance(
                layer, nn.Conv2d
            ):  # twenty layers: PyTorch's own start fades on the way (He et al., 2015)
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.last_layer = conv3(features, colours)
        zero(self.last_layer)  # the network starts as bicubic enlargement

    def enlarge(self, x: Tensor) -> Tensor:
        enlarged = interpolate(x, self.scale, "bicubic")
        return enlarged + self.last_layer(self.body(enlarged))
