"""Super-resolution as a task: tiles of pictures, teachers that enlarge them, students that do it faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cache import stats as statistics
from pipeline.cache.manifest import Manifest
from pipeline.deploy.evaluate import BenchmarkSet, announce
from pipeline.deploy.shipping import export_student
from pipeline.deploy.trial import from_cache
from pipeline.errors import InputError
from pipeline.metrics import PROTOCOL
from pipeline.recipe.reading import with_method
from pipeline.recipe.recipe import Recipe, TeacherSpec
from pipeline.report.table import Metric
from pipeline.steps.forecast import Effort, Work
from pipeline.steps.job import Job
from pipeline.steps.planner import Planner
from pipeline.steps.rerun import Kept
from pipeline.steps.values import Column, Needs, Outcome, Outputs, Prepared, Result, Samples
from pipeline.tasks.base import Drawing, Task
from pipeline.tasks.super_resolution import showing
from pipeline.tasks.super_resolution import teacher_facts as describing
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.tasks.super_resolution import work as counting
from pipeline.tasks.super_resolution.altering import altered, own
from pipeline.tasks.super_resolution.assistant import TrainedNetwork, trained
from pipeline.tasks.super_resolution.candidates import candidates, settled
from pipeline.tasks.super_resolution.checks import check
from pipeline.tasks.super_resolution.effort import effort
from pipeline.tasks.super_resolution.fusion import FUSED, PictureFusion, fuse
from pipeline.tasks.super_resolution.jobs import assistant_job, student_job, teacher_job
from pipeline.tasks.super_resolution.judged_on import known_pictures, load_sets, test_inputs
from pipeline.tasks.super_resolution.scoring import HELD_OUT, Scoring, held_out, models
from pipeline.tasks.super_resolution.teach import TeachTask, output_manifest, psnr
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts
from pipeline.tasks.super_resolution.tiles import TilePlan
from pipeline.tracking import DataSet

if TYPE_CHECKING:
    from pipeline.road.run import Run

HR_SIDE = 96
"""A search's multiply-adds are those of an output of this side: at x2 a 48 x 48 input, as everywhere else."""


class SuperResolution(Task):
    """LR pictures to HR ones."""

    name = "super_resolution"
    recipe = Recipe
    unit = made = "tiles"
    gap = "scale"
    same_input = True
    report_version = PROTOCOL

    def check(self, run: Run, methods: Sequence[str]) -> None:
        check(run, methods)

    def tested(self, run: Run) -> list[BenchmarkSet]:
        """The recipe's test pictures, all decoded once.

        Raises InputError for a missing or bad picture, and for two sets of one name.
        """
        found = load_sets(run.recipe)
        for benchmark in found:
            if benchmark.survey is not None:
                announce(benchmark.survey, run.reporter, tested=True)
        return found

    def look(self, run: Run, samples: Samples) -> None:
        for warning in known_pictures(run.tested or (), samples.pictures):
            run.reporter.warn(warning)

    def reads(self, recipe: Recipe) -> list[tuple[str, str]]:
        found = [
            (f"data.{key}.{i}", path)
            for key in ("train", "lr_only", "test")
            for i, path in enumerate(getattr(recipe.data, key))
        ]
        for key in ("pairs", "test_pairs"):
            for i, entry in enumerate(getattr(recipe.data, key)):
                found += [(f"data.{key}.{i}.{side}", getattr(entry, side)) for side in ("lr", "hr")]
        for where, specs in (("teachers", recipe.teachers), ("compare.beside", recipe.compare.beside)):
            found += [(f"{where}.{i}.checkpoint", s.checkpoint) for i, s in enumerate(specs) if s.checkpoint]
        given = getattr(recipe.method, "checkpoint", None)
        return [*found, *([("method.checkpoint", given)] if given else [])]

    def gaps(self, recipe: Recipe) -> Sequence[int]:
        return (recipe.scale,)

    def samples(self, planner: Planner) -> TilePlan:
        plan = tiling.plan(planner.recipe, planner.store)
        for survey in plan.surveys:
            announce(survey, planner.reporter)
        for bad in plan.quarantined:
            planner.reporter.warn(f"left out {bad.path}: {bad.reason}")
        return plan

    def needs(self, recipe: Recipe, methods: Sequence[str], scored: bool) -> Needs:
        targets = {with_method(recipe, m).method.target for m in methods}
        judged = recipe.by_fidelity
        taught = bool(targets - {"none"}) or judged
        return Needs(taught, taught, "fused" in targets or (judged and len(recipe.teachers) > 1))

    def splits(self, recipe: Recipe, samples: Samples) -> Sequence[str]:
        return tuple(samples.manifests)

    def teachers(
        self, planner: Planner, samples: Samples, jobs: Sequence[Job | None]
    ) -> list[tuple[str, TeacherFacts]]:
        return [(facts.label, facts) for facts in self._described(planner, planner.recipe.teachers)]

    def _described(self, planner: Planner, specs: Sequence[TeacherSpec]) -> list[TeacherFacts]:
        """Gate and describe networks; what the cache already knows costs nothing."""
        recipe: Recipe = planner.recipe
        kind = planner.engine.device_kind(recipe.teach.gpus_per_actor)
        found = {s.label: describing.known_facts(s, recipe.scale, planner.store, kind) for s in specs}
        unknown = [s for s in specs if found[s.label] is None]
        asked = [(describing.located(spec), recipe.scale, planner.store.uri) for spec in unknown]
        for facts in planner.map(
            "look at teachers",
            describing.looked_at,
            asked,
            "teachers",
            note=lambda f: f"{f.label}: {f.architecture}, {f.precision}",
            gpus=recipe.teach.gpus_per_actor,
        ):
            found[facts.label] = facts
        described = [facts for s in specs if (facts := found[s.label]) is not None]
        for facts in described:
            for warning in facts.warnings:
                planner.reporter.warn(warning)
        return described

    def column(
        self, planner: Planner, samples: Samples, label: str, network: TeacherFacts | TrainedNetwork
    ) -> Column:
        recipe: Recipe = planner.recipe
        folder = network.folder(samples.folder, recipe.cache.dtype)
        identity = network.identity_on(samples.folder, recipe.cache.dtype) | {
            "name": network.label,
            "architecture": network.architecture,
            "checkpoint": network.path.rsplit("/", 1)[-1],
        }
        store, rest = planner.store.uri, (folder, recipe.scale, recipe.cache.dtype, recipe.teach.batch)

        def manifest(tiles: Manifest, receipts: Mapping[str, Any]) -> Manifest:
            return output_manifest(identity, folder, tiles, receipts)

        return Column(label, folder, lambda receipt: TeachTask(store, receipt, *rest), manifest)

    def kept(self, planner: Planner) -> list[Kept]:
        folders = sorted({rel.split("/")[1] for rel, _ in planner.store.list("tiles")})
        tiles = [Samples(f"tiles/{folder}", {}) for folder in folders]
        return [
            Kept(label, facts, [(t.folder, self.column(planner, t, label, facts)) for t in tiles])
            for label, facts in describing.known(planner.recipe, planner.store)
        ]

    def quality(self, planner: Planner, outputs: Outputs) -> float:
        """PSNR in dB on the held-out tiles, on the training tiles where nothing is held out."""
        assert outputs.cached is not None
        judged = outputs.cached.held_out or outputs.cached.train
        keys = [r.key for r in judged.shards]
        return psnr(statistics.load(planner.store, outputs.cached.folder, keys))

    def fusion(
        self, run: Run, samples: Samples, members: Sequence[Outputs]
    ) -> tuple[str, PictureFusion, Column]:
        return FUSED, *fuse(self, run.planner, samples, members)

    def worse(self, run: Run, fused: Outputs, best: Outputs) -> None:
        remedy = "try fusion.kind: aggregate or weighted, or fewer teachers"
        alone = f"the best teacher alone ({best.label}, {best.quality:.2f} dB)"
        found = f"({fused.network.kind}) reach {fused.quality:.2f} dB on held-out tiles, below {alone}"
        if run.recipe.judged_by != "teachers":  # sharp targets are not judged by PSNR against HR
            run.reporter.warn(f"fused targets {found}; {remedy}")

    def helper(self, recipe: Recipe, method: str, prepared: Prepared) -> Job | None:
        privileged = teacher_job(self, recipe, prepared.samples, method)
        return privileged or assistant_job(self, recipe, prepared, method)

    def helper_outputs(self, recipe: Recipe, job: Job) -> TrainedNetwork | None:
        return trained(job) if job.role == "assistant" else None

    def student(self, recipe: Recipe, prepared: Prepared, method: str, gap: int, seed: int) -> Job:
        return student_job(self, recipe, prepared, method, seed)

    def score(
        self, run: Run, prepared: Prepared, jobs: Sequence[Job]
    ) -> tuple[list[Result], list[str], dict[str, np.ndarray]]:
        beside = self._described(run.planner, run.recipe.compare.beside)
        compared = models(run.recipe, run.planner.store, prepared, jobs, beside)
        reference = ""
        if run.recipe.by_fidelity:  # what all teachers make of a picture is the last but the students
            reference = [m.identity for m in compared if m.role in ("teacher", "fused")][-1]
        results, strip = Scoring(run, compared, run.tested, reference).results(jobs)
        if not run.tested:
            return held_out(results, prepared, run.planner.store, run.recipe.scale), [HELD_OUT], strip
        return results, [benchmark.name for benchmark in run.tested], strip

    def metrics(self, recipe: Recipe) -> tuple[Metric, ...]:
        return showing.metrics(recipe)

    def metric(self, recipe: Recipe) -> Metric:
        return replace(self.metrics(recipe)[0], digits=3)

    def export(
        self, run: Run, outcome: Outcome, job: Job, raw: Path, out: Path
    ) -> tuple[dict[str, str], dict[str, str]]:
        prepared = outcome.prepared
        facts = {
            "recipe": outcome.recipe.name,
            "method": job.spec.method.name,
            "seed": job.seed,
            "training": job.fingerprint,
            "tiles": prepared.samples.train.fingerprint,
            "teachers": {t.label: t.network.sha256 for t in prepared.teachers},
            "metrics": outcome.of(job).sets,
            "protocol": showing.protocol(outcome.recipe),
        }
        formats = outcome.recipe.export.formats
        tiles = prepared.samples
        trial = from_cache(run.planner.store, tiles.train, tiles.held_out) if formats else None
        made = export_student(raw, out, facts, formats=formats, trial=trial)
        return {kind: path.name for kind, path in made.files.items()}, made.missing

    def sentence(self, outcome: Outcome) -> str:
        return showing.sentence(outcome)

    def facts(self, outcome: Outcome) -> dict[str, str]:
        return showing.facts(outcome)

    def drawings(self, run: Run, outcome: Outcome) -> dict[str, Drawing]:
        return showing.drawings(outcome)

    def inputs(self, run: Run, samples: Samples) -> list[DataSet]:
        return [*super().inputs(run, samples), *test_inputs(run.tested or ())]

    def tags(self, prepared: Prepared) -> dict[str, str]:
        tags = {"tiles": prepared.samples.train.fingerprint}
        tags |= {f"sha256.{t.label}": t.network.sha256 for t in prepared.teachers}
        if prepared.fused is not None and prepared.fused.cached is not None:
            tags["fused"] = prepared.fused.cached.train.fingerprint
        return tags

    def teach_row(self, recipe: Recipe, outputs: Outputs) -> dict[str, Any]:
        return {"tiles": outputs.rows, "seconds": round(outputs.seconds, 2), "psnr_y": outputs.quality}

    def summary(
        self, outcome: Outcome, rows: list[dict[str, Any]], students: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"rows": showing.rows(outcome), "students": students}

    def teacher_costs(self, recipe: Recipe) -> list[int]:
        return counting.teacher_costs(recipe)

    def work(self, recipe: Recipe, pictures: int, height: int, width: int, teachers: Sequence[int]) -> Work:
        costs = list(teachers)
        own = counting.own_costs(recipe, len(costs))
        once = counting.work(recipe, pictures, height, width, costs, *own)
        return counting.with_views(once, recipe)

    # --- for a search

    def comparable(self, recipe: Recipe, samples: Samples | None = None) -> None:
        if not recipe.data.holdout:
            raise InputError("data.holdout", "above 0: trials are compared on held-out pictures", "0")
        if samples is not None and samples.held_out is None:
            raise InputError("data.holdout", "held-out pictures, by which trials are compared", "none")

    def settled(self, recipe: Recipe) -> Recipe:
        return settled(recipe)

    def candidates(self, recipe: Recipe) -> Mapping[str, Mapping[str, Any]]:
        return candidates(recipe)

    def altered(self, recipe: Recipe, values: Mapping[str, Any], where: str) -> Recipe:
        return altered(recipe, values, where)

    def own(self, recipe: Recipe, path: str, choices: Sequence[Any]) -> Any:
        return own(recipe, path, choices)

    def effort(self, recipe: Recipe, prepared: Prepared) -> Effort:
        return effort(recipe, prepared)

    def cost(self, job: Job) -> int:
        return counting.student_cost(job.spec, HR_SIDE // job.spec.scale)
