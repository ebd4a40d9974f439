"""What a recognition run compares: methods, seeds, and how far each gets from how little."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import field_validator

from pipeline.recipe.comparing import Equal
from pipeline.recipe.recognition_methods import Method, MethodName
from pipeline.recipe.settings import Name, Positive
from pipeline.tasks.recognition.settings import GAPS


class RecognitionCompare(Equal):
    """What `faculty run` trains beside the recipe's own method, at the same budget."""

    later: ClassVar[tuple[str, ...]] = (*Equal.later, "gaps")

    methods: tuple[Name, ...] = ("scratch", "kd")
    """Baselines: methods by name, or names of `variants`."""
    variants: dict[Name, Method] = {}
    """Methods with settings of their own under names of their own, for ablations."""
    seeds: Positive = 1
    """Seeds per method: seed, seed + 1, ..."""
    settings: dict[MethodName, dict[str, Any]] = {}
    """Settings of methods that are not the recipe's own, by name; defaults where left out."""
    gaps: tuple[Positive, ...] = ()
    """Gaps beside `gap` at which each method is trained, on the same cached outputs of the teachers, to see what
    accuracy costs: [1, 2, 4, 8]. One for which the pictures are too small is left out, and the run says so."""

    @field_validator("gaps")
    @classmethod
    def _known(cls, gaps: tuple[int, ...]) -> tuple[int, ...]:
        if unknown := [gap for gap in gaps if gap not in GAPS]:
            raise ValueError(f"of {', '.join(map(str, sorted(GAPS)))}, found {', '.join(map(str, unknown))}")
        if len(set(gaps)) < len(gaps):
            raise ValueError(f"different values, found {', '.join(map(str, gaps))}")
        return gaps
