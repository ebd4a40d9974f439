"""What `faculty run --auto` tries for super-resolution, as data: {name: {path of the recipe: value}}, a line each.

A value may be at any path (`method`, `train.lr`, `student.options.features`). What a recipe does not take (MTKD without
teachers, scratch without HR) is left out of its ladder and said.
"""

from __future__ import annotations

from typing import Any


def _falls(start: float, begin: float, until: float) -> dict[str, Any]:
    """A weight that falls to 0: the distillation comes early, HR late."""
    return {"kind": "linear", "start": start, "end": 0.0, "begin": begin, "until": until}


CANDIDATES: dict[str, dict[str, Any]] = {
    "scratch": {"method": {"name": "scratch"}},
    "kd": {"method": {"name": "kd"}},
    "kd-handover": {"method": {"name": "kd", "distill": _falls(1.0, 0.4, 0.7)}},
    "mtkd": {"method": {"name": "mtkd"}},
    "mtkd-low": {"method": {"name": "mtkd", "low": 0.33}},
    "mtkd-low-handover": {"method": {"name": "mtkd", "low": 0.33, "handover": [0.4, 0.7]}},
}
