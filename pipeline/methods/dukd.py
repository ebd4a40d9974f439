"""DUKD: data upcycling knowledge distillation (Zhang et al., arXiv 2309.14162).

    L = hr * mean|S(x) - y| + distill * mean|S(x) - T(x)| + consistency * mean|A^-1 S(A x) - T(x)|,   5 : 1 : 1

x are tiles and upcycled views of them (data/upcycle.py), which T alone explains: y is where there is HR. A is
invertible and drawn for each sample: mirrored across, mirrored down, transposed, inverted in colour, each with
probability 0.3.

Differences from the released code: T(x) is cached; views are drawn with the tiles, in one step with them, where theirs
take a second one; every sample has both S(x) and A^-1 S(A x), where theirs has the latter instead of the former on
zoomed-in views alone; zoomed-out views have no HR, where theirs take LR for it, so that methods that learn from HR see
what they see without upcycling. Ours: channels are permuted too, and several teachers, fused, may be T.

A follows from the sample's pixels, exact integers of them: a pure function of (seed, step, place in the global batch),
as the crop is, whatever the number of workers and the device, and it needs no number from the host in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.losses.pixel import PIXEL
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, masked_hr, seen_by
from pipeline.recipe.methods import DUKD
from pipeline.recipe.schedule import Weight
from pipeline.recipe.settings import Train

PRIME = 2**31 - 1
"""Hashes are below it, so that a product of two fits 64 bits."""
PARTS = 6
"""What is drawn for A: three moves, inversion, whether channels are permuted, and how."""


def dukd(method: DUKD, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """One phase; samples without HR are trained on the teacher alone."""
    pixel = PIXEL[method.pixel]

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            drawn = draws(batch["lr"])
            batch = seen(batch)
            x, target = batch["lr"], batch["target"]
            if method.consistency == 0:
                sr = modules["student"](x)
                return {"distill": pixel(sr, target), "hr": masked_hr(sr, batch, pixel)}
            change = Change(drawn, method.chance)
            # One call: a network that is wrapped for several workers is called once a step.
            sr, changed = modules["student"](torch.cat((x, change(x)))).chunk(2)
            return {
                "distill": pixel(sr, target),
                "hr": masked_hr(sr, batch, pixel),
                "consistency": pixel(change.undone(changed), target),
            }

        weights: dict[str, Weight] = {"distill": method.distill, "hr": method.hr}
        if method.consistency != 0:
            weights["consistency"] = method.consistency
        return Phase(
            name="distill",
            modules={"student": network},
            sources=("lr", "hr", "target"),
            losses=losses,
            weights=weights,
            settings=settings,
            artefact="student",
        )

    return [build]


def draws(lr: Tensor) -> Tensor:
    """(B, PARTS) in [0, 1), uniform for pictures that differ: a hash of (B, 3, h, w) pictures of 8 bits in [0, 1].

    sum_i v_i f_i mod p over levels v, with fixed factors f and p = 2^31 - 1 (Carter and Wegman, "Universal classes of
    hash functions", 1979), mixed anew for each part. Sums of integers: the same in any order.
    """
    levels = lr.mul(255).round().long().flatten(1)
    places = torch.arange(1, levels.shape[1] + 1, device=lr.device)
    factors = _mixed(_mixed(places))
    state = (levels * factors % PRIME).sum(1) % PRIME
    parts = []
    for _ in range(PARTS):
        state = _mixed(state)
        parts.append(state)
    return torch.stack(parts, dim=1).double() / PRIME


def _mixed(x: Tensor) -> Tensor:
    """Numbers below p that tell nothing of each other from numbers below p, each of few."""
    x = (x * 48271 + 11) % PRIME
    x = (x ^ (x >> 15)) % PRIME
    return x * 1812433253 % PRIME


@dataclass(frozen=True, slots=True)
class Change:
    """The invertible A of each sample of a batch."""

    drawn: Tensor
    """(B, PARTS) in [0, 1)."""
    chance: float

    def __call__(self, x: Tensor) -> Tensor:
        """A x for (B, C, side, side) in [0, 1]; a picture of one channel keeps it."""
        x = torch.where(self._is(0), x.flip(3), x)
        x = torch.where(self._is(1), x.flip(2), x)
        x = torch.where(self._is(2), x.transpose(2, 3), x)
        x = torch.where(self._is(3), 1 - x, x)
        turn, swap = self._channels()
        x = torch.where(turn == 1, x.roll(1, 1), torch.where(turn == 2, x.roll(2, 1), x))
        return torch.where(swap, x.flip(1), x)

    def undone(self, y: Tensor) -> Tensor:
        """A^-1 y, whatever the side of the pictures."""
        turn, swap = self._channels()
        y = torch.where(swap, y.flip(1), y)
        y = torch.where(turn == 1, y.roll(-1, 1), torch.where(turn == 2, y.roll(-2, 1), y))
        y = torch.where(self._is(3), 1 - y, y)
        y = torch.where(self._is(2), y.transpose(2, 3), y)
        y = torch.where(self._is(1), y.flip(2), y)
        return torch.where(self._is(0), y.flip(3), y)

    def _is(self, part: int) -> Tensor:
        return self._column(part) < self.chance

    def _channels(self) -> tuple[Tensor, Tensor]:
        """(places by which channels move on, whether they are reversed): one of the five permutations, or none."""
        which = 1 + (self._column(5) * 5).long()
        which = torch.where(self._is(4), which, 0)
        return which % 3, which >= 3

    def _column(self, part: int) -> Tensor:
        return self.drawn[:, part].view(-1, 1, 1, 1)
