"""The road from pictures and checkpoints to fused targets: tiles, teach, fuse.

Each step reads what the one before committed, writes under a content fingerprint, and does nothing where its output is
already there. Everything here may be killed at any point and run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.cache import manifest as manifests
from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.deploy.evaluate import announce
from pipeline.progress import Reporter
from pipeline.recipe.recipe import Aggregate, Recipe, Weighted
from pipeline.road.engines import Engine
from pipeline.tasks.super_resolution import fuse as fusing
from pipeline.tasks.super_resolution import teach as teaching
from pipeline.tasks.super_resolution import teacher_facts as describing
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.tasks.super_resolution.distill import Columns, TrainJob, job_fingerprint, located
from pipeline.tasks.super_resolution.teach import TeachTask
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts
from teachers.fusion import Weights
from teachers.loading import load_teacher

SPLITS = ("train", "held_out")


@dataclass(frozen=True, slots=True)
class Cached:
    """One finished column of the cache: its manifests for the training tiles and, where there are any, the
    held-out ones.
    """

    folder: str
    train: Manifest
    held_out: Manifest | None

    def columns(self, column: str) -> Columns:
        return Columns(
            column, path(self.folder, self.train), path(self.folder, self.held_out) if self.held_out else None
        )

    def splits(self) -> Iterator[tuple[str, Manifest]]:
        for name in SPLITS:
            if (found := getattr(self, name)) is not None:
                yield name, found


@dataclass(frozen=True, slots=True)
class Taught:
    """One teacher's cached outputs and figures."""

    facts: TeacherFacts
    cached: Cached
    psnr_y: float
    """dB on the held-out tiles (on the training tiles where nothing is held out)."""
    seconds: float
    """Forward time over all its tiles, on whatever machine made them."""
    tiles: int


@dataclass(frozen=True, slots=True)
class Fused:
    """The fused targets and how they compare."""

    cached: Cached
    kind: str
    psnr_y: float
    weights: Weights | None
    network: str | None
    """Aggregation weights, relative to the cache."""


def path(folder: str, manifest: Manifest) -> str:
    """Where a manifest lies."""
    return f"{folder}/manifest-{manifest.fingerprint}.json"


class Road:
    """The cache-building half of a run."""

    def __init__(
        self, recipe: Recipe, engine: Engine, reporter: Reporter, on_work: Callable[[], None]
    ) -> None:
        self.recipe, self.engine, self.reporter = recipe, engine, reporter
        self.store = Store.open(recipe.cache.root)
        self.on_work = on_work
        """Called before the first thing is computed (to open the tracking run only where there is news)."""
        self.pictures: dict[str, str] = {}
        """Of the last `tiles`: HR pictures, by the sha256 of their pixels."""
        self.shards_written = 0
        self.shards_reused = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One builder of a cache at a time; the second waits and then finds the work done."""

        def waiting(owner: str) -> None:
            self.reporter.say(f"cache {self.store.uri} is being built by {owner}; waiting for it")

        with self.store.lock("building.lock", on_wait=waiting):
            yield

    def tiles(self) -> Cached:
        """Cut the recipe's pictures into tile shards."""
        plan = tiling.plan(self.recipe, self.store)
        for survey in plan.surveys:
            announce(survey, self.reporter)
        self.pictures = {s.picture.pixels: s.picture.path for s in plan.sources if not s.lr_only}
        for bad in plan.quarantined:
            self.reporter.warn(f"left out {bad.path}: {bad.reason}")
        receipts = dict(plan.kept)
        if plan.tasks:
            self.on_work()
            pictures = sum(len(t.sources) for t in plan.tasks)
            with self.reporter.line("tiles", len(plan.tasks), "shards") as line:
                for receipt in self.engine.map(_cut, plan.tasks):
                    receipts[receipt.key] = receipt
                    line.advance(note=f"{pictures} new pictures")
        train = self._save(plan.folder, plan.manifest(receipts, held_out=False))
        held_out = plan.manifest(receipts, held_out=True)
        return Cached(plan.folder, train, self._save(plan.folder, held_out) if held_out.shards else None)

    def _save(self, folder: str, manifest: Manifest) -> Manifest:
        return manifests.keep(manifest, self.store, path(folder, manifest))

    def check_teachers(self) -> None:
        """Open every teacher that this cache has not seen. Raises InputError for a file that is missing or unfit."""
        recipe = self.recipe
        kind = self.engine.device_kind(recipe.teach.gpus_per_actor)
        for spec in recipe.teachers:
            if describing.known_facts(spec, recipe.scale, self.store, kind) is None:
                load_teacher(spec.checkpoint, scale=recipe.scale, name=spec.label)

    def facts(self) -> list[TeacherFacts]:
        """Gate and describe every teacher; what the cache already knows costs nothing."""
        recipe = self.recipe
        kind = self.engine.device_kind(recipe.teach.gpus_per_actor)
        known: dict[str, TeacherFacts | None] = {
            s.label: describing.known_facts(s, recipe.scale, self.store, kind) for s in recipe.teachers
        }
        unknown = [s for s in recipe.teachers if known[s.label] is None]
        if unknown:
            self.on_work()
            asked = [(describing.located(spec), recipe.scale, self.store.uri) for spec in unknown]
            with self.reporter.line("look at teachers", len(asked), "teachers") as line:
                for found in self.engine.map(_look, asked, gpus=recipe.teach.gpus_per_actor):
                    known[found.label] = found
                    line.advance(note=f"{found.label}: {found.architecture}, {found.precision}")
        all_facts = [facts for s in recipe.teachers if (facts := known[s.label]) is not None]
        for facts in all_facts:
            for warning in facts.warnings:
                self.reporter.warn(warning)
        return all_facts

    def teach(self, tiles: Cached) -> list[Taught]:
        """Every teacher's output for every tile that has none yet."""
        recipe = self.recipe
        found = self.facts()
        kept: dict[str, dict[str, Receipt]] = {}
        tasks: dict[str, tuple[TeacherFacts, list[TeachTask]]] = {}
        for facts in found:
            folder = facts.folder(tiles.folder, recipe.cache.dtype)
            done = manifests.committed(self.store, folder, teaching.STATS)
            wanted = [r for _, m in tiles.splits() for r in m.shards]
            kept[facts.label] = {r.key: done[r.key] for r in wanted if r.key in done}
            todo = [r for r in wanted if r.key not in done]
            self.shards_reused += len(kept[facts.label])
            self.shards_written += len(todo)
            if todo:
                tasks[facts.label] = (facts, [self._task(r, folder) for r in todo])
        if tasks:
            self._run_teachers(tasks, kept)
        return [self._taught(facts, tiles, kept[facts.label]) for facts in found]

    def _task(self, tiles: Receipt, folder: str) -> TeachTask:
        recipe = self.recipe
        return TeachTask(self.store.uri, tiles, folder, recipe.scale, recipe.cache.dtype, recipe.teach.batch)

    def _run_teachers(
        self, tasks: dict[str, tuple[TeacherFacts, list[TeachTask]]], kept: dict[str, dict[str, Receipt]]
    ) -> None:
        self.on_work()
        total = sum(task.tiles.rows for _, todo in tasks.values() for task in todo)
        left = {label: len(todo) for label, (_, todo) in tasks.items()}
        with self.reporter.line("teach", total, "tiles") as line:

            def taught(label: str, receipt: Receipt, stats: dict[str, float]) -> None:
                kept[label][receipt.key] = receipt
                left[label] -= 1
                more = " ".join(f"{n}:{c}" for n, c in left.items() if c)
                line.advance(receipt.rows, f"shards left {more or 0}")

            self.engine.teach(tasks, self.recipe, taught)

    def _taught(self, facts: TeacherFacts, tiles: Cached, receipts: dict[str, Receipt]) -> Taught:
        folder = facts.folder(tiles.folder, self.recipe.cache.dtype)
        identity = facts.identity(tiles.folder, self.recipe.cache.dtype) | {
            "name": facts.label,
            "architecture": facts.architecture,
            "checkpoint": facts.path.rsplit("/", 1)[-1],
        }
        cached = self._column(identity, folder, tiles, receipts)
        stats = teaching.read_stats(self.store, folder, sorted(receipts))
        judged = self._judged(folder, tiles)
        seconds, rows = sum(s["seconds"] for s in stats), sum(int(s["tiles"]) for s in stats)
        return Taught(facts, cached, teaching.psnr(judged), seconds, rows)

    def _column(
        self, identity: dict[str, object], folder: str, tiles: Cached, receipts: dict[str, Receipt]
    ) -> Cached:
        made = {
            split: self._save(folder, teaching.output_manifest(identity, folder, m, receipts))
            for split, m in tiles.splits()
        }
        return Cached(folder, made["train"], made.get("held_out"))

    def _judged(self, folder: str, tiles: Cached) -> list[dict[str, float]]:
        judges = tiles.held_out or tiles.train
        return teaching.read_stats(self.store, folder, [r.key for r in judges.shards])

    def fuse(self, tiles: Cached, taught: list[Taught], train: Callable[[TrainJob], None]) -> Fused:
        """Turn the teachers' outputs into one target; `train` runs the aggregation network's training where
        it is asked for.
        """
        recipe, config = self.recipe, self.recipe.fusion
        folders = [t.cached.folder for t in taught]
        weights: Weights | None = None
        network: str | None = None
        extra: dict[str, object] = {}
        if isinstance(config, Weighted):
            weights = self._weights(config.weights, tiles, taught)
            extra = {"weights": asdict(weights)}
        elif isinstance(config, Aggregate):
            job = self.aggregation_job(tiles, taught)
            if job.result() is None:
                self.on_work()
                train(job)
            network = f"{job.folder}/weights.safetensors"
            extra = {"job": job.fingerprint}
        folder = fusing.fusion_folder(tiles.folder, config.kind, folders, extra)
        done = manifests.committed(self.store, folder, teaching.STATS)
        by_key = [{r.key: r for _, m in t.cached.splits() for r in m.shards} for t in taught]
        tasks = [
            fusing.FuseTask(
                cache=self.store.uri,
                tiles=tile,
                teachers=tuple(receipts[tile.key] for receipts in by_key),
                folder=folder,
                scale=recipe.scale,
                dtype=recipe.cache.dtype,
                kind=config.kind,
                weights=weights,
                network={"config": config.model_dump(), "weights": network} if network else {},
            )
            for _, m in tiles.splits()
            for tile in m.shards
            if tile.key not in done
        ]
        if tasks:
            self.on_work()
            with self.reporter.line("fuse", sum(t.tiles.rows for t in tasks), "tiles") as line:
                gpus = recipe.teach.gpus_per_actor if network else 0.0
                for receipt in self.engine.map(_fuse, tasks, gpus=gpus):
                    done[receipt.key] = receipt
                    line.advance(receipt.rows)
        identity: dict[str, object] = {
            "kind": config.kind,
            "teachers": [t.facts.label for t in taught],
            "sha256": [t.facts.sha256 for t in taught],
            **extra,
        }
        cached = self._column(identity, folder, tiles, done)
        fused = Fused(cached, config.kind, teaching.psnr(self._judged(folder, tiles)), weights, network)
        best = max(taught, key=lambda t: t.psnr_y)
        if fused.psnr_y < best.psnr_y:
            self.reporter.warn(
                f"fused targets ({config.kind}) reach {fused.psnr_y:.2f} dB on held-out tiles, below the best teacher "
                "alone "
                f"({best.facts.label}, {best.psnr_y:.2f} dB); try fusion.kind: aggregate or weighted, or fewer teachers"
            )
        return fused

    def _weights(self, given: dict[str, float] | str, tiles: Cached, taught: list[Taught]) -> Weights:
        """The given weights, or those of least squared error on the training tiles (fitted once)."""
        if isinstance(given, dict):
            return Weights(tuple(given[t.facts.label] for t in taught))
        inputs = [tiles.train.fingerprint, *(t.cached.train.fingerprint for t in taught)]
        rel = f"fused/fits/{fingerprint(inputs)}.json"

        def own(found: dict[str, Any]) -> Weights:
            if len(found["values"]) != len(taught):
                raise ValueError(f"it has {len(found['values'])} weights for {len(taught)} teachers")
            return Weights(tuple(map(float, found["values"])), float(found["offset"]))

        if (known := records.load(self.store, rel, own)) is not None:
            return known
        self.on_work()
        asked = (self.store.uri, tiles.train, [t.cached.train for t in taught])
        (weights,) = self.engine.map(_fit, [asked])
        records.save(self.store, rel, asdict(weights))
        return own(asdict(weights))

    def aggregation_job(self, tiles: Cached, taught: list[Taught]) -> TrainJob:
        """The training of the aggregation network on these teachers' cached outputs."""
        recipe = self.recipe
        columns = {"lr": tiles.columns("lr"), "hr": tiles.columns("hr")}
        columns |= {f"teacher{i}": t.cached.columns("sr") for i, t in enumerate(taught)}
        inputs = {
            "tiles": tiles.train.fingerprint,
            **{f"teacher{i}": t.cached.train.fingerprint for i, t in enumerate(taught)},
        }
        start: tuple[float, ...] = ()
        if (
            isinstance(recipe.fusion, Aggregate)
            and recipe.fusion.skip == "weighted"
            and not recipe.fusion.official
        ):
            start = self._weights("fit", tiles, taught).values
        print_ = job_fingerprint(recipe, "aggregation", recipe.seed, inputs)
        return TrainJob(
            label="aggregation",
            kind="aggregation",
            recipe=located(recipe).model_dump(mode="json"),
            seed=recipe.seed,
            columns=columns,
            folder=f"fused/networks/{print_}",
            fingerprint=print_,
            skip_weights=start,
        )


def _cut(task: tiling.TileTask, device: str) -> Receipt:
    return task.run()


def _look(asked: tuple, device: str) -> TeacherFacts:
    spec, scale, cache = asked
    return describing.find_facts(spec, scale, cache, device)


def _fuse(task: fusing.FuseTask, device: str) -> Receipt:
    return task.run(device)[0]


def _fit(asked: tuple, device: str) -> Weights:
    return fusing.fit_weights(*asked)
