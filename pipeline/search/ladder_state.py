"""What a ladder has decided, as it lies in its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import InputError


@dataclass(slots=True)
class Step:
    """A rung: what trains on it."""

    steps: int
    trials: list[list[Any]]
    """[[candidate, number of its seed], ...]; numbers of trials run on from rung to rung."""
    seconds: float = 0.0


@dataclass(slots=True)
class Final:
    """What is trained with the time that is left."""

    candidate: str
    steps: int
    evaluate_every: int
    expected: float
    """Seconds that it is planned for."""
    seconds: float = 0.0
    """What it took, scores, files and report included."""


@dataclass(slots=True)
class State:
    """All that was decided, and what it was decided from: the file `ladder.json`."""

    used: float = 0.0
    """Seconds so far, over all processes."""
    reserve: float = 0.0
    """Seconds kept for the last scores, the files and the report."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of what all candidates share."""
    rungs: list[Step] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    """Steps of the rungs after the first, decided when that one was over."""
    final: Final | None = None
    training: str = ""
    """Fingerprint of the last training, once it is done."""


def read_state(value: Mapping[str, Any]) -> State:
    """From a record's content. Raises KeyError or TypeError for what is none."""
    final = value["final"]
    rungs = [Step(**rung) for rung in value["rungs"]]
    return State(**{**value, "rungs": rungs, "final": Final(**final) if final else None})


def too_short(used: float, needed: float, seconds: float, candidates: Sequence[str]) -> InputError:
    """What is said of a budget of so many seconds in which no ladder fits: it takes `needed` beside those `used`."""
    return InputError(
        "--minutes",
        f"at least {(used + needed) / 60:.2g} for {len(candidates)} candidates here",
        f"{seconds / 60:g}",
        f"{used / 60:.2g} of them are for the teachers, a look at paces, the last scores and the report; what is "
        f"cached now costs no time again. Or try fewer: --candidates {','.join(candidates[:2])}.",
    )
