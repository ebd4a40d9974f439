"""One trial of a search: what is tried, and what came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(slots=True)
class Trial:
    """One set of values and what came of it."""

    number: int
    values: dict[str, Any]
    """{recipe path: value}"""
    status: Status = "running"
    curve: list[list[float]] = field(default_factory=list)
    """[[step, accuracy], ...]"""
    multiply_adds: int = 0
    """Of the student for one input."""
    cause: str = ""
    """Why it stopped or failed."""
    record: dict[str, Any] = field(default_factory=dict)
    """Handle of its tracking run."""
    job: str = ""
    """Fingerprint of its training."""
    name: str = ""
    """How lines and tables call it where its number says too little."""
    times: list[list[float]] = field(default_factory=list)
    """[[step, seconds that it trained in its process, those of them that evaluations took], ...]"""
    prepared: float = 0.0
    """Seconds that what it needs took: nothing, or the training of an assistant."""
    seconds: float = 0.0
    """From there to its end."""

    @property
    def accuracy(self) -> float:
        return self.curve[-1][1] if self.curve else math.nan

    @property
    def steps(self) -> int:
        return int(self.curve[-1][0]) if self.curve else 0

    @property
    def label(self) -> str:
        return self.name or f"trial-{self.number:03d}"
