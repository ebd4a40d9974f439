"""Search spaces: read one, fit it to a recipe, turn its values into recipes. `tune_spaces` says what one looks like.

Everything is checked here before any trial starts: the module, each kind and its arguments, each path against the
recipe's own model, and the values at both ends of each range.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from pipeline.errors import FacultyError, InputError
from pipeline.recipe.schedule import peak, scaled_to
from pipeline.recipe.settings import Section
from pipeline.tasks.registry import task_of

BUILT_IN = ("loss_weights", "resolution_gap", "joint", "fusion")
KINDS = {"uniform": 2, "loguniform": 2, "randint": 2, "choice": None}
R = TypeVar("R", bound=Section)
_FORM = "(kind, *arguments) with one of the kinds uniform, loguniform, randint, choice"


DECIDED = {
    "train.steps": "--budget says how long trials train; best.yaml has the recipe's own length.",
    "train.evaluate_every": "Trials are looked at when their sweep asks for it.",
    "seed": "All trials have the recipe's seed, or they could not be compared.",
}
"""Paths that a sweep decides itself, and how."""


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
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return low <= value <= high and (self.kind != "randint" or float(value).is_integer())


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


def load_space(name: str, recipe: Any, check: Callable[[Any], object] = lambda _: None) -> Space:
    """The space called `name` (built in, or a Python file), fitted to `recipe`.

    `check` may refuse a recipe for what its model does not know, such as a teacher that does not exist. Raises
    InputError naming the space and the path: for an unknown name, a file that cannot be imported, a wrong kind or
    argument, a path that the recipe does not have, and values that the recipe does not take.
    """
    module = _module(name)
    chosen, notes = _chosen(module, name, recipe)
    spaces = [getattr(module, "SPACE", None), *chosen]
    if getattr(module, "SPACE", None) is None and not hasattr(module, "BY"):
        raise InputError(name, "SPACE = {recipe path: (kind, *arguments)}", "no SPACE in this module")
    axes: dict[str, Axis] = {}
    for space in spaces:
        if space is None:
            continue
        if not isinstance(space, Mapping):
            raise InputError(f"{name}: SPACE", "a table of recipe paths", type(space).__name__)
        for path, entry in space.items():
            if said := DECIDED.get(str(path)):
                raise InputError(name, "paths that a trial may have values of its own for", str(path), said)
            axes[str(path)] = _axis(name, str(path), entry)
    optional = tuple(getattr(module, "WHERE_IT_FITS", ()))
    kept = []
    for axis in axes.values():
        if axis.path in getattr(module, "NOT_FROM_ZERO", ()) and _is_zero(recipe, axis.path):
            notes.append(f"{axis.path}: left out, the recipe has 0 there")
            continue
        fitting, note = _fitted(name, axis, recipe, check, axis.path in optional)
        kept += [fitting] if fitting else []
        notes += [note] if note else []
        if fitting and not fitting.holds(_own(recipe, fitting)):
            notes.append(
                f"{axis.path}: the recipe's own value is not in the space; the first trial has another one"
            )
    if not kept:
        why = "; ".join(notes) or f"it says nothing for method {recipe.method.name}"
        raise InputError(f"space {name}", "at least one recipe path to vary", f"none that fits: {why}")
    return Space(Path(name).stem, tuple(kept), tuple(notes))


def with_values(recipe: R, values: Mapping[str, Any], where: str = "trial") -> R:
    """The recipe with other values at these paths. Raises InputError where it does not take them.

    Where the recipe has a schedule, a number is the schedule's new peak; its shape stays.
    """
    content = recipe.model_dump(mode="json")
    shaped = {path: scaled_to(_at(content, path), value) for path, value in values.items()}
    return task_of(recipe).altered(recipe, shaped, where)


def own_value(recipe: Any, axis: Axis) -> Any:
    """The recipe's own value where it lies on the axis (a schedule's peak), else the axis's middle."""
    own = _own(recipe, axis)
    return own if axis.holds(own) else axis.middle()


def _own(recipe: Any, axis: Axis) -> Any:
    own = task_of(recipe).own(recipe, axis.path, axis.ends())
    if own is None:
        own = _at(recipe.model_dump(mode="json"), axis.path)
    return own if axis.holds(own) else peak(own)


def value_at(recipe: Any, path: str) -> Any:
    """What the recipe says at a path, as plain data. Raises KeyError where it has no such place."""
    return _value_at(recipe.model_dump(mode="json"), path)


def _value_at(node: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node[part]
        else:
            raise KeyError(path)
    return node


def _at(content: Any, path: str) -> Any:
    """As `_value_at`; None where there is no such place."""
    try:
        return _value_at(content, path)
    except KeyError:
        return None


def _is_zero(recipe: Any, path: str) -> bool:
    value = peak(_at(recipe.model_dump(mode="json"), path))
    return isinstance(value, (int, float)) and value == 0


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
    except (Exception, SystemExit) as error:  # the file is the user's code and may raise anything
        raise InputError(name, "a module that Python can import", _said_by(error, file)) from error
    return module


def _said_by(error: BaseException, file: Path) -> str:
    """What a module's own code stumbled over, with the line."""
    text = str(error) or "no reason given"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    if not isinstance(error, (SyntaxError, UnicodeError)) and lines:
        return f"in line {lines[-1]}: {text}"
    return text


def _chosen(module: ModuleType, name: str, recipe: Any) -> tuple[list[Any], list[str]]:
    """The spaces of BY for what the recipe says, and the sentences that stand in place of one."""
    found, notes = [], []
    for paths, cases in getattr(module, "BY", {}).items():
        said = [_said(name, path, recipe) for path in ([paths] if isinstance(paths, str) else paths)]
        case = cases.get(said[0] if isinstance(paths, str) else tuple(said))
        if isinstance(case, str):
            notes.append(case)
        else:
            found.append(case)
    return found, notes


def _said(name: str, path: str, recipe: Any) -> Any:
    try:
        value = value_at(recipe, path)
    except KeyError:
        if path != "task":
            raise InputError(f"{name}: BY", "a path of the recipe", path) from None
        return "sr"  # recipes that do not say what they are for
    return len(value) if isinstance(value, list) else value


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
    name: str, axis: Axis, recipe: Any, check: Callable[[Any], object], optional: bool
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
