"""The one planner: what a run's trainings read, made where it is missing.

Each part reads what the one before committed, writes under a content fingerprint, and does nothing where its output is
already there. Everything here may be killed at any point and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from pipeline.cache import manifest as manifests
from pipeline.cache import stats as statistics
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.stats import STATS, Stats
from pipeline.cache.store import Store
from pipeline.progress import Reporter
from pipeline.recipe.settings import Gpus
from pipeline.steps.batches import HALVED
from pipeline.steps.engines import Engine
from pipeline.steps.job import Job
from pipeline.steps.tracked import Tracked
from pipeline.steps.values import (
    Cached,
    Column,
    Network,
    SamplePlan,
    Samples,
    Step,
    manifest_path,
)


class Planner:
    """Asks what is there, and gives the rest to the engine."""

    def __init__(
        self, recipe: Any, actors: Any, engine: Engine, reporter: Reporter, tracked: Tracked
    ) -> None:
        """`actors` are the settings of the processes that run networks (`Teach`)."""
        self.recipe, self.actors = recipe, actors
        self.engine, self.reporter, self.tracked = engine, reporter, tracked
        self.store = Store.open(recipe.cache.root)
        self.shards_written = 0
        self.shards_reused = 0

    def _begin(self) -> None:
        """Something is to be computed: open the run's record, and say on what."""
        self.tracked.begin()
        asked = {"teachers": self.actors.gpus_per_actor, "students": self.recipe.distill.gpus_per_worker}
        kinds = {who: self.engine.device_kind(gpus) for who, gpus in asked.items()}
        who = ", ".join(f"{who} on {'GPU' if kind == 'cuda' else 'CPU'}s" for who, kind in kinds.items())
        self.reporter.say(f"devices: {self.engine.devices()}{f'; {who}' if 'cuda' in kinds.values() else ''}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One builder of a cache at a time; the second waits and then finds the work done."""

        def waiting(owner: str) -> None:
            self.reporter.say(f"cache {self.store.uri} is being built by {owner}; waiting for it")

        with self.store.lock("building.lock", on_wait=waiting):
            yield

    def keep(self, folder: str, manifest: Manifest) -> Manifest:
        """Write a manifest where it is not there."""
        return manifests.keep(manifest, self.store, manifest_path(folder, manifest))

    def map(
        self,
        what: str,
        function: Callable[[Any, str], Any],
        items: Sequence[Any],
        unit: str,
        *,
        size: Callable[[Any], int] = lambda item: 1,
        note: Callable[[Any], str] = lambda done: "",
        gpus: Gpus = 0.0,
    ) -> Iterator[Any]:
        """`function(item, device)` of every item on the engine, under one progress line; nothing for no items.

        `size` of an item is what it counts for on the line, `note(result)` stands behind it.
        """
        if not items:
            return
        self._begin()
        with self.reporter.line(what, sum(map(size, items)), unit) as line:
            for done in self.engine.map(partial(_numbered, function), list(enumerate(items)), gpus=gpus):
                number, result = done
                yield result
                line.advance(size(items[number]), note(result))

    def samples(self, plan: SamplePlan, what: str) -> Samples:
        """The recipe's samples as shards."""
        receipts = dict(plan.kept)
        for receipt in self.map(what, _run, plan.steps, "shards", note=lambda _: plan.note):
            receipts[receipt.key] = receipt
        return plan.samples(receipts, self.keep)

    def outputs(
        self,
        what: str,
        unit: str,
        samples: Cached,
        columns: Sequence[tuple[Column, Network]],
        splits: Sequence[str],
    ) -> list[Cached]:
        """Every network's outputs for every sample of these splits, all networks at the same time."""
        wanted = [r for split in splits for r in samples.manifests[split].shards]
        kept: dict[str, dict[str, Receipt]] = {}
        tasks: dict[str, tuple[Network, list[Any]]] = {}
        for column, network in columns:
            done = manifests.committed(self.store, column.folder, STATS)
            kept[column.label] = {r.key: done[r.key] for r in wanted if r.key in done}
            todo = [column.step(r) for r in wanted if r.key not in done]
            self.shards_reused += len(kept[column.label])
            self.shards_written += len(todo)
            if todo:
                tasks[column.label] = (network, todo)
        if tasks:
            self._run_networks(what, unit, tasks, kept)
        return [self._cached(column, samples, kept[column.label], splits) for column, _ in columns]

    def _run_networks(
        self,
        what: str,
        unit: str,
        tasks: Mapping[str, tuple[Network, list[Any]]],
        kept: dict[str, dict[str, Receipt]],
    ) -> None:
        self._begin()
        total = sum(step.samples.rows for _, todo in tasks.values() for step in todo)
        left = {label: len(todo) for label, (_, todo) in tasks.items()}
        done = 0
        with self.reporter.line(what, total, unit) as line:

            def taught(label: str, receipt: Receipt, stats: Stats) -> None:
                nonlocal done
                kept[label][receipt.key] = receipt
                left[label] -= 1
                done += receipt.rows
                more = " ".join(f"{n}:{c}" for n, c in left.items() if c)
                line.to(done, f"shards left {more or 0}")
                if HALVED in stats:
                    few = f"{stats[HALVED]:.0f} {unit} at a time"
                    self.reporter.warn(f"{label}: the GPU's memory holds no larger batch, so it does {few}")

            def moved(samples: float) -> None:
                if samples:
                    line.to(min(done + round(samples), total))

            self.engine.teach(tasks, self.actors, taught, moved)

    def fused(self, unit: str, samples: Cached, column: Column, splits: Sequence[str]) -> Cached:
        """The outputs of several networks together, from their cached ones."""
        wanted = [r for split in splits for r in samples.manifests[split].shards]
        done = manifests.committed(self.store, column.folder, STATS)
        todo = [column.step(r) for r in wanted if r.key not in done]
        made = self.map("fuse", _run, todo, unit, size=lambda step: step.samples.rows, gpus=column.gpus)
        for receipt in made:
            done[receipt.key] = receipt
        return self._cached(column, samples, done, splits)

    def _cached(
        self, column: Column, samples: Cached, receipts: Mapping[str, Receipt], splits: Sequence[str]
    ) -> Cached:
        made = {s: column.manifest(samples.manifests[s], receipts) for s in splits}
        return Cached(column.folder, {s: self.keep(column.folder, m) for s, m in made.items()})

    def stats(self, cached: Cached, splits: Sequence[str]) -> list[Stats]:
        """The statistics of a folder's shards. Raises Damaged for those that must be made again, with their shard."""
        keys = sorted(r.key for split in splits for r in cached.manifests[split].shards)
        return statistics.load(self.store, cached.folder, keys)

    def train(self, jobs: Sequence[Job]) -> None:
        """Train what has no result yet. One command at a time trains a job; a second waits and finds it done."""
        with ExitStack() as stack:
            # In one order, so that no two wait for each other.
            for job in sorted((job for job in jobs if job.result() is None), key=lambda j: j.folder):
                waiting = partial(self._waiting, job.label)
                stack.enter_context(job.output().lock("training.lock", on_wait=waiting))
            todo = [job for job in jobs if job.result() is None]
            if todo:
                self._train(todo)
        for job in jobs:
            if not job.scored:
                self.tracked.end(job.label)

    def _waiting(self, label: str, owner: str) -> None:
        self.reporter.say(f"{label} is being trained by {owner}; waiting for it")

    def _train(self, jobs: Sequence[Job]) -> None:
        self._begin()
        records = {job.label: self.tracked.training(job) for job in jobs}
        with ExitStack() as stack:
            lines = {
                job.label: stack.enter_context(self.reporter.line(job.label, job.steps, "steps"))
                for job in jobs
            }
            self.engine.train(jobs, lines, {job.label: records[job.label].handle() for job in jobs})


def _numbered(function: Callable[[Any, str], Any], item: tuple[int, Any], device: str) -> tuple[int, Any]:
    return item[0], function(item[1], device)


def _run(step: Step, device: str) -> Any:
    return step.run(device)
