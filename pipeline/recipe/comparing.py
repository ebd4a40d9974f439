"""By what comparisons are equal: the same steps, the same work, or the same time."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from pipeline.recipe.settings import Later


class Equal(Later):
    """What all trainings of a comparison have alike."""

    later: ClassVar[tuple[str, ...]] = ("equal", "count")

    equal: Literal["steps", "work", "time"] = "steps"
    """`steps`: each student trains for `train.steps`. `work`: for so many steps that the multiply-adds of its method, a
    network that it trains first included, are those of the recipe's own method. `time`: the same by the clock, from a
    pace that is measured once and kept in the run's folder.
    """
    count: tuple[Literal["teaching", "fusing"], ...] = ()
    """With `work` and `time`: what else each method pays for, of what all of them share: `teaching` (training teachers
    and running them on the training samples), `fusing` (training and running the network that fuses them).
    """

    @model_validator(mode="after")
    def _counted(self) -> Equal:
        if self.count and self.equal == "steps":
            raise ValueError("count needs equal: work or equal: time; of equal steps nobody pays more")
        return self


def equal_steps(compare: Equal, method: str, steps: int, what: str) -> str:
    """How long trainings are, in words; `what` is trained."""
    if compare.equal == "steps":
        return f"{steps:,} steps per {what}"
    return f"equal {compare.equal} per {what}, that of {method} in {steps:,} steps"
