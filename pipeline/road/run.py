"""A whole run: the cache, the trainings, the scores, the exports, the report. Everything that is there
already is skipped.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline.cache import records, stamps
from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.cache.mending import mends
from pipeline.cache.store import Store
from pipeline.data.files import there
from pipeline.deploy.evaluate import BenchmarkSet, announce, load_set
from pipeline.deploy.shipping import check_student
from pipeline.errors import InputError
from pipeline.means import exact_note, exact_pictures
from pipeline.methods import PICTURES
from pipeline.metrics import PROTOCOL
from pipeline.progress import Once, Reporter
from pipeline.recipe.reading import with_method
from pipeline.recipe.recipe import Recipe
from pipeline.road.engines import Engine
from pipeline.road.tracked import Tracked
from pipeline.tasks.super_resolution.distill import TrainJob
from pipeline.tasks.super_resolution.jobs import check_privileged, student_job, teacher_job, told_apart
from pipeline.tasks.super_resolution.score import BOOKS, Model, Scored, ScoreTask
from pipeline.tasks.super_resolution.targets import Cached, Fused, Road, Taught
from pipeline.tracking import RunTracker
from students import build

SCORES_AT_RISK = 16
"""Pictures between two savings of the scores: what a kill can cost."""
Scores = dict[str, dict[str, dict[str, tuple[float, float]]]]
"""{identity of the model: {set: {picture: (PSNR dB, SSIM)}}}"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    recipe: Recipe
    tiles: Cached
    taught: list[Taught]
    fused: Fused | None
    jobs: list[TrainJob]
    models: list[Model]
    scores: Scores
    sets: list[str]
    strip: dict[str, np.ndarray] = field(default_factory=dict)
    """One test picture by every model: {"LR": ..., identity: ..., "HR": ...}, each HWC uint8."""

    def exact(self, set_name: str) -> list[str]:
        """The set's pictures that no mean of PSNR counts: some model reproduces them exactly."""
        return exact_pictures(by_set[set_name] for by_set in self.scores.values())


class Run:
    """One recipe on one engine."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        reporter: Reporter,
        open_run: Callable[[], RunTracker] | None = None,
    ) -> None:
        self.recipe, self.engine, self.reporter = recipe, engine, Once(reporter)
        self.tracked = Tracked(open_run)
        self.road = Road(recipe, engine, self.reporter, self.tracked.begin)
        self.output = Store.open(f"{recipe.output}/{recipe.name}")
        self.stores = (self.road.store, self.output)
        self.tested: Sequence[BenchmarkSet] = ()

    def check(self, methods: Sequence[str]) -> None:
        """Refuse what cannot work before anything is started: a teacher's file, the student, a method's settings.

        Raises InputError.
        """
        recipe = self.recipe
        check_sources(recipe)
        settings = {m: with_method(recipe, m).method for m in methods}
        if any(s.target != "none" for s in settings.values()):
            self.road.check_teachers()
        student = partial(build, recipe.student.name, recipe.scale, **recipe.student.options)
        student()
        if warning := check_student(recipe.student.name, recipe.scale, recipe.student.options, self.output):
            self.reporter.warn(warning)
        for method in methods:
            PICTURES[settings[method].name](settings[method], recipe.train, student)
            check_privileged(with_method(recipe, method))

    @mends
    def teach(self) -> tuple[Cached, list[Taught]]:
        """Tiles and teacher outputs."""
        check_sources(self.recipe)
        self.road.check_teachers()
        with self.road.locked():
            tiles = self.road.tiles()
            return tiles, self._teach(tiles)

    def _teach(self, tiles: Cached) -> list[Taught]:
        before = self.road.shards_written
        taught = self.road.teach(tiles)
        if self.road.shards_written > before:
            record = self.tracked.child("teach")
            for t in taught:
                name = t.facts.label
                record.metrics(
                    {f"{name}/psnr_y": t.psnr_y, f"{name}/seconds": t.seconds, f"{name}/tiles": t.tiles}, 0
                )
            record.tags({f"sha256.{t.facts.label}": t.facts.sha256 for t in taught})
            record.tags({"tiles": tiles.train.fingerprint})
            record.finish()
        return taught

    @mends
    def distill(
        self, methods: Sequence[str], seeds: Sequence[int]
    ) -> tuple[Cached, list[Taught], Fused | None, list[TrainJob]]:
        """Train every method from every seed, on targets that are made where they are missing."""
        tiles, taught, fused = self.prepare(methods)
        jobs = [student_job(self.recipe, tiles, taught, fused, m, seed) for m in methods for seed in seeds]
        self._train([job for job in jobs if job.result() is None])
        return tiles, taught, fused, jobs

    @mends
    def prepare(self, methods: Sequence[str]) -> tuple[Cached, list[Taught], Fused | None]:
        """What these methods train on, made where it is missing."""
        self.check(methods)
        with self.road.locked():
            tiles = self.road.tiles()
            self._warn_of_known()
            targets = {with_method(self.recipe, m).method.target for m in methods}
            taught = self._teach(tiles) if targets - {"none"} else []
            fused = (
                self.road.fuse(tiles, taught, lambda job: self._train_helpers([job]))
                if "fused" in targets
                else None
            )
        teachers = {j.folder: j for m in methods if (j := teacher_job(self.recipe, tiles, m)) is not None}
        self._train_helpers(told_apart(list(teachers.values())))
        return tiles, taught, fused

    def _warn_of_known(self) -> None:
        """Name the test sets with pictures that are trained or validated on."""
        for benchmark in self.tested:
            pictures = benchmark.survey.pictures if benchmark.survey else []
            if known := [p.name for p in pictures if p.pixels in self.road.pictures]:
                named = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
                self.reporter.warn(
                    f"test set {benchmark.name}: {len(known)} of {len(pictures)} pictures are among the training "
                    f"pictures ({named}); its figures say little about other pictures"
                )

    def _train_helpers(self, jobs: list[TrainJob]) -> None:
        """Train networks that students learn from. They get no scores, so their records end here."""
        self._train([job for job in jobs if job.result() is None])
        for job in jobs:
            self.tracked.end(job.label)

    def _train(self, jobs: list[TrainJob]) -> None:
        """Train what has no result yet. One command at a time trains a job; a second waits and finds it done."""
        with ExitStack() as stack:
            # In one order, so that no two wait for each other.
            for job in sorted(jobs, key=lambda j: j.folder):
                waiting = partial(self._waiting, job.label)
                stack.enter_context(job.output().lock("training.lock", on_wait=waiting))
            jobs = [job for job in jobs if job.result() is None]
            if jobs:
                self._train_now(jobs)

    def _waiting(self, label: str, owner: str) -> None:
        self.reporter.say(f"{label} is being trained by {owner}; waiting for it")

    def _train_now(self, jobs: list[TrainJob]) -> None:
        self.tracked.begin()
        records = {job.label: self.tracked.training(job) for job in jobs}
        with ExitStack() as stack:
            lines = {
                job.label: stack.enter_context(self.reporter.line(job.label, job.steps, "steps"))
                for job in jobs
            }
            self.engine.train(jobs, lines, {job.label: records[job.label].handle() for job in jobs})

    @mends
    def everything(self, methods: Sequence[str], seeds: Sequence[int]) -> Outcome:
        """The road to its end: cache, trainings, scores."""
        sets = self.tested = self.sets()
        for benchmark in sets:
            if benchmark.survey is not None:
                announce(benchmark.survey, self.reporter, tested=True)
        tiles, taught, fused, jobs = self.distill(methods, seeds)
        models = self.models(taught, fused, jobs)
        scores, strip = self.score(models, sets)
        names = [benchmark.name for benchmark in sets]
        outcome = Outcome(self.recipe, tiles, taught, fused, jobs, models, scores, names, strip)
        for benchmark in sets:
            if exact := outcome.exact(benchmark.name):
                self.reporter.warn(exact_note(benchmark.name, exact, len(benchmark.pictures)))
        return outcome

    def models(self, taught: Sequence[Taught], fused: Fused | None, jobs: Sequence[TrainJob]) -> list[Model]:
        """Everything that the table compares, baselines first. A teacher called as another of them shows its role."""
        scale = self.recipe.scale
        models = [Model("bicubic", "bicubic", f"bicubic-x{scale}")]
        taken = {"bicubic", "LR", "HR", *(job.label for job in jobs), *(job.group for job in jobs)}
        for t in taught:
            read = "".join(f"-{k}-{v}" for k, v in sorted(t.facts.reading.items()))
            identity = f"teacher-x{scale}-{t.facts.sha256[:16]}-{t.facts.precision}{read}"
            name = f"{t.facts.label} (teacher)" if t.facts.label in taken else t.facts.label
            models.append(Model(name, "teacher", identity, facts=t.facts))
        if fused is not None and fused.kind != "best":
            fusion = {
                "kind": fused.kind,
                "weights": fused.weights,
                "config": self.recipe.fusion.model_dump(),
                "teachers": [m.identity for m in models if m.role == "teacher"],
            }
            weights = (self.road.store.uri, fused.network) if fused.network else None
            identity = "fused-" + fused.cached.folder.split("-")[-1]
            models.append(Model(f"fused ({fused.kind})", "fused", identity, weights=weights, fusion=fusion))
        for job in jobs:
            weights = (job.output().uri, "weights.safetensors")
            models.append(Model(job.label, "student", student_identity(job), weights=weights, row=job.group))
        return models

    def sets(self) -> list[BenchmarkSet]:
        """The recipe's test pictures, all decoded once.

        Raises InputError for a missing or bad picture, and for two sets of one name.
        """
        found: dict[str, BenchmarkSet] = {}
        for folder in self.recipe.data.test:
            benchmark = load_set(folder, self.recipe.scale)
            if benchmark.name in found:
                raise InputError(
                    f"data.test: {folder}",
                    "sets of different names",
                    f"a second {benchmark.name}",
                    "Rename a folder.",
                )
            found[benchmark.name] = benchmark
        return list(found.values())

    def score(
        self, models: list[Model], sets: Sequence[BenchmarkSet]
    ) -> tuple[Scores, dict[str, np.ndarray]]:
        """Every model on every test picture; known scores are read, one picture is kept to look at."""
        recipe = self.recipe
        books = {m.identity: self._book(m) for m in models}
        tasks = []
        places: dict[tuple[str, str], str] = {}
        for benchmark, name, path in ((b, n, p) for b in sets for n, p in b.pictures):
            place = f"{benchmark.name}/{name}:{file_sha256(path)[:16]}"
            place += f":p{PROTOCOL}" if name in benchmark.grey else ""  # others are as under protocol 1
            places[benchmark.name, name] = place
            wanted = tuple(key for key, book in books.items() if place not in book)
            if wanted:
                needs_teachers = any(m.role == "fused" and m.identity in wanted for m in models)
                chosen = tuple(
                    m for m in models if m.identity in wanted or (needs_teachers and m.role == "teacher")
                )
                tasks.append(ScoreTask(benchmark.name, name, path, recipe.scale, chosen, wanted))
        if tasks:
            self.tracked.begin()
            unsaved = 0
            with self.reporter.line("evaluate", len(tasks), "pictures") as line:
                for scored in self.engine.map(_score, tasks, gpus=recipe.teach.gpus_per_actor):
                    for key, score in scored.scores.items():
                        books[key][places[scored.set_name, scored.picture]] = score
                    line.advance(note=f"{scored.set_name}/{scored.picture}")
                    unsaved += 1
                    if unsaved == SCORES_AT_RISK:
                        self._save_books(models, books)
                        unsaved = 0
            self._save_books(models, books)
        scores: Scores = {m.identity: {b.name: {} for b in sets} for m in models}
        for (set_name, picture), place in places.items():
            for model in models:
                psnr, ssim = books[model.identity][place]
                scores[model.identity][set_name][picture] = (psnr, ssim)
        return scores, self._strip(models, scores, sets)

    def _save_books(self, models: list[Model], books: dict[str, dict[str, tuple[float, float]]]) -> None:
        for model in models:
            records.save(self._shelf(model), _book_file(model), books[model.identity])

    def _book(self, model: Model) -> dict[str, tuple[float, float]]:
        return records.load(self._shelf(model), _book_file(model), _pairs) or {}

    def _shelf(self, model: Model) -> Store:
        """Scores of students lie with the run, those of what is cached lie in the cache, for every run on it."""
        return self.output if model.role == "student" else self.road.store

    def _strip(
        self, models: list[Model], scores: Scores, sets: Sequence[BenchmarkSet]
    ) -> dict[str, np.ndarray]:
        """One seed of each method on the test picture where the last gains most over the first (or over bicubic)."""
        seen: dict[str, Model] = {}
        for m in models:
            seen.setdefault(m.group, m)
        chosen = tuple(seen.values())
        students = [m.identity for m in chosen if m.role == "student"]
        if not sets or not students:
            return {}
        benchmark = sets[0]
        base = students[0] if len(students) > 1 else models[0].identity

        def gain(picture: str) -> float:
            ours, theirs = (scores[key][benchmark.name][picture][0] for key in (students[-1], base))
            # An exact picture shows no difference to look at: it is taken where there is no other.
            return ours - theirs if math.isfinite(ours) and math.isfinite(theirs) else -math.inf

        name, path = max(benchmark.pictures, key=lambda p: gain(p[0]))
        print_ = fingerprint([BOOKS, *(m.identity for m in chosen), file_sha256(path)])
        rel, stamp = f"strips/{print_}.npz", f"strips/{print_}.json"
        if not stamps.intact(self.output, stamp, print_):
            task = ScoreTask(benchmark.name, name, path, self.recipe.scale, chosen, (), keep_pictures=True)
            (scored,) = self.engine.map(_score, [task], gpus=self.recipe.teach.gpus_per_actor)
            with self.output.stage(rel) as file, file.open("wb") as sink:
                np.savez_compressed(sink, allow_pickle=False, **scored.pictures)
            stamps.put(self.output, stamp, print_, [rel])
        with np.load(io.BytesIO(self.output.read_bytes(rel)), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def check_sources(recipe: Recipe) -> None:
    """Refuse folders that are not there, by their key. Raises InputError."""
    for key in ("train", "lr_only", "test"):
        for source in getattr(recipe.data, key):
            if not there(source):
                raise InputError(
                    f"data.{key}", "folders of pictures or picture files", f"nothing at {source}"
                )


def student_identity(job: TrainJob) -> str:
    """Of the model that a training makes."""
    return f"student-{job.fingerprint}"


def _book_file(model: Model) -> str:
    return f"{BOOKS}/{model.identity}.json"


def _pairs(book: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {place: (float(psnr), float(ssim)) for place, (psnr, ssim) in book.items()}


def _score(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
