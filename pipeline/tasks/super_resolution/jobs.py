"""The trainings that a recipe asks for, as jobs: PISR's teacher, and each student by method and seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cache.fingerprint import file_sha256
from pipeline.errors import InputError
from pipeline.recipe.methods import PISR
from pipeline.recipe.recipe import Recipe, Student
from pipeline.steps.job import STUDENT, located
from pipeline.steps.values import Cached, Columns, Outputs, Prepared
from pipeline.tasks.super_resolution.held_out import REFERENCE
from pipeline.tasks.super_resolution.privileged import decoder_of, load_privileged
from pipeline.tasks.super_resolution.training import TrainJob, job_fingerprint
from students import build

if TYPE_CHECKING:
    from pipeline.tasks.base import Task


def teacher_job(task: Task, recipe: Recipe, tiles: Cached, method: str) -> TrainJob | None:
    """The training of PISR's teacher, shared by all students that ask for it; None where none is to be trained."""
    if not isinstance(recipe.method, PISR) or recipe.method.checkpoint:
        return None
    columns = {"lr": tiles.columns("lr"), "hr": tiles.columns("hr")}
    print_ = job_fingerprint(recipe, "teacher", recipe.seed, {n: c.train for n, c in columns.items()})
    return TrainJob(
        task=task,
        label=f"{recipe.method.teacher}-teacher-{recipe.student.label}",
        role="teacher",
        method=method,
        recipe=located(recipe),
        seed=recipe.seed,
        gap=recipe.scale,
        columns=columns,
        folder=f"privileged/{print_}",
        fingerprint=print_,
    )


def assistant_job(task: Task, recipe: Recipe, prepared: Prepared, method: str) -> TrainJob | None:
    """The training of the method's assistant, shared by all its students; None where it has none."""
    spec = getattr(recipe.method, "assistant", None)
    if spec is None:
        return None
    own = recipe.model_copy(
        update={
            "student": Student(name=spec.name, options=spec.options),
            "method": recipe.method.model_copy(update={"assistant": None}),
            "train": spec.train or recipe.train,
        }
    )
    columns = _columns(own, prepared, None)
    print_ = job_fingerprint(own, "assistant", recipe.seed, {n: c.train for n, c in columns.items()})
    return TrainJob(
        task=task,
        label=f"assistant-{own.student.label}",
        role="assistant",
        method=method,
        recipe=located(own),
        seed=recipe.seed,
        gap=recipe.scale,
        columns=columns,
        folder=f"assistants/{print_}",
        fingerprint=print_,
    )


def _columns(recipe: Recipe, prepared: Prepared, helper: Outputs | None) -> dict[str, Columns]:
    """What a training reads: tiles, and the outputs that its method learns from, the assistant's where it has one."""
    tiles = prepared.samples
    columns = {"lr": tiles.columns("lr"), "hr": tiles.columns("hr")}
    outputs = {"teacher": one_teacher, "fused": lambda *_: prepared.fused}.get(recipe.method.target)
    if outputs is not None:
        target = helper if helper is not None and helper.cached else outputs(recipe, prepared)
        assert target is not None and target.cached is not None
        columns["target"] = target.cached.columns("sr")
    return columns


def check_helpers(recipe: Recipe) -> None:
    """Refuse an assistant that cannot be built, and the checkpoint of a PISR teacher that does not fit.

    Raises InputError.
    """
    if (assistant := getattr(recipe.method, "assistant", None)) is not None:
        build(assistant.name, recipe.scale, **assistant.options)
    if not isinstance(recipe.method, PISR):
        return
    decoder_of(recipe)()
    if recipe.scale == 1 and recipe.method.teacher == "privileged":
        raise InputError(
            "method.teacher: privileged",
            "a scale of 2, 3 or 4, whose HR it shrinks",
            "1",
            "Take method.teacher: larger, or another method.",
        )
    if recipe.method.checkpoint:
        if not Path(recipe.method.checkpoint).is_file():
            raise InputError("method.checkpoint", "a file", f"{recipe.method.checkpoint}: no such file")
        load_privileged(recipe, recipe.method.checkpoint)


def student_job(task: Task, recipe: Recipe, prepared: Prepared, method: str, seed: int) -> TrainJob:
    """The training of one student by one method (or variant) from one seed."""
    helper = prepared.helpers.get(method)
    columns = _columns(recipe, prepared, helper)
    inputs = {name: c.train for name, c in columns.items()}
    if recipe.by_fidelity:  # looked at, not learned from: held-out figures are of it
        judge = reference(prepared)
        assert judge.cached is not None
        columns[REFERENCE] = judge.cached.columns("sr")
        inputs[REFERENCE] = columns[REFERENCE].held_out or ""
    taught_by = None
    if helper is not None and helper.job is not None and helper.job.role == "teacher":
        taught_by = helper.job.output().uri
        inputs["privileged"] = helper.job.fingerprint
    elif isinstance(recipe.method, PISR) and recipe.method.checkpoint:
        taught_by = str(Path(recipe.method.checkpoint).absolute())
        inputs["privileged"] = file_sha256(recipe.method.checkpoint)
    print_ = job_fingerprint(recipe, STUDENT, seed, inputs)
    label = f"{method}-{recipe.student.label}-s{seed}"
    return TrainJob(
        task=task,
        label=label,
        role=STUDENT,
        method=method,
        recipe=located(recipe),
        seed=seed,
        gap=recipe.scale,
        columns=columns,
        folder=f"trainings/{label}-{print_}",
        fingerprint=print_,
        taught_by=taught_by,
    )


def reference(prepared: Prepared) -> Outputs:
    """What all teachers make of a picture: what students are judged by where they are judged by their teachers."""
    return prepared.fused or prepared.teachers[0]


def one_teacher(recipe: Recipe, prepared: Prepared) -> Outputs:
    """The teacher that `kd` names, or the one of the highest PSNR."""
    wanted = getattr(recipe.method, "teacher", "best")
    if wanted == "best":
        return max(prepared.teachers, key=lambda t: t.quality)
    return next(t for t in prepared.teachers if t.label == wanted)
