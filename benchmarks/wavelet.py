"""The Haar wavelet loss, forward and backward, against the same loss on pytorch_wavelets.

Both sides transform the difference of the pictures, once, on torch's default number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.common import in_turn, row
from pipeline.losses.wavelet import WaveletLoss

SHAPE = (16, 3, 192, 192)


def rows(rounds: int = 15) -> list[dict[str, Any]]:
    """One row for each of 1 to 3 levels. Raises AssertionError where the two losses disagree."""
    from pytorch_wavelets import DWTForward

    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(SHAPE, generator=generator).requires_grad_()
    target = torch.rand(SHAPE, generator=generator)
    table = []
    for level in (1, 2, 3):
        loss = WaveletLoss("haar", level)
        transform = DWTForward(J=level, wave="haar", mode="zero")

        def ours(loss: WaveletLoss = loss) -> Tensor:
            return loss(prediction, target)

        def theirs(transform: torch.nn.Module = transform) -> Tensor:
            low, details = transform(prediction - target)
            return low.abs().mean() + sum(bands.abs().mean() for bands in details)

        torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=1e-6)
        sides = {"ours": lambda: _step(ours(), prediction), "theirs": lambda: _step(theirs(), prediction)}
        seconds = in_turn(sides, rounds, warmup=2)
        what = f"Haar wavelet loss, forward and backward, {level} level{'s' * (level > 1)}"
        table.append(row(what, seconds["ours"] * 1e3, seconds["theirs"] * 1e3, "<= 0.25", unit="ms"))
    return table


def _step(value: Tensor, prediction: Tensor) -> None:
    prediction.grad = None
    value.backward()
