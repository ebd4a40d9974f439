"""A whole run, whatever its task: the cache, the trainings, the scores. Everything that is there already is skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.cache.mending import mends
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.progress import Once, Reporter
from pipeline.recipe.reading import with_method
from pipeline.road.equal import lengths
from pipeline.steps.engines import Engine
from pipeline.steps.job import Job
from pipeline.steps.planner import Planner
from pipeline.steps.tracked import Tracked
from pipeline.steps.values import Needs, Outcome, Outputs, Prepared, Samples
from pipeline.tasks.registry import task_of
from pipeline.tracking import RunTracker


class Run:
    """One recipe on one engine."""

    def __init__(
        self,
        recipe: Any,
        engine: Engine,
        reporter: Reporter,
        open_run: Callable[[], RunTracker] | None = None,
    ) -> None:
        self.recipe, self.engine, self.reporter = recipe, engine, Once(reporter)
        self.task = task_of(recipe)
        self.tracked = Tracked(open_run)
        self.planner = Planner(recipe, self.task.actors(recipe), engine, self.reporter, self.tracked)
        self.output = Store.open(recipe.output).below(recipe.name)
        self.stores = (self.planner.store, self.output)
        self.lengths: dict[str, int] = {}
        """Steps by method, where comparisons are not of equal steps."""
        self.work: dict[str, float] = {}
        """Multiply-adds by method, where they matter."""
        self.tested: Any = None
        """The test pictures, where the task reads them before the work begins."""

    def check(self, methods: Sequence[str]) -> None:
        """Refuse what cannot work before anything is started. Raises InputError."""
        for method in methods:
            with_method(self.recipe, method)
        gaps = list(self.task.gaps(self.recipe))
        if self.recipe.compare.equal != "steps" and len(gaps) > 1:
            remedy = "Take compare.equal: steps, or one gap (and no compare.gaps)."
            raise InputError("compare.equal", "one gap where work or time is equal", str(gaps), remedy)
        self.task.check(self, methods)

    @mends
    def teach(self) -> Prepared:
        """Samples and teachers' outputs; fused ones too where that takes no training. Raises InputError."""
        self.task.check(self, ())
        several = self.task.needs(self.recipe, (), True).fused
        with self.planner.locked():
            samples = self.samples()
            teachers = self._teachers(samples, True)
            return Prepared(samples, teachers, self._fused(samples, teachers, True) if several else None)

    @mends
    def prepare(self, methods: Sequence[str], scored: bool = False) -> Prepared:
        """What these methods train on, made where it is missing. Raises InputError."""
        self.check(methods)
        own = (
            [] if self.recipe.compare.equal == "steps" else [self.recipe.method.name]
        )  # the measure of the others
        return self._prepared(methods, self.task.needs(self.recipe, [*methods, *own], scored))

    @mends
    def shared(self, methods: Sequence[str], scored: bool = False) -> Prepared:
        """As `prepare`, without what a method trains before its students, whose length is theirs. Raises InputError."""
        self.check(methods)
        return self._prepared(methods, self.task.needs(self.recipe, methods, scored), helped=False)

    @mends
    def distill(self, methods: Sequence[str], seeds: Sequence[int]) -> tuple[Prepared, list[Job]]:
        """Train every method from every seed, on what is made where it is missing."""
        prepared = self.prepare(methods)
        return prepared, self._students(prepared, methods, seeds)

    @mends
    def everything(self, methods: Sequence[str], seeds: Sequence[int]) -> Outcome:
        """The road to its end: cache, trainings, scores."""
        self.tested = self.task.tested(self)
        prepared = self.prepare(methods, scored=True)
        jobs = self._students(prepared, methods, seeds)
        results, sets, scores = self.task.score(self, prepared, jobs)
        return Outcome(self.recipe, prepared, jobs, results, sets, scores, self.work)

    def student(self, prepared: Prepared, method: str, gap: int, seed: int) -> Job:
        """The training of one student on what is prepared."""
        return self.task.student(self.recipe_of(method), prepared, method, gap, seed)

    def recipe_of(self, method: str) -> Any:
        """The recipe with a method or variant, for as many steps as that gets."""
        recipe = with_method(self.recipe, method)
        if method not in self.lengths:
            return recipe
        train = recipe.train.model_copy(update={"steps": self.lengths[method]})
        return recipe.model_copy(update={"train": train})

    def _students(self, prepared: Prepared, methods: Sequence[str], seeds: Sequence[int]) -> list[Job]:
        gaps = self.task.gaps(self.recipe)
        jobs = [self.student(prepared, m, gap, seed) for gap in gaps for m in methods for seed in seeds]
        self.planner.train(jobs)
        return jobs

    def samples(self) -> Samples:
        """The recipe's samples, made where they are missing; to be called under the cache's lock."""
        samples = self.planner.samples(self.task.samples(self.planner), self.task.made)
        self.task.look(self, samples)
        self.tracked.reads(self.task.inputs(self, samples))
        return samples

    def _prepared(self, methods: Sequence[str], needs: Needs, helped: bool = True) -> Prepared:
        with self.planner.locked():
            samples = self.samples()
            teachers = self._teachers(samples, needs.outputs) if needs.teachers else []
            fused = self._fused(samples, teachers, needs.outputs) if needs.fused else None
        prepared = Prepared(samples, teachers, fused)
        if self.recipe.compare.equal != "steps":
            self.lengths, self.work = lengths(self, prepared, methods)
        return replace(prepared, helpers=self._helpers(prepared, methods)) if helped else prepared

    def _teachers(self, samples: Samples, cached: bool) -> list[Outputs]:
        """Every teacher, trained side by side where the run trains it; `cached`: with its outputs."""
        task, planner = self.task, self.planner
        jobs = task.teacher_jobs(self.recipe, samples)
        planner.train([job for job in jobs if job is not None])
        found = task.teachers(planner, samples, jobs)
        own = [*jobs, *[None] * (len(found) - len(jobs))]
        outputs = [
            Outputs(label, "teacher", network, None, job=job) for (label, network), job in zip(found, own)
        ]
        if not cached:
            return outputs
        before = planner.shards_written
        outputs = self._cached(samples, outputs, "teach")
        if planner.shards_written > before:
            self._record(Prepared(samples, outputs))
        return outputs

    def _record(self, taught: Prepared) -> None:
        """In MLflow: what teaching took, and how good the teachers are."""
        record = self.tracked.child("teach")
        rows = {o.label: self.task.teach_row(self.recipe, o) for o in taught.teachers}
        values = {f"{label}/{key}": v for label, row in rows.items() for key, v in row.items()}
        record.metrics({name: v for name, v in values.items() if math.isfinite(v)}, 0)
        record.tags(self.task.tags(taught))
        record.finish()

    def _cached(self, samples: Samples, networks: Sequence[Outputs], what: str) -> list[Outputs]:
        """The same networks with their outputs in the cache."""
        task, planner = self.task, self.planner
        columns = [(task.column(planner, samples, n.label, n.network), n.network) for n in networks]
        splits = task.splits(self.recipe, samples)
        cached = planner.outputs(what, task.unit, samples, columns, splits)
        return [self._measured(replace(n, cached=c), splits) for n, c in zip(networks, cached)]

    def _measured(self, outputs: Outputs, splits: Sequence[str]) -> Outputs:
        assert outputs.cached is not None
        stats = self.planner.stats(outputs.cached, splits)
        seconds, rows = (sum(s.get(key, 0.0) for s in stats) for key in ("seconds", self.task.unit))
        outputs = replace(outputs, seconds=seconds, rows=int(rows))
        return replace(outputs, quality=self.task.quality(self.planner, outputs))

    def _fused(self, samples: Samples, members: Sequence[Outputs], cached: bool) -> Outputs:
        """All teachers as one."""
        label, network, column = self.task.fusion(self, samples, members)
        outputs = Outputs(label, "fused", network, None)
        if not cached or column is None:
            return outputs
        splits = self.task.splits(self.recipe, samples)
        made = self.planner.fused(self.task.unit, samples, column, splits)
        outputs = self._measured(replace(outputs, cached=made), splits)
        best = max(members, key=lambda m: m.quality)
        if outputs.quality < best.quality:
            self.task.worse(self, outputs, best)
        return outputs

    def _helpers(self, prepared: Prepared, methods: Sequence[str]) -> dict[str, Outputs]:
        """What methods train before their students, equal trainings once."""
        asked = {m: self.task.helper(self.recipe_of(m), m, prepared) for m in methods}
        told = told_apart({m: job for m, job in asked.items() if job is not None})
        unique = {job.fingerprint: job for job in told.values()}
        self.planner.train(list(unique.values()))
        made = {print_: self._helper(prepared, job) for print_, job in unique.items()}
        return {m: made[job.fingerprint] for m, job in told.items()}

    def _helper(self, prepared: Prepared, job: Job) -> Outputs:
        network = self.task.helper_outputs(self.recipe, job)
        outputs = Outputs(job.label, "assistant", network, None, job=job)
        if network is None:
            return outputs
        with self.planner.locked():
            return self._cached(prepared.samples, [outputs], f"teach {job.label}")[0]


def told_apart(jobs: Mapping[str, Job]) -> dict[str, Job]:
    """The same trainings by method; where unequal ones share a label, all but the first say their method too."""
    known: dict[str, Job] = {}
    taken: set[str] = set()
    for method, job in jobs.items():
        if job.fingerprint not in known:
            label = f"{job.label}-{method}" if job.label in taken else job.label
            known[job.fingerprint] = replace(job, label=label)
            taken.add(job.label)
    return {method: known[job.fingerprint] for method, job in jobs.items()}
