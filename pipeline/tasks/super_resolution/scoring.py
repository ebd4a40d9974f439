"""Every model on every test picture: what is known is read, and one picture is kept to look at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import records, stamps
from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.cache.store import Store
from pipeline.data.views import short
from pipeline.deploy.evaluate import BenchmarkSet
from pipeline.means import exact_note, exact_pictures, set_means
from pipeline.metrics import PROTOCOL
from pipeline.recipe.recipe import Recipe
from pipeline.steps.job import STUDENT, Job
from pipeline.steps.values import Prepared, Result
from pipeline.tasks.super_resolution.fusion import PictureFusion
from pipeline.tasks.super_resolution.score import BOOKS, Model, Role, Scored, ScoreTask, cost
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts

if TYPE_CHECKING:
    from pipeline.road.run import Run

SCORES_AT_RISK = 16
"""Pictures between two savings of the scores: what a kill can cost."""
Book = dict[str, tuple[float, float]]
"""{place of a test picture: (PSNR dB, SSIM)} of one model."""
Nearness = dict[str, tuple[float, float, float]]
"""{place of a test picture: (fidelity dB, consistency dB, sharpness)} of one model beside a reference."""
HELD_OUT = "held-out tiles"
"""How tables call them where there are no test pictures."""
NEAR = ("fidelity", "consistency", "sharpness")
Scores = dict[str, dict[str, Book]]
"""{identity of the model: {set: {picture: (PSNR dB, SSIM)}}}"""


def held_out(results: Sequence[Result], prepared: Prepared) -> list[Result]:
    """The same with what is known from held-out tiles, where a run names no test pictures."""
    networks = [r for r in results if r.role in ("teacher", "fused")]
    qualities = {r.identity: o.quality for r, o in zip(networks, prepared.all)}
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
        self.near: dict[str, dict[str, tuple[float, float, float]]] = {}
        """{identity: {set: means}}, known after `scores`."""

    def results(self, jobs: Sequence[Job]) -> tuple[list[Result], dict[str, np.ndarray]]:
        """(every model's figures, one test picture by every model: {"LR": ..., identity: ..., "HR": ...})."""
        scores = self.scores()
        exact = {b.name: exact_pictures(s[b.name] for s in scores.values()) for b in self.sets}
        for benchmark in self.sets:
            if named := exact[benchmark.name]:
                self.run.reporter.warn(exact_note(benchmark.name, named, len(benchmark.pictures)))
        trained = {job.label: job for job in jobs}
        found = []
        for model in self.models:
            sets = {n: set_means(book, exact[n]) for n, book in scores[model.identity].items() if book}
            for name, means in self.near.get(model.identity, {}).items():
                sets[name] |= dict(zip(NEAR, means, strict=True))
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
        return found, self.strip(scores)

    def scores(self) -> Scores:
        """Every picture's; known ones are read."""
        books = {m.identity: self._book(m) for m in self.models}
        near = {m.identity: self._nearness(m) for m in self.models if self.reference not in ("", m.identity)}
        tasks: list[ScoreTask] = []
        degradation = self.recipe.data.degradation
        chain = short(degradation, self.recipe.scale)
        places: dict[tuple[str, str], str] = {}
        for benchmark, name, path in ((b, n, p) for b in self.sets for n, p in b.pictures):
            place = f"{benchmark.name}/{name}:{file_sha256(path)[:16]}"
            lr = benchmark.lr.get(name, "")
            place += f":lr{file_sha256(lr)[:16]}" if lr else f":d{chain}" if chain else ""
            place += f":p{PROTOCOL}" if name in benchmark.grey else ""  # others are as under protocol 1
            places[benchmark.name, name] = place
            if wanted := tuple(k for k, b in books.items() if place not in b or place not in near.get(k, b)):
                chosen = self._chosen((*wanted, self.reference))
                given = (benchmark.name, name, path, self.recipe.scale, chosen, wanted)
                moved = benchmark.moved.get(name, (0, 0))
                task = ScoreTask(*given, lr=lr, moved=moved, degradation=degradation)
                tasks.append(replace(task, reference=self.reference))
        for done, scored in enumerate(
            self.run.planner.map(
                "evaluate",
                _score,
                tasks,
                "pictures",
                note=lambda s: f"{s.set_name}/{s.picture}",
                gpus=self.recipe.teach.gpus_per_actor,
            ),
            start=1,
        ):
            for key, score in scored.scores.items():
                books[key][places[scored.set_name, scored.picture]] = score
            for key, values in scored.against.items():
                near[key][places[scored.set_name, scored.picture]] = values
            if done % SCORES_AT_RISK == 0 or done == len(tasks):
                self._save(books, near)
        for key, found in near.items():
            self.near[key] = {
                b.name: _mean([found[places[b.name, name]] for name, _ in b.pictures]) for b in self.sets
            }
        return {
            key: {
                b.name: {name: _pair(book[places[b.name, name]]) for name, _ in b.pictures} for b in self.sets
            }
            for key, book in books.items()
        }

    def _chosen(self, wanted: Sequence[str]) -> tuple[Model, ...]:
        """The models to run for these; a fused one needs its teachers' pictures."""
        fused = any(m.role == "fused" and m.identity in wanted for m in self.models)
        return tuple(m for m in self.models if m.identity in wanted or (fused and m.role == "teacher"))

    def _save(self, books: dict[str, Book], near: dict[str, Nearness]) -> None:
        for model in self.models:
            records.save(self._shelf(model), _book_file(model), books[model.identity])
            if model.identity in near:
                records.save(self._shelf(model), self._near_file(model), near[model.identity])

    def _near_file(self, model: Model) -> str:
        return f"fidelity/1/{fingerprint([model.identity, self.reference])}.json"

    def _nearness(self, model: Model) -> Nearness:
        return records.load(self._shelf(model), self._near_file(model), _triples) or {}

    def _book(self, model: Model) -> Book:
        return records.load(self._shelf(model), _book_file(model), _pairs) or {}

    def _shelf(self, model: Model) -> Store:
        """Scores of students lie with the run, those of what is cached lie in the cache, for every run on it."""
        return self.run.output if model.role == STUDENT else self.run.planner.store

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
            given = (benchmark.name, name, path, self.recipe.scale, chosen, ())
            moved = benchmark.moved.get(name, (0, 0))
            task = ScoreTask(*given, keep_pictures=True, lr=lr, moved=moved, degradation=degradation)
            gpus = self.recipe.teach.gpus_per_actor
            (scored,) = self.run.engine.map(_score, [task], gpus=gpus)
            with output.stage(rel) as file, file.open("wb") as sink:
                np.savez_compressed(sink, allow_pickle=False, **scored.pictures)
            stamps.put(output, stamp, print_, [rel])
        with np.load(io.BytesIO(output.read_bytes(rel)), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}


def _book_file(model: Model) -> str:
    return f"{BOOKS}/{model.identity}.json"


def _pair(score: Any) -> tuple[float, float]:
    psnr, ssim = score
    return psnr, ssim


def _pairs(book: dict[str, Any]) -> Book:
    return {place: (float(psnr), float(ssim)) for place, (psnr, ssim) in book.items()}


def _triples(book: dict[str, Any]) -> Nearness:
    return {place: (float(f), float(c), float(s)) for place, (f, c, s) in book.items()}


def _mean(values: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    fidelity, consistency, sharpness = (float(np.mean(column)) for column in zip(*values, strict=True))
    return fidelity, consistency, sharpness


def _score(task: ScoreTask, device: str) -> Scored:
    return task.run(device)
