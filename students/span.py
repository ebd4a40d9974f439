"""SPAN (Wan et al.; CVPR Workshops 2024): Swift Parameter-free Attention Network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from students.layers import RGB_MEAN, Features, bilinear_head, pass_through, pixel_shuffle_head

PARAMETERS = {2: 1_824_900, 3: 1_831_395, 4: 1_840_488}
"""Of `span()` in training. Collapsed (`deployed`): 410,700, 417,195 and 426,288."""


class LinearBlock(nn.Module):
    """A 3x3 convolution that trains as 1x1 -> 3x3 -> 1x1 plus a 1x1 beside it, all without activations between.

    The branches are linear, so they are collapsed into one 3x3 kernel before each use (SESR, Bhardwaj et al. 2022):
    training costs one convolution and equals inference at the borders too, where the uncollapsed chain does not.
    """

    def __init__(self, inputs: int, outputs: int, gain: int = 2) -> None:
        super().__init__()
        self.sk = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs * gain, 1),
            nn.Conv2d(inputs * gain, outputs * gain, 3),
            nn.Conv2d(outputs * gain, outputs, 1),
        )

    def collapsed(self) -> tuple[Tensor, Tensor]:
        """Weight (outputs, inputs, 3, 3) and bias (outputs,) of the equal single convolution."""
        first, middle, last = self.conv
        w1, w2, w3 = first.weight[:, :, 0, 0], middle.weight, last.weight[:, :, 0, 0]
        weight = torch.einsum("om,mnhw->onhw", w3, w2)
        bias = torch.einsum("onhw,n->o", weight, first.bias) + w3 @ middle.bias + last.bias
        weight = torch.einsum("onhw,ni->oihw", weight, w1)
        return weight + F.pad(self.sk.weight, (1, 1, 1, 1)), bias + self.sk.bias

    @torch.no_grad()
    def deployed(self) -> nn.Conv2d:
        """The one convolution that this block amounts to."""
        weight, bias = self.collapsed()
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device=weight.device)
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.collapsed()
        return F.conv2d(x, weight, bias, padding=1)


class AttentionBlock(nn.Module):
    """Three convolutions whose output gates itself: out = (f3 + x) * (sigmoid(f3) - 0.5)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.c1_r = LinearBlock(features, features)
        self.c2_r = LinearBlock(features, features)
        self.c3_r = LinearBlock(features, features)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output and its first features, activated."""
        first = F.silu(self.c1_r(x))
        y = self.c3_r(F.silu(self.c2_r(first)))
        return (y + x) * (torch.sigmoid(y) - 0.5), first


class SPAN(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w).

    norm: subtract the mean colour and multiply by 255 before the first convolution, as published.
    """

    def __init__(self, scale: int, *, features: Features = 48, norm: bool = False) -> None:
        super().__init__()
        self.scale, self.norm = scale, norm
        mean = torch.tensor(RGB_MEAN).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.conv_1 = LinearBlock(3, features)
        for i in range(1, 7):
            self.add_module(f"block_{i}", AttentionBlock(features))
        self.conv_cat = nn.Conv2d(features * 4, features, 1)
        self.conv_2 = LinearBlock(features, features)
        self.upsampler = pixel_shuffle_head(features, 3, scale)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Bilinear enlargement: the picture passes through three channels of the first and the two last layers."""
        first = self.conv_1
        for layer in (first.conv[2], first.sk):
            layer.weight[:3] = 0
            layer.bias[:3] = 0
        first.sk.weight[:3, :, 0, 0] = torch.eye(3)
        pass_through(self.conv_cat, 3)
        bilinear_head(self.upsampler[0], 3, self.scale)
        if self.norm:
            self.upsampler[0].weight.div_(255)
            self.upsampler[0].bias.copy_(torch.tensor(RGB_MEAN).repeat_interleave(self.scale**2))

    def forward(self, x: Tensor) -> Tensor:
        if self.norm:
            x = (x - self.mean) * 255.0
        start = self.conv_1(x)
        first, _ = self.block_1(start)
        y, _ = self.block_2(first)
        y, _ = self.block_3(y)
        y, _ = self.block_4(y)
        y, _ = self.block_5(y)
        last, inner = self.block_6(y)
        # The published network joins block 6's inner features here, under the name of block 5.
        y = self.conv_cat(torch.cat((start, self.conv_2(last), first, inner), 1))
        return self.upsampler(y)

    @torch.no_grad()
    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """The state dict as spandrel's SPAN has it: each block's collapsed convolution beside its branches."""
        state = self.state_dict()
        for name, module in self.named_modules():
            if isinstance(module, LinearBlock):
                state[f"{name}.eval_conv.weight"], state[f"{name}.eval_conv.bias"] = module.collapsed()
        return state if self.norm else {**state, "no_norm": torch.zeros(1)}
