"""What pydantic complains of, in a recipe's own words: keys as they stand in the file, the branch of a union that was
meant.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

SCHEDULE = (
    "a number, or a schedule: {kind: linear or cosine, start: ..., end: ...} (with begin and until if need be), or "
    "{kind: piecewise, points: [[progress, weight], ...]}"
)
_KINDS = {"linear": "Ramp", "cosine": "Ramp", "piecewise": "Piecewise"}
_PLAIN = ("float", "int", "str", "bool", "constrained-float", "constrained-int", "constrained-str")


def telling(errors: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], int]:
    """(the complaint that tells most, how many more there are of other keys). Of a value that fits no branch of a
    union the branch counts that its form says; a weight that is neither number nor schedule is told both.
    """
    first = dict(errors[0])
    place = next((i for i, part in enumerate(first["loc"]) if _is_branch(part)), None)
    if place is None:
        return first, len(errors) - 1
    before = first["loc"][:place]
    same = [e for e in errors if e["loc"][:place] == before and len(e["loc"]) > place]
    others = len(errors) - len(same)
    value = first["input"] if len(first["loc"]) == place + 1 else None
    schedules = [e for e in same if any(name in str(e["loc"][place]) for name in ("Ramp", "Piecewise"))]
    if schedules:
        meant = _KINDS.get(str(value.get("kind"))) if isinstance(value, dict) else None
        chosen = [e for e in schedules if meant and meant in str(e["loc"][place])]
        if not chosen:
            return {**first, "loc": before, "msg": SCHEDULE, "type": "schedule"}, others
        return dict(chosen[0]), others
    if isinstance(value, (list, tuple)):
        lists = [e for e in same if str(e["loc"][place]).startswith(("tuple", "list"))]
        first = dict(lists[0]) if lists else first
    return first, others


def key(location: Sequence[int | str], tags: Collection[str]) -> str:
    """`method.hr.end`: without pydantic's names of branches and without `tags` (of methods and fusions)."""
    parts = [str(p) for p in location if not _is_branch(p) and p not in tags]
    if location and location[-1] in tags:  # nothing below it was at fault
        parts = [str(p) for p in location if not _is_branch(p)]
    return ".".join(parts) or "the recipe"


def _is_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part in _PLAIN or "[" in part)
