"""What a training gets from around it, and tells: batches, hooks, curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


class Batch(Protocol):
    """One worker's share of a global batch."""

    @property
    def ids(self) -> list[str]:
        """Of the samples, for messages."""

    def to(self, device: torch.device | str) -> dict[str, Tensor]:
        """What the phase's losses read, by name."""


class Batches(Protocol):
    """Where samples come from: global batch `step` is a pure function of `step`, however workers share it."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This worker's share of one batch."""

    def iterate(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[int, Batch]]:
        """(step, share) for the steps of [start, stop)."""


@dataclass(slots=True)
class Curves:
    """What was logged: {name: [[step, value], ...]}. Kept in the checkpoint, so a resumed run has its whole curve."""

    values: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.values.setdefault(name, []).append([step, value])


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the surroundings want to hear. All are optional; `evaluate`, `log` and `picture` are called on
    rank 0 only.
    """

    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None
    """(artefact with EMA weights, step) -> metrics, every `evaluate_every` steps and at the end."""
    log: Callable[[dict[str, float], int], None] | None = None
    """(values, step): losses every `log_every` steps, metrics after each evaluation."""
    sync: Callable[[dict[str, float], int], None] | None = None
    """Called on every rank after each checkpoint (a barrier, for Ray Train's report)."""
    urgent: Callable[[], bool] | None = None
    """Asked on every rank every `log_every` steps; True where a machine may soon go: a checkpoint is due now."""
    say: Callable[[str], None] | None = None
    """What people should know of how it trains."""
