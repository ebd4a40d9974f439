"""A search's values in a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.reading import changed
from pipeline.recipe.recipe import Recipe
from students import names, options


def own(recipe: Recipe, path: str, choices: Sequence[Any]) -> Any:
    """What the recipe says at a path that needs more than a look: teachers are positions there, choices of fusions may
    leave out what has a default, and so may the recipe of a student's options.
    """
    if path == "teachers":
        return list(range(len(recipe.teachers)))
    if path == "fusion":
        fusion = recipe.fusion.model_dump(mode="json")
        return next((c for c in choices if isinstance(c, dict) and c.items() <= fusion.items()), None)
    option = path.removeprefix("student.options.")
    if option != path and option not in recipe.student.options and recipe.student.name in names():
        return options(recipe.student.name).get(option)
    return None


def altered(recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
    """The recipe with other values; teachers may be chosen by position, and follow another scale.

    Raises InputError where the recipe does not take them.
    """
    values = dict(values)
    specs = recipe.model_dump(mode="json")["teachers"]
    if "teachers" in values:
        values["teachers"] = _some(specs, values["teachers"], where)
    if (scale := values.get("scale")) not in (None, recipe.scale) and "teachers" not in values:
        values["teachers"] = [_at_scale(t, recipe.scale, int(str(scale))) for t in specs]
    return changed(recipe, values, where)


def _some(teachers: list[Any], chosen: Any, where: str) -> list[Any]:
    if not isinstance(chosen, list) or not all(isinstance(i, (int, dict)) for i in chosen):
        raise InputError(f"{where}: teachers", "a list of positions, as in [0, 2]", repr(chosen))
    if wrong := [i for i in chosen if isinstance(i, int) and not 0 <= i < len(teachers)]:
        raise InputError(f"{where}: teachers", f"positions below {len(teachers)}", str(wrong[0]))
    return [teachers[i] if isinstance(i, int) else i for i in chosen]


def _at_scale(teacher: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """The same teacher at another scale: its name with the other number after an x."""
    if "checkpoint" not in teacher:  # a factory is asked for the scale by its options
        return teacher
    renamed = re.sub(rf"(?<=[xX]){old}(?![0-9])", str(new), teacher["checkpoint"])
    return {**teacher, "checkpoint": renamed}
