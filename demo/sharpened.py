"""A sharp teacher of our own, in place of one trained adversarially: one of the demo's with its edges raised."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from teachers.loading import load_teacher


class Sharpened(nn.Module):
    """(N, 3, h, w) RGB in [0, 1] -> (N, 3, 2*h, 2*w): y + amount * (y - blur(y)), y the teacher's picture, clamped."""

    def __init__(self, network: nn.Module, amount: float) -> None:
        super().__init__()
        self.network, self.amount = network, amount

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x)
        padded = F.pad(y, (2, 2, 2, 2), mode="replicate")
        blurred = F.avg_pool2d(F.avg_pool2d(padded, 3, 1), 3, 1)
        return (y + self.amount * (y - blurred)).clamp(0, 1)


def rcan(weights: str = "demo/teachers/rcan_x2.safetensors", amount: float = 0.7) -> nn.Module:
    """The demo's RCAN, sharpened. A relative `weights` is looked for beside the folder `demo` too."""
    path = Path(weights) if Path(weights).exists() else Path(__file__).resolve().parents[1] / weights
    return Sharpened(load_teacher(path).network, amount)
