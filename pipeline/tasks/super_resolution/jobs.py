"""The trainings that a recipe asks for, as jobs: PISR's teacher, and each student by method and seed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from pipeline.cache.fingerprint import file_sha256
from pipeline.errors import InputError
from pipeline.recipe.methods import PISR
from pipeline.recipe.reading import with_method
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.super_resolution.distill import TrainJob, job_fingerprint, located
from pipeline.tasks.super_resolution.privileged import decoder_of, load_privileged
from pipeline.tasks.super_resolution.targets import Cached, Fused, Taught


def teacher_job(recipe: Recipe, tiles: Cached, method: str) -> TrainJob | None:
    """The training of PISR's teacher, shared by all students that ask for it; None where none is to be trained."""
    recipe = with_method(recipe, method)
    if not isinstance(recipe.method, PISR) or recipe.method.checkpoint:
        return None
    columns = {"lr": tiles.columns("lr"), "hr": tiles.columns("hr")}
    print_ = job_fingerprint(recipe, "teacher", recipe.seed, {n: c.train for n, c in columns.items()})
    return TrainJob(
        label=f"{recipe.method.teacher}-teacher-{recipe.student.label}",
        kind="teacher",
        recipe=located(recipe).model_dump(mode="json"),
        seed=recipe.seed,
        columns=columns,
        folder=f"privileged/{print_}",
        fingerprint=print_,
        method=method,
    )


def told_apart(jobs: list[TrainJob]) -> list[TrainJob]:
    """The same trainings; where several have one label, each says the method or variant that it is for."""
    count = Counter(job.label for job in jobs)
    return [replace(j, label=f"{j.label}-{j.method}") if count[j.label] > 1 else j for j in jobs]


def check_privileged(recipe: Recipe) -> None:
    """Refuse the checkpoint of a PISR teacher that does not fit. Raises InputError."""
    if not isinstance(recipe.method, PISR):
        return
    decoder_of(recipe)()
    if recipe.method.checkpoint:
        if not Path(recipe.method.checkpoint).is_file():
            raise InputError("method.checkpoint", "a file", f"{recipe.method.checkpoint}: no such file")
        load_privileged(recipe, recipe.method.checkpoint)


def student_job(
    recipe: Recipe, tiles: Cached, taught: list[Taught], fused: Fused | None, method: str, seed: int
) -> TrainJob:
    """The training of one student by one method (or variant) from one seed."""
    recipe = with_method(recipe, method)
    columns = {"lr": tiles.columns("lr"), "hr": tiles.columns("hr")}
    if recipe.method.target == "teacher":
        columns["target"] = _one_teacher(recipe, taught).cached.columns("sr")
    elif recipe.method.target == "fused":
        assert fused is not None
        columns["target"] = fused.cached.columns("sr")
    inputs = {name: c.train for name, c in columns.items()}
    taught_by = None
    if (teacher := teacher_job(recipe, tiles, method)) is not None:
        taught_by = teacher.output().where("weights.safetensors")
        inputs["privileged"] = teacher.fingerprint
    elif isinstance(recipe.method, PISR) and recipe.method.checkpoint:
        taught_by = str(Path(recipe.method.checkpoint).absolute())
        inputs["privileged"] = file_sha256(recipe.method.checkpoint)
    print_ = job_fingerprint(recipe, "student", seed, inputs)
    label = f"{method}-{recipe.student.label}-s{seed}"
    return TrainJob(
        label=label,
        kind="student",
        recipe=located(recipe).model_dump(mode="json"),
        seed=seed,
        columns=columns,
        folder=f"trainings/{label}-{print_}",
        fingerprint=print_,
        method=method,
        taught_by=taught_by,
    )


def _one_teacher(recipe: Recipe, taught: list[Taught]) -> Taught:
    wanted = getattr(recipe.method, "teacher", "best")
    if wanted == "best":
        return max(taught, key=lambda t: t.psnr_y)
    return next(t for t in taught if t.facts.label == wanted)
