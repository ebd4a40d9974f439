"""Search spaces: read one, fit it to a recipe, turn its values into recipes. `tune_spaces` says what one looks like.

Everything is checked here before any trial starts: the module, each kind and its arguments, each path against the
recipe's own model, and the values at both ends of each range.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import FacultyError, InputError
from pipeline.recipe import Recipe
from pipeline.recipe_file import changed

BUILT_IN = ("loss_weights", "resolution_gap", "joint", "fusion")
KINDS = {"uniform": 2, "loguniform": 2, "randint": 2, "choice": None}
_FORM = "(kind, *arguments) with one of the kinds uniform, loguniform, randint, choice"


@dataclass(frozen=True, slots=True)
class Axis:
    """What may be tried at one recipe path."""

    path: str
    kind: str
    arguments: tuple[Any, ...]

    def ends(self) -> tuple[Any, ...]:
        """The values that stand for all: both ends and the middle of a range, every choice."""
        if self.kind == "choice":
            return self.arguments
        low, high = self.arguments
        return (low, high - 1) if self.kind == "randint" else (low, self.middle(), high)

    def middle(self) -> Any:
        """A value inside: no whole number where the range is one of floats."""
        if self.kind == "choice":
            return self.arguments[0]
        low, high = self.arguments
        if self.kind == "randint":
            return (low + high - 1) // 2
        return math.sqrt(low * high) if self.kind == "loguniform" else low + (high - low) * 0.4997

    def holds(self, value: Any) -> bool:
        """Whether the recipe's own value lies in here."""
        if self.kind == "choice":
            return value in self.arguments
        low, high = self.ends()[0], self.ends()[-1]
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True)
class Space:
    """Axes that fit a recipe."""

    name: str
    axes: tuple[Axis, ...]
    notes: tuple[str, ...] = ()
    """What was left out, and why."""

    def dump(self) -> dict[str, Any]:
        """Plain data, for fingerprints and records."""
        return {a.path: [a.kind, *a.arguments] for a in self.axes}


def load_space(name: str, recipe: Recipe, check: Callable[[Recipe], object] = lambda _: None) -> Space:
    """The space called `name` (built in, or a Python file), fitted to `recipe`.

    `check` may refuse a recipe for what its model does not know, such as a teacher that does not exist. Raises
    InputError naming the space and the path: for an unknown name, a file that cannot be imported, a wrong kind or
    argument, a path that the recipe does not have, and values that the recipe does not take.
    """
    module = _module(name)
    spaces = [getattr(module, "SPACE", None), *_chosen(module, name, recipe)]
    if getattr(module, "SPACE", None) is None and not hasattr(module, "BY"):
        raise InputError(name, "SPACE = {recipe path: (kind, *arguments)}", "no SPACE in this module")
    axes: dict[str, Axis] = {}
    for space in spaces:
        if space is None:
            continue
        if not isinstance(space, Mapping):
            raise InputError(f"{name}: SPACE", "a table of recipe paths", type(space).__name__)
        for path, entry in space.items():
            axes[str(path)] = _axis(name, str(path), entry)
    optional = tuple(getattr(module, "WHERE_IT_FITS", ()))
    kept, notes = [], []
    for axis in axes.values():
        fitting, note = _fitted(name, axis, recipe, check, axis.path in optional)
        kept += [fitting] if fitting else []
        notes += [note] if note else []
    if not kept:
        why = "; ".join(notes) or f"it says nothing for method {recipe.method.name}"
        raise InputError(f"space {name}", "at least one recipe path to vary", f"none that fits: {why}")
    return Space(Path(name).stem, tuple(kept), tuple(notes))


def with_values(recipe: Recipe, values: Mapping[str, Any], where: str = "trial") -> Recipe:
    """The recipe with other values at these paths. Raises InputError where it does not take them."""
    values = dict(values)
    content = recipe.model_dump(mode="json")
    if "teachers" in values:
        values["teachers"] = _some(content["teachers"], values["teachers"], where)
    if (scale := values.get("scale")) not in (None, recipe.scale) and "teachers" not in values:
        values["teachers"] = [_at_scale(t, recipe.scale, int(str(scale))) for t in content["teachers"]]
    return changed(recipe, values, where)


def value_at(recipe: Recipe, path: str) -> Any:
    """What the recipe says at a path, as plain data. Raises KeyError where it has no such place."""
    node: Any = recipe.model_dump(mode="json")
    for part in path.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node[part]
        else:
            raise KeyError(path)
    return node


def text(value: Any) -> str:
    """A value in a table's cell."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and "kind" in value:
        return str(value["kind"])
    return value if isinstance(value, str) else json.dumps(value)


def _module(name: str) -> ModuleType:
    if name in BUILT_IN:
        return importlib.import_module(f"tune_spaces.{name}")
    file = Path(name)
    if not file.is_file():
        raise InputError("--space", f"one of {', '.join(BUILT_IN)}, or a Python file", name)
    spec = importlib.util.spec_from_file_location(f"space_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError("--space", "a Python file (.py)", name)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            name, "a module that Python can import", f"{type(error).__name__}: {error}"
        ) from error
    return module


def _chosen(module: ModuleType, name: str, recipe: Recipe) -> list[Any]:
    found = []
    for path, cases in getattr(module, "BY", {}).items():
        try:
            value = value_at(recipe, path)
        except KeyError:
            if path != "task":
                raise InputError(f"{name}: BY", "a path of the recipe", path) from None
            value = "sr"  # recipes that do not say what they are for
        found.append(cases.get(len(value) if isinstance(value, list) else value))
    return found


def _axis(name: str, path: str, entry: Any) -> Axis:
    where = f"{name}: {path}"
    if not isinstance(entry, (tuple, list)) or not entry or entry[0] not in KINDS:
        raise InputError(where, _FORM, repr(entry))
    kind, *arguments = entry
    if kind == "choice":
        if len(arguments) < 2:
            raise InputError(where, "at least two choices", repr(entry))
        try:  # as they come back from a file
            return Axis(path, kind, tuple(json.loads(json.dumps(arguments))))
        except (TypeError, ValueError):
            raise InputError(where, "choices that YAML can hold", repr(entry)) from None
    numbers = [a for a in arguments if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if len(arguments) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)):
        raise InputError(where, f"({kind!r}, low, high)", repr(entry))
    low, high = arguments
    if kind == "randint" and not (isinstance(low, int) and isinstance(high, int) and low + 1 < high):
        raise InputError(where, "two whole numbers with low + 1 < high", repr(entry))
    if low >= high or (kind == "loguniform" and low <= 0):
        expected = "0 < low < high" if kind == "loguniform" else "low < high"
        raise InputError(where, expected, repr(entry))
    return Axis(path, kind, tuple(arguments) if kind == "randint" else (float(low), float(high)))


def _fitted(
    name: str, axis: Axis, recipe: Recipe, check: Callable[[Recipe], object], optional: bool
) -> tuple[Axis | None, str]:
    """The axis with the values that fit, and a note on what does not. Raises InputError unless `optional`."""
    where = f"{name}: {axis.path}"
    good, bad = [], []
    for value in axis.ends():
        try:
            check(with_values(recipe, {axis.path: value}, where))
            good.append(value)
        except FacultyError as error:
            if not optional:
                raise InputError(where, "values that this recipe takes", f"{text(value)}: {error}") from error
            bad.append(f"{text(value)} ({error})")
    if not bad:
        return axis, ""
    note = f"{axis.path}: left out {'; '.join(bad)}"
    return (Axis(axis.path, "choice", tuple(good)) if len(good) > 1 else None), note


def _some(teachers: list[Any], chosen: Any, where: str) -> list[Any]:
    if not isinstance(chosen, list) or not all(isinstance(i, (int, dict)) for i in chosen):
        raise InputError(f"{where}: teachers", "a list of positions, as in [0, 2]", repr(chosen))
    if wrong := [i for i in chosen if isinstance(i, int) and not 0 <= i < len(teachers)]:
        raise InputError(f"{where}: teachers", f"positions below {len(teachers)}", str(wrong[0]))
    return [teachers[i] if isinstance(i, int) else i for i in chosen]


def _at_scale(teacher: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """The same teacher at another scale: its name with the other number after an x."""
    renamed = re.sub(rf"(?<=[xX]){old}(?![0-9])", str(new), teacher["checkpoint"])
    return {**teacher, "checkpoint": renamed}
