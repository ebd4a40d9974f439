"""What a search asks of a recipe, whichever kind it is: super-resolution or recognition.

Searcher, halving, files and engines know one `Subject`; what differs between the two kinds of recipe is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from pipeline.cache.store import Store
from pipeline.cost import multiply_adds
from pipeline.errors import InputError
from pipeline.progress import Reporter
from pipeline.recipe.reading import changed
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recognition import Recognition
from pipeline.report.table import Metric
from pipeline.road.engines import Engine, Job
from pipeline.road.run import Run
from pipeline.road.tracked import Tracked
from pipeline.tasks.recognition.run import RecognitionRun
from pipeline.tasks.recognition.tasks import METRICS
from pipeline.tasks.super_resolution.distill import TrainJob
from pipeline.tasks.super_resolution.jobs import student_job
from pipeline.tracking import RunTracker, Status
from students import build

HR_SIDE = 96
"""Super-resolution: multiply-adds are those of an output of this side: at x2 a 48 x 48 input, as everywhere else."""
HELD_OUT = "held_out/"


class Student(Job, Protocol):
    """A student's training by value."""

    def output(self) -> Store:
        """Where checkpoints and result go."""

    def result(self) -> dict[str, Any] | None:
        """What a finished training left, or None."""


class Subject(Protocol):
    """What a search has to know of a kind of recipe. `recipe` is of that kind everywhere."""

    gap: str
    """The path that says how much less the student sees than its teachers."""

    def metric(self, recipe: Any) -> Metric:
        """What trials are compared by, higher is better: measured on validation pictures, never on test pictures."""
        ...

    def comparable(self, recipe: Any) -> None:
        """Raises InputError where there are no validation pictures."""

    def altered(self, recipe: Any, values: Mapping[str, Any], where: str) -> Any:
        """The recipe with other values at these paths. Raises InputError where it does not take them."""

    def own(self, recipe: Any, path: str, choices: Sequence[Any]) -> Any:
        """The recipe's value at a path in the form that `choices` have, or None where that form is theirs already."""

    def single(self, recipe: Any) -> Any:
        """The recipe for one training."""

    def check(self, recipe: Any, engine: Engine, reporter: Reporter) -> None:
        """Refuse a recipe for its teachers or its student, before anything is started. Raises InputError."""

    def prepare(
        self, recipe: Any, engine: Engine, reporter: Reporter, open_run: Callable[[], RunTracker]
    ) -> Student:
        """Make what the recipe's own training needs where it is missing; returns that training."""
        ...

    def cost(self, job: Any) -> int:
        """Multiply-adds of the student for one input."""
        ...


def subject_of(recipe: Recipe | Recognition) -> Subject:
    """The subject that knows this recipe."""
    return RECOGNITION if isinstance(recipe, Recognition) else SUPER_RESOLUTION


class SuperResolution:
    """Trials of a super-resolution recipe."""

    gap = "scale"

    def metric(self, recipe: Recipe) -> Metric:
        return Metric("psnr_y", "PSNR", 3, "dB")

    def comparable(self, recipe: Recipe) -> None:
        if not recipe.data.holdout:
            raise InputError("data.holdout", "above 0: trials are compared on held-out pictures", "0")

    def altered(self, recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
        values = dict(values)
        specs = recipe.model_dump(mode="json")["teachers"]
        if "teachers" in values:
            values["teachers"] = _some(specs, values["teachers"], where)
        if (scale := values.get("scale")) not in (None, recipe.scale) and "teachers" not in values:
            values["teachers"] = [_at_scale(t, recipe.scale, int(str(scale))) for t in specs]
        return changed(recipe, values, where)

    def own(self, recipe: Recipe, path: str, choices: Sequence[Any]) -> Any:
        if path == "teachers":  # choices are positions
            return list(range(len(recipe.teachers)))
        if path == "fusion":  # choices may leave out what has a default
            fusion = recipe.fusion.model_dump(mode="json")
            return next((c for c in choices if isinstance(c, dict) and c.items() <= fusion.items()), None)
        return None

    def single(self, recipe: Recipe) -> Recipe:
        return recipe

    def check(self, recipe: Recipe, engine: Engine, reporter: Reporter) -> None:
        Run(recipe, engine, reporter).check([recipe.method.name])

    def prepare(
        self, recipe: Recipe, engine: Engine, reporter: Reporter, open_run: Callable[[], RunTracker]
    ) -> Student:
        method = recipe.method.name
        run = Run(recipe, engine, reporter, open_run)
        with _recorded(run.tracked):
            tiles, taught, fused = run.prepare([method])
        if tiles.held_out is None:
            raise InputError("data.holdout", "held-out pictures, by which trials are compared", "none")
        return student_job(recipe, tiles, taught, fused, method, recipe.seed)

    def cost(self, job: TrainJob) -> int:
        recipe = job.spec
        side = HR_SIDE // recipe.scale
        student = build(recipe.student.name, recipe.scale, **recipe.student.options)
        return multiply_adds(student, (1, 3, side, side))


class Recogniser:
    """Trials of a recognition recipe."""

    gap = "gap"

    def metric(self, recipe: Recognition) -> Metric:
        return METRICS[recipe.task][0]

    def comparable(self, recipe: Recognition) -> None:
        """Always: a recognition recipe keeps validation pictures."""

    def altered(self, recipe: Recognition, values: Mapping[str, Any], where: str) -> Recognition:
        return changed(recipe, values, where)

    def own(self, recipe: Recognition, path: str, choices: Sequence[Any]) -> Any:
        if path != "gap":
            return None
        return next((gap for gap in recipe.gaps if gap in choices), None)

    def single(self, recipe: Recognition) -> Recognition:
        return recipe.model_copy(update={"gap": recipe.gaps[0]})

    def check(self, recipe: Recognition, engine: Engine, reporter: Reporter) -> None:
        RecognitionRun(recipe, engine, reporter).check([recipe.method.name])

    def prepare(
        self, recipe: Recognition, engine: Engine, reporter: Reporter, open_run: Callable[[], RunTracker]
    ) -> Student:
        run = RecognitionRun(recipe, engine, reporter, open_run)
        with _recorded(run.tracked):
            return run.prepare(recipe.method.name, recipe.gaps[0], recipe.seed)

    def cost(self, job: Any) -> int:
        return multiply_adds(job.build(), (1, 3, *job.size))


SUPER_RESOLUTION: Subject = SuperResolution()
RECOGNITION: Subject = Recogniser()


@contextmanager
def _recorded(tracked: Tracked) -> Iterator[None]:
    """Close the records of what is trained on the way: an aggregation network, a teacher, an assistant."""
    made: Status = "FAILED"
    try:
        yield
        made = "FINISHED"
    finally:
        for record in tracked.trainings.values():
            record.finish(made)


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
