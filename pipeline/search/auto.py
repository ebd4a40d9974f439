"""What `faculty run --auto` does around its ladder: candidates, what they share, the recipe that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml

from pipeline.cache.fingerprint import fingerprint
from pipeline.errors import FacultyError, InputError
from pipeline.progress import Once, Reporter, lasting
from pipeline.recipe.reading import changed
from pipeline.road.ahead import teaching
from pipeline.road.run import Run
from pipeline.search.ladder import SCRATCH, Ladder
from pipeline.search.space import with_values
from pipeline.steps.engines import Engine
from pipeline.steps.forecast import ASSUMED_GPU, MEASURED_CORE
from pipeline.steps.values import Prepared
from pipeline.tasks.registry import task_of
from pipeline.tracking import RunTracker, Status

FIRST = (4, 40)
"""Least and most steps of the first rung, which measures paces."""
FIRST_SHARE = 0.02
"""Of the budget, what the steps of the first rung may take, as far as that is known."""
FINISH = 12.0
"""Seconds that a small student's scores, files and report take at least."""
TEACHING, SCORING = "teach and fuse", "score the teachers"


def candidates_of(
    recipe: Any, check: Callable[[Any], object], named: tuple[str, ...] = ()
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """({name: values}, {name: why it is left out}): scratch, the recipe's own method, its variants, the task's own.

    `check` refuses recipes; `named` are those to try, scratch always. Raises InputError for a name that there is not.
    """
    own = recipe.method.name
    found: dict[str, Mapping[str, Any]] = {SCRATCH: {"method": {"name": SCRATCH}}, own: {}}
    for name, method in recipe.compare.variants.items():
        found[name] = {"method": method.model_dump(mode="json")}
    for name, values in task_of(recipe).candidates(recipe).items():
        if name != SCRATCH:
            found[name if name not in found else f"{name}-default"] = values
    kept: dict[str, Mapping[str, Any]] = {}
    left_out: dict[str, str] = {}
    alike: dict[str, str] = {}
    if wrong := [name for name in named if name not in found]:
        remedy = "Others: as the recipe's `method`, or by names of their own in compare.variants."
        raise InputError("--candidates", f"some of {', '.join(found)}", ", ".join(wrong), remedy)
    for name in [name for name in found if not named or name in (*named, SCRATCH)]:
        try:
            candidate = with_values(recipe, found[name], name)
            content = candidate.model_dump(mode="json")
            print_ = fingerprint({k: v for k, v in content.items() if k != "compare"})
            if print_ in alike:  # the recipe's own method, say, which is news only to who asked
                if name in named:
                    left_out[name] = f"is {alike[print_]}"
                continue
            check(candidate)
            kept[name], alike[print_] = found[name], name
        except FacultyError as error:
            if name in named:
                raise InputError("--candidates", "those that this recipe takes", f"{name}: {error}") from None
            left_out[name] = str(error)
    if not kept:
        raise InputError("--candidates", "at least one that this recipe takes", "; ".join(left_out.values()))
    return kept, left_out


def first_steps(recipe: Any, candidates: int, seconds: float, on_gpu: bool) -> int:
    """Steps of the first rung: few, by what `faculty plan` knows of a step."""
    todo = task_of(recipe).work(recipe, 1, 512, 512, ())
    step = todo.step_ops / (ASSUMED_GPU.train if on_gpu else MEASURED_CORE.train)
    least, most = FIRST
    return max(least, min(most, int(FIRST_SHARE * seconds / (candidates * step))))


def share(ladder: Ladder, engine: Engine, reporter: Reporter, parent: Callable[[], RunTracker]) -> None:
    """Teach and fuse what the candidates need, score the teachers. Raises InputError where the budget is too small."""
    recipe, task = ladder.plan.recipe, ladder.plan.task
    runs, told = {}, Once(reporter)
    for name in ladder.candidates:
        own = task.single(ladder.recipe_for(name, ladder.first, ladder.first))
        runs[name] = Run(own, engine, told, parent)
    with ladder.stage(TEACHING):
        asked = {name: task.needs(run.recipe, [run.recipe.method.name], True) for name, run in runs.items()}
        different = {needs: name for name, needs in reversed(asked.items())}
        most = different[max(different, key=lambda needs: (needs.outputs, needs.fused, needs.teachers))]
        ahead = teaching(runs[most], runs[most].recipe.method.name)
        if ahead.seconds > max(ladder.left - FINISH, 1):
            raise too_slow(ladder, ahead.seconds)
        if ahead.outputs or ahead.trainings:
            reporter.say(f"teaching will take about {lasting(ahead.seconds)} here")
        for name in different.values():
            _shared(runs[name])
    with ladder.stage(SCORING):  # never students': what is chosen is chosen without test pictures
        run = Run(task.single(recipe), engine, told, parent)
        run.tested = task.tested(run)
        task.score(run, _shared(run, scored=True), [])
    scored = ladder.state.stages[SCORING]
    ladder.state.reserve = max(FINISH, 0.04 * ladder.seconds) + scored / 2
    if engine.name != "inline":
        ladder.state.reserve += MEASURED_CORE.start / 2  # the last training's own processes
    ladder.write()


def _shared(run: Run, scored: bool = False) -> Prepared:
    """What a recipe's method shares with others, made where it is missing."""
    made: Status = "FAILED"
    try:
        prepared = run.shared([run.recipe.method.name], scored)
        made = "FINISHED"
        return prepared
    finally:  # an aggregation network's record, a teacher's
        for record in run.tracked.trainings.values():
            record.finish(made)


def too_slow(ladder: Ladder, seconds: float) -> InputError:
    """What is said where the teachers alone take longer than there is time."""
    return InputError(
        "--minutes",
        f"more than {(ladder.clock() + seconds) / 60:.2g}: teaching alone will take {lasting(seconds)} here",
        f"{ladder.seconds / 60:g}",
        "Give it more, or fewer pictures, or smaller teachers, or a machine with GPUs (--address). What `faculty "
        "teach` has cached costs no time again.",
    )


def best_recipe(ladder: Ladder) -> Any:
    """The recipe of the last training, which `faculty run` takes: the best candidate's values, the steps that fit."""
    final = ladder.decide()
    recipe = ladder.recipe_for(final.candidate, final.steps, final.evaluate_every)
    alone = {"compare.methods": [], "compare.variants": {}, "compare.seeds": 1}
    return changed(recipe, alone, "best.yaml")


def best_file(ladder: Ladder, recipe: Any, line: str) -> str:
    """Write best.yaml; returns where."""
    body = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)
    ladder.store.write_bytes("best.yaml", f"# {line}\n{body}".encode())
    return ladder.store.where("best.yaml")
