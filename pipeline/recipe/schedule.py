"""Loss weights that may change over a run.

A weight is a number or a schedule over progress p in [0, 1] (step / steps), so a recipe does not have to know
its length.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Ramp(BaseModel):
    """From `start` to `end` between the progress values `begin` and `until`; flat before and after."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["linear", "cosine"]
    """`linear`, or `cosine` (half a cosine: slow, fast, slow)."""
    start: float
    """Weight up to `begin`."""
    end: float
    """Weight from `until` on."""
    begin: Fraction = 0.0
    """Progress (0..1) at which the change begins."""
    until: Fraction = 1.0
    """Progress (0..1) at which the change is complete."""

    @model_validator(mode="after")
    def _ordered(self) -> Ramp:
        if self.begin >= self.until:
            raise ValueError(f"begin ({self.begin}) must be below until ({self.until})")
        return self

    def __call__(self, progress: float) -> float:
        t = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.kind == "cosine":
            t = 0.5 - 0.5 * math.cos(math.pi * t)
        return self.start + (self.end - self.start) * t


class Piecewise(BaseModel):
    """Straight lines through `points` = [[progress, weight], ...]; flat outside the first and last."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["piecewise"]
    """Always `piecewise`."""
    points: tuple[tuple[Fraction, float], ...] = Field(min_length=2)
    """[progress, weight] pairs with rising progress."""

    @model_validator(mode="after")
    def _rising(self) -> Piecewise:
        places = [p for p, _ in self.points]
        if any(a >= b for a, b in zip(places, places[1:], strict=False)):
            raise ValueError(f"progress values must rise, found {places}")
        return self

    def __call__(self, progress: float) -> float:
        (p0, w0), *rest = self.points
        if progress <= p0:
            return w0
        for p1, w1 in rest:
            if progress <= p1:
                return w0 + (w1 - w0) * (progress - p0) / (p1 - p0)
            p0, w0 = p1, w1
        return w0


Weight = Union[float, Ramp, Piecewise]
"""A constant or a schedule; used for every loss term's weight."""


def peak(weight: Any) -> Any:
    """The largest size that a schedule, as a recipe's plain data, reaches; anything else as it is."""
    kind = weight.get("kind") if isinstance(weight, dict) else None
    if kind in ("linear", "cosine"):
        return max(weight["start"], weight["end"], key=abs)
    if kind == "piecewise":
        return max((w for _, w in weight["points"]), key=abs)
    return weight


def scaled_to(weight: Any, value: Any) -> Any:
    """The schedule (plain data) with its peak at `value`, its shape kept; `value` itself where it is no schedule."""
    top = peak(weight)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if top is weight or not number or not top:
        return value
    factor = value / top
    if weight["kind"] == "piecewise":
        return {**weight, "points": [[p, w * factor] for p, w in weight["points"]]}
    return {**weight, "start": weight["start"] * factor, "end": weight["end"] * factor}


def times(weight: Ramp | Piecewise, factor: float) -> Ramp | Piecewise:
    """The schedule with every weight multiplied."""
    if isinstance(weight, Ramp):
        return weight.model_copy(update={"start": weight.start * factor, "end": weight.end * factor})
    return weight.model_copy(update={"points": tuple((p, w * factor) for p, w in weight.points)})


def weight_at(weight: Weight, progress: float) -> float:
    """The weight at `progress` in [0, 1]."""
    return float(weight) if isinstance(weight, (int, float)) else weight(progress)
