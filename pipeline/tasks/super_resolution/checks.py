"""What is refused before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pipeline.data.files import there
from pipeline.deploy.shipping import check_student
from pipeline.errors import InputError
from pipeline.methods import PICTURES
from pipeline.recipe.reading import with_method
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import upcycle_of
from pipeline.tasks.super_resolution import teacher_facts as describing
from pipeline.tasks.super_resolution.jobs import check_helpers
from students import build
from students.expansion import expand

if TYPE_CHECKING:
    from pipeline.road.run import Run


def check(run: Run, methods: Sequence[str]) -> None:
    """Refuse what a run of these methods (of none: its teachers alone) cannot do. Raises InputError."""
    recipe: Recipe = run.recipe
    check_sources(recipe)
    if recipe.scale == 1 and recipe.data.degradation == "bicubic" and (recipe.data.train or recipe.data.test):
        run.reporter.warn(
            "data.degradation: at scale 1 `bicubic` changes nothing, LR is HR as it is. For restoration give a chain, "
            "such as `degradation: {preset: web}`, or `pairs`."
        )
    if not methods and not recipe.teachers:
        raise InputError("teachers", "at least one teacher", "none")
    settings = {m: with_method(recipe, m).method for m in methods}
    if any(s.name == "dukd" for s in settings.values()) and upcycle_of(recipe) is None:
        raise InputError(
            "data.upcycle",
            "views for dukd, which all methods of a run share",
            "none",
            "Add `--set data.upcycle={}`, or name dukd in compare.methods.",
        )
    asked = not methods or recipe.by_fidelity or any(s.target != "none" for s in settings.values())
    specs = [*(recipe.teachers if asked else ()), *(recipe.compare.beside if methods else ())]
    if specs:
        kind = run.engine.device_kind(recipe.teach.gpus_per_actor)
        for spec in specs:
            if describing.known_facts(spec, recipe.scale, run.planner.store, kind) is None:
                describing.opened(spec, recipe.scale)
    if not methods:
        return
    student = partial(build, recipe.student.name, recipe.scale, **recipe.student.options)
    expand(student(), recipe.student.expand)
    warning = check_student(recipe.student.name, recipe.scale, recipe.student.options, run.output)
    if warning:
        run.reporter.warn(warning)
    for method in methods:
        PICTURES[settings[method].name](settings[method], recipe.train, student)
        check_helpers(with_method(recipe, method))


def check_sources(recipe: Recipe) -> None:
    """Refuse folders that are not there, by their key. Raises InputError."""
    named = [(f"data.{key}", p) for key in ("train", "lr_only", "test") for p in getattr(recipe.data, key)]
    for key in ("pairs", "test_pairs"):
        named += [(f"data.{key}", p) for entry in getattr(recipe.data, key) for p in (entry.lr, entry.hr)]
    for where, source in named:
        if not there(source):
            raise InputError(where, "folders of pictures or picture files", f"nothing at {source}")
