"""The Haar wavelet loss, forward and backward, against the same loss on pytorch_wavelets.

Both sides transform the difference of the pictures once; the two are timed in turn and the best of each
counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.losses.wavelet import WaveletLoss

SHAPE = (16, 3, 192, 192)
TARGET = 0.25


def rows(rounds: int = 15) -> list[dict[str, str | float | bool]]:
    """One row for each of 1 to 3 levels; `ours` and `theirs` in ms. Raises where the two losses disagree."""
    from pytorch_wavelets import DWTForward

    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(SHAPE, generator=generator).requires_grad_()
    target = torch.rand(SHAPE, generator=generator)
    table: list[dict[str, str | float | bool]] = []
    for level in (1, 2, 3):
        loss = WaveletLoss("haar", level)
        transform = DWTForward(J=level, wave="haar", mode="zero")

        def ours(loss: WaveletLoss = loss) -> Tensor:
            return loss(prediction, target)

        def theirs(transform: torch.nn.Module = transform) -> Tensor:
            low, details = transform(prediction - target)
            return low.abs().mean() + sum(bands.abs().mean() for bands in details)

        torch.testing.assert_close(ours(), theirs(), rtol=1e-5, atol=1e-6)
        best = {ours: float("inf"), theirs: float("inf")}
        for _ in range(rounds):
            for side in best:
                best[side] = min(best[side], _seconds(side, prediction))
        ratio = best[ours] / best[theirs]
        table.append(
            {
                "what": f"Haar loss forward+backward, {level} level{'s' * (level > 1)}, ms",
                "ours": round(best[ours] * 1e3, 2),
                "theirs": round(best[theirs] * 1e3, 2),
                "ratio": round(ratio, 3),
                "target": f"<= {TARGET}",
                "met": ratio <= TARGET,
            }
        )
    return table


def _seconds(side: Callable[[], Tensor], prediction: Tensor) -> float:
    prediction.grad = None
    start = time.perf_counter()
    side().backward()
    return time.perf_counter() - start
