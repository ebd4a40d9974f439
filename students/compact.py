"""Compact (SRVGGNetCompact of Real-ESRGAN, Wang et al.; ICCV Workshops 2021): plain convolutions, nearest skip.

Enlarging, the picture passes straight through the first channels of every layer at the start, as in FSRCNN and SPAN.
PyTorch's start alone weakens it at each layer: after nine of them the last sees next to nothing, the network stays its
skip for hundreds of steps, and at a high learning rate for good (docs/results.md).
"""

from __future__ import annotations

from torch import Tensor, nn

from students.layers import Features, Positive, conv3, interpolate, pass_through, zero

PARAMETERS = {2: 600_652, 3: 609_307, 4: 621_424}
"""Of `compact()`: 64 features, 16 convolutions between the first and the last."""


class Compact(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w).

    features: channels. convs: 3x3 convolutions between the first and the last one, all at low resolution.
    """

    START = 2
    """The first one was PyTorch's."""

    def __init__(self, scale: int, *, features: Features = 64, convs: Positive = 16) -> None:
        super().__init__()
        self.scale = scale
        body: list[nn.Module] = [conv3(3, features), nn.PReLU(features)]
        for _ in range(convs):
            body += [conv3(features, features), nn.PReLU(features)]
        self.body = nn.ModuleList([*body, conv3(features, 3 * scale**2)])
        self.shuffle = nn.PixelShuffle(scale)
        if scale == 1:
            _carry_on(self.body)
        else:
            for layer in self.body[:-1]:
                if isinstance(layer, nn.Conv2d):
                    pass_through(layer, 3)
        zero(self.body[-1])  # the network starts as its nearest skip

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self.body:
            y = layer(y)
        return self.shuffle(y) + interpolate(x, self.scale, "nearest")

    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """The state dict under spandrel's keys, which are these."""
        return self.state_dict()


def _carry_on(body: nn.ModuleList) -> None:
    """Start so that every layer passes the picture on at its strength (He et al., ICCV 2015, for PReLU's 0.25).

    What restoring lacks is faint and everywhere: with PyTorch's start nine layers of 48 features gave their input back
    after 2,000 steps.
    """
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, a=0.25, nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)
