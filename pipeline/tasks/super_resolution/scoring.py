"""Every model on every test picture: what is known is read, and one picture is kept to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import stamps
from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.cache.store import Store
from pipeline.data.views import short
from pipeline.deploy import perceptual
from pipeline.deploy.evaluate import BenchmarkSet
from pipeline.means import exact_note, exact_pictures, set_means
from pipeline.metrics import PROTOCOL
from pipeline.recipe.recipe import Recipe
from pipeline.steps.job import STUDENT, Job
from pipeline.steps.values import Prepared, Result
from pipeline.tasks.super_resolution.books import Book, Books
from pipeline.tasks.super_resolution.fusion import PictureFusion
from pipeline.tasks.super_resolution.held_out import HeldOut
from pipeline.tasks.super_resolution.score import BOOKS, Model, Role, Scored, ScoreTask, cost
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts

if TYPE_CHECKING:
    from pipeline.road.run import Run

SCORES_AT_RISK = 16
"""Pictures between two savings of the scores: what a kill can cost."""
VISIBLE = 0.01
"""dB that a table shows: a student that is still its skip is not worse than it."""
HELD_OUT = "held-out tiles"
"""How tables call them where there are no test pictures."""
Scores = dict[str, dict[str, Book]]
"""{identity of the model: {set: {picture: (PSNR dB, SSIM)}}}"""


def held_out(results: Sequence[Result], prepared: Prepared, cache: Store, scale: int) -> list[Result]:
    """The same with what is known from the held-out tiles that students are judged by, where a run names no test
    pictures."""
    networks = [r for r in results if r.role in ("teacher", "fused")]
    hr = prepared.samples.columns("hr")
    qualities = {}
    for result, outputs in zip(networks, prepared.all):
        if outputs.cached is not None:
            own = HeldOut.quality(cache, outputs.cached.columns("sr"), hr, scale)
            qualities[result.identity] = outputs.quality if own is None else own
    found = []
    for result in results:
        done = result.job.result() if result.job is not None else None
        curves = list(done["curves"].values())[-1] if done else {}
        names = [n for n in ("fidelity", "psnr_y") if curves.get(f"held_out/{n}")]
        figures = {name: float(curves[f"held_out/{name}"][-1][1]) for name in names}
        if math.isfinite(quality := qualities.get(result.identity, math.nan)):
            figures["psnr_y"] = quality
        found.append(replace(result, sets={HELD_OUT: figures} if figures else {}))
    return found


def worse_than_none(results: Sequence[Result], key: str) -> list[str]:
    """A line for each student that is below enlargement without a network (at scale 1: the input) on every set."""
    base = next((r for r in results if r.role == "bicubic"), None)
    floor = {n: sets[key] for n, sets in base.sets.items() if key in sets} if base else {}
    found = []
    for student in (r for r in results if r.role == "student"):
        pairs = [(sets[key], floor[n]) for n, sets in student.sets.items() if n in floor and key in sets]
        if base and pairs and all(own < its - VISIBLE for own, its in pairs):
            own, its = pairs[0]
            found.append(
                f"{student.name}: {own:.2f} dB is below {base.name} ({its:.2f}): its training was too short "
                "(train.steps) or collapsed; then a lower train.lr or a warm-up (train.warmup: 500) helps"
            )
    return found


def models(
    recipe: Recipe,
    cache: Store,
    prepared: Prepared,
    jobs: Sequence[Job],
    beside: Sequence[TeacherFacts] = (),
) -> list[Model]:
    """Everything that the table compares, baselines first. A teacher called as another of them shows its role."""
    scale = recipe.scale
    found = [Model("input" if scale == 1 else "bicubic", "bicubic", f"bicubic-x{scale}")]
    taken = {found[0].name, "LR", "HR", *(job.label for job in jobs), *(job.group for job in jobs)}
    roles: list[tuple[Role, TeacherFacts]] = [("beside", facts) for facts in beside]
    roles += [("teacher", teacher.network) for teacher in prepared.teachers]
    for role, facts in roles:
        read = "".join(f"-{k}-{v}" for k, v in sorted(facts.reading.items()))
        identity = f"{role}-x{scale}-{facts.sha256[:16]}-{facts.precision}{read}"
        name = f"{facts.label} ({role})" if facts.label in taken else facts.label
        found.append(Model(name, role, identity, facts=facts))
    fused = prepared.fused.network if prepared.fused else None
    if isinstance(fused, PictureFusion) and fused.kind != "best":
        fusion = {
            "kind": fused.kind,
            "weights": fused.weights,
            "config": recipe.fusion.model_dump(),
            "teachers": [m.identity for m in found if m.role == "teacher"],
        }
        weights = (cache.uri, fused.network) if fused.network else None
        name = f"fused ({fused.kind})"
        found.append(Model(name, "fused", fused.identity, weights=weights, fusion=fusion))
    for job in jobs:
        weights = (job.output().uri, "weights.safetensors")
        found.append(Model(job.label, "student", job.identity, weights=weights, row=job.group))
    return found


class Scoring:
    """One run's scores."""

    def __init__(
        self, run: Run, models: list[Model], sets: Sequence[BenchmarkSet], reference: str = ""
    ) -> None:
        """`reference`: identity of the model that the others are compared with, where they are."""
        self.run, self.models, self.sets, self.reference = run, models, sets, reference
        self.recipe: Recipe = run.recipe
        self.books = Books(models, run.planner.store, run.output, reference, perceptual.found())

    def results(self, jobs: Sequence[Job]) -> tuple[list[Result], dict[str, np.ndarray]]:
        """(every model's figures, one test picture by every model: {"LR": ..., identity: ..., "HR": ...})."""
        scores = self.scores()
        exact = {b.name: exact_pictures(s[b.name] for s in scores.values()) for b in self.sets}
        for benchmark in self.sets:
            if named := exact[benchmark.name]:
                self.run.reporter.warn(exact_note(benchmark.name, named, len(benchmark.pictures)))
        trained = {job.label: job for job in jobs}
        further = self.books.means(self.places)
        found = []
        for model in self.models:
            sets = {n: set_means(book, exact[n]) for n, book in scores[model.identity].items() if book}
            for name in sets:
                sets[name] |= further[model.identity][name]
            counted = cost(model, self.recipe.scale) or (None, None)
            job = trained.get(model.name) if model.role == STUDENT else None
            found.append(
                Result(
                    name=model.name,
                    role=model.role,
                    identity=model.identity,
                    sets=sets,
                    parameters=counted[0],
                    multiply_adds=counted[1],
                    job=job,
                    row=model.row,
                )
            )
        for warning in worse_than_none(found, "fidelity" if self.recipe.by_fidelity else "psnr_y"):
            self.run.reporter.warn(warning)
        return found, self.strip(scores)

    @cached_property
    def places(self) -> dict[str, list[str]]:
        """{set: where its pictures' scores are entered}: changed by whatever changes a picture's scores."""
        chain = short(self.recipe.data.degradation, self.recipe.scale)
        found: dict[str, list[str]] = {b.name: [] for b in self.sets}
        for benchmark, name, path in ((b, n, p) for b in self.sets for n, p in b.pictures):
            place = f"{benchmark.name}/{name}:{file_sha256(path)[:16]}"
            lr = benchmark.lr.get(name, "")
            place += f":lr{file_sha256(lr)[:16]}" if lr else f":d{chain}" if chain else ""
            place += f":p{PROTOCOL}" if name in benchmark.grey else ""  # others are as under protocol 1
            found[benchmark.name].append(place)
        return found

    def scores(self) -> Scores:
        """Every picture's; known ones are read."""
        tasks: dict[tuple[str, str], ScoreTask] = {}
        places: dict[tuple[str, str], str] = {}
        for benchmark in self.sets:
            for (name, path), place in zip(benchmark.pictures, self.places[benchmark.name], strict=True):
                places[benchmark.name, name] = place
                if wanted := self.books.lacking(place):
                    chosen = self._chosen((*wanted, self.reference))
                    task = self._task(benchmark, name, path, chosen, wanted)
                    tasks[benchmark.name, name] = replace(
                        task, reference=self.reference, perceptual=tuple(self.books.measures)
                    )
        for done, scored in enumerate(
            self.run.planner.map(
                "evaluate",
                _score,
                list(tasks.values()),
                "pictures",
                note=lambda s: f"{s.set_name}/{s.picture}",
                gpus=self.recipe.teach.gpus_per_actor,
            ),
            start=1,
        ):
            self.books.add(places[scored.set_name, scored.picture], scored)
            if done % SCORES_AT_RISK == 0 or done == len(tasks):
                self.books.save()
        return {
            key: {
                b.name: {name: _pair(book[places[b.name, name]]) for name, _ in b.pictures} for b in self.sets
            }
            for key, book in self.books.scores.items()
        }

    def _task(
        self,
        benchmark: BenchmarkSet,
        name: str,
        path: str,
        chosen: tuple[Model, ...],
        wanted: tuple[str, ...],
    ) -> ScoreTask:
        return ScoreTask(
            benchmark.name,
            name,
            path,
            self.recipe.scale,
            chosen,
            wanted,
            lr=benchmark.lr.get(name, ""),
            moved=benchmark.moved.get(name, (0, 0)),
            degradation=self.recipe.data.degradation,
        )

    def _chosen(self, wanted: Sequence[str]) -> tuple[Model, ...]:
        """The models to run for these; a fused one needs its teachers' pictures."""
        fused = any(m.role == "fused" and m.identity in wanted for m in self.models)
        return tuple(m for m in self.models if m.identity in wanted or (fused and m.role == "teacher"))

    def strip(self, scores: Scores) -> dict[str, np.ndarray]:
        """One seed of each method on the test picture where the last gains most over the first (or over bicubic)."""
        seen: dict[str, Model] = {}
        for m in self.models:
            seen.setdefault(m.group, m)
        chosen = tuple(seen.values())
        students = [m.identity for m in chosen if m.role == STUDENT]
        if not self.sets or not students:
            return {}
        benchmark = self.sets[0]
        base = students[0] if len(students) > 1 else self.models[0].identity

        def gain(picture: str) -> float:
            ours, theirs = (scores[key][benchmark.name][picture][0] for key in (students[-1], base))
            # An exact picture shows no difference to look at: it is taken where there is no other.
            return ours - theirs if math.isfinite(ours) and math.isfinite(theirs) else -math.inf

        name, path = max(benchmark.pictures, key=lambda p: gain(p[0]))
        output = self.run.output
        degradation = self.recipe.data.degradation
        chain = short(degradation, self.recipe.scale)
        lr = benchmark.lr.get(name, "")
        made = [file_sha256(lr)] if lr else [chain] if chain else []
        shaped = [BOOKS, *(m.identity for m in chosen), file_sha256(path), *made]
        print_ = fingerprint(shaped)
        rel, stamp = f"strips/{print_}.npz", f"strips/{print_}.json"
        if not stamps.intact(output, stamp, print_):
            task = replace(self._task(benchmark, name, path, chosen, ()), keep_pictures=True)
            gpus = self.recipe.teach.gpus_per_actor
            (scored,) = self.run.engine.map(_score, [task], gpus=gpus)
            with output.stage(rel) as file, file.open("wb") as sink:
                np.savez_compressed(sink, allow_pickle=False, **scored.pictures)
            stamps.put(output, stamp, print_, [rel])
        with np.load(io.BytesIO(output.read_bytes(rel)), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def _pair(score: Any) -> tuple[float, float]:
    psnr, ssim = score
    return psnr, ssim


def _score(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
