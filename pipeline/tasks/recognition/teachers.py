"""The networks that see HR: trained or read from a file, their outputs cached side by side, several fused into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import manifest as manifests
from pipeline.cache import stamps
from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.cache.format import Receipt, open_verified
from pipeline.cache.manifest import Manifest
from pipeline.errors import InputError
from pipeline.recipe.recognition import KD, Network, Recognition, RecognitionTeacher
from pipeline.tasks.recognition import ensemble
from pipeline.tasks.recognition import teach as teaching
from pipeline.tasks.recognition.ensemble import FuseTask
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.networks import build, load_weights
from pipeline.tasks.recognition.teach import OutputTask, Source
from pipeline.tasks.super_resolution.teach import STATS, read_stats
from pipeline.training.weights import pack

if TYPE_CHECKING:
    from pipeline.tasks.recognition.run import RecognitionRun

FUSED = "fused"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Data:
    """The pictures in the cache."""

    splits: dict[str, Manifest]
    classes: tuple[str, ...]

    def path(self, split: str) -> str:
        """Where the split's manifest lies."""
        return manifest_path(self.splits[split].inputs["folder"], self.splits[split])


@dataclass(frozen=True, slots=True)
class Helper:
    """A network at HR whose outputs are cached: a teacher, all of them together, or an assistant."""

    label: str
    source: Source
    outputs: str | None
    """Manifest of its outputs for the training pictures; None where they are made online."""
    seconds: float = 0.0
    job: RecognitionJob | None = None

    @property
    def role(self) -> str:
        """`teacher`, `fused` or `assistant`."""
        return self.source.role


def manifest_path(folder: str, manifest: Manifest) -> str:
    """Where a manifest lies."""
    return f"{folder}/manifest-{manifest.fingerprint}.json"


def chosen(recipe: Recognition, teachers: Sequence[Helper]) -> Helper:
    """Whom the recipe's method learns from: all teachers together, or the one that `kd` names. Raises InputError."""
    named = recipe.method.teacher if isinstance(recipe.method, KD) else FUSED
    if named == FUSED:
        return teachers[-1]
    labels = [label_of(recipe, teacher) for teacher in recipe.seen_by]
    wanted = named if len(labels) == 1 and named == "teacher" else f"teacher-{named}"
    if wanted not in labels:
        names = ", ".join([FUSED, *(t.label for t in recipe.seen_by)])
        raise InputError("method.teacher", f"one of {names}", repr(named))
    return teachers[labels.index(wanted)]


def label_of(recipe: Recognition, teacher: RecognitionTeacher) -> str:
    """How runs call a teacher."""
    return f"teacher-{teacher.label}" if len(recipe.seen_by) > 1 else "teacher"


class Teachers:
    """Makes what a run's students learn from, where it is missing."""

    def __init__(self, run: RecognitionRun, data: Data) -> None:
        self.run, self.data, self.recipe, self.store = run, data, run.recipe, run.store

    def all(self, cached: bool) -> list[Helper]:
        """Every teacher, trained side by side; fused last, where there are several. `cached`: with their outputs."""
        recipe = self.recipe
        jobs = [self._job(spec) for spec in recipe.seen_by]
        self.run.train([job for job in jobs if job is not None])
        sources = [self._source(spec, job) for spec, job in zip(recipe.seen_by, jobs)]
        labels = [label_of(recipe, spec) for spec in recipe.seen_by]
        several = len(sources) > 1
        fits = several and recipe.fusion.kind != "mean" and not isinstance(recipe.fusion.weights, dict)
        found = [Helper(label, source, None, job=job) for label, source, job in zip(labels, sources, jobs)]
        if cached or fits:
            found = self.outputs(found, ("train", "val") if fits else ("train",))
        return [*found, self._fused(found, cached)] if several else found

    def assistant(
        self, recipe: Recognition, method: str, teachers: Sequence[Helper], others: Iterable[Helper]
    ) -> Helper:
        """The method's assistant. One unlike the first has a label of its own: the first's is a row of the table."""
        teacher = chosen(recipe, teachers)
        outputs = {"teacher": teacher.outputs} if teacher.outputs else {}
        job = self.run.job(
            recipe, "assistant", self.data, 1, recipe.seed, outputs, {"teacher": teacher.source}
        )
        first = next((helper.job for helper in others if helper.job), job)
        if first.fingerprint != job.fingerprint:
            job = replace(job, label=f"{job.label}-{method}")
        self.run.train([job])
        return self.outputs([Helper(job.label, job.source(), None, job=job)], ("train",))[0]

    def outputs(self, helpers: Sequence[Helper], splits: Sequence[str]) -> list[Helper]:
        """All networks' outputs, shard by shard, those alone that are missing, all networks at the same time."""
        run, recipe, views = self.run, self.recipe, self.recipe.data.views
        shards = [r for split in splits for r in self.data.splits[split].shards]
        folders = [self._folder(helper.source) for helper in helpers]
        done = [manifests.committed(self.store, folder, STATS) for folder in folders]
        tasks: list[tuple[int, OutputTask]] = []
        for i, (helper, folder) in enumerate(zip(helpers, folders)):
            batch = self._spec(helper).batch
            tasks += [
                (
                    i,
                    OutputTask(
                        *(self.store.uri, r, folder, helper.source, views.model_dump()),
                        recipe.cache.features,
                        batch,
                    ),
                )
                for r in shards
                if r.key not in done[i]
            ]
        run.shards_written += len(tasks)
        run.shards_reused += len(helpers) * len(shards) - len(tasks)
        if tasks:
            run.tracked.begin()
            what = f"teach {helpers[0].label if len(helpers) == 1 else 'teachers'}"
            gpus = max(self._spec(helper).gpus for helper in helpers)
            with run.reporter.line(what, sum(t.pictures.rows for _, t in tasks), "pictures") as line:
                for i, receipt in run.engine.map(_teach, tasks, gpus=gpus):
                    done[i][receipt.key] = receipt
                    line.advance(receipt.rows)
        train = self.data.splits["train"]
        made = []
        for helper, folder, receipts in zip(helpers, folders, done):
            manifest = run.save(folder, teaching.manifest(helper.source, folder, train, receipts))
            stats = read_stats(self.store, folder, [r.key for r in train.shards])
            seconds = sum(s["seconds"] for s in stats)
            made.append(replace(helper, outputs=manifest_path(folder, manifest), seconds=seconds))
        return made

    def _spec(self, helper: Helper) -> RecognitionTeacher:
        specs = {label_of(self.recipe, spec): spec for spec in self.recipe.seen_by}
        return specs.get(helper.label, self.recipe.seen_by[0])

    def _folder(self, source: Source) -> str:
        recipe = self.recipe
        return source.folder(self.data.splits["train"], recipe.data.views, recipe.cache.features)

    def _job(self, spec: RecognitionTeacher) -> RecognitionJob | None:
        """A teacher's training; None where its weights are given."""
        if spec.checkpoint is not None:
            return None
        recipe = self.recipe
        if recipe.teachers:
            recipe = recipe.model_copy(update={"teacher": spec, "teachers": ()})
        seed = recipe.seed if spec.seed is None else spec.seed
        job = self.run.job(recipe, "teacher", self.data, 1, seed, {}, {})
        return replace(job, label=label_of(self.recipe, spec))

    def _source(self, spec: RecognitionTeacher, job: RecognitionJob | None) -> Source:
        classes = len(self.data.classes)
        if job is not None:
            weights, identity = f"{job.folder}/weights.safetensors", job.fingerprint
        else:
            assert spec.checkpoint is not None
            weights, identity = self._imported(spec.checkpoint, spec.network, classes)
        return teaching.source_of(self.recipe, "teacher", spec.network, classes, weights, identity)

    def _imported(self, file: str, network: Network, classes: int) -> tuple[str, str]:
        """A checkpoint's tensors, copied into the cache after a look whether they fit."""
        segment = self.recipe.task == "segmentation"
        net = load_weights(build(network, self.recipe.hr_size, classes, segment=segment), file)
        digest = file_sha256(file)[:16]
        folder = f"networks/checkpoint-{digest}"
        rel = f"{folder}/weights.safetensors"
        if not stamps.intact(self.store, f"{folder}/stamp.json", digest):
            self.store.write_bytes(rel, pack(net.state_dict()))
            stamps.put(self.store, f"{folder}/stamp.json", digest, [rel])
        return rel, digest

    def _fused(self, members: Sequence[Helper], cached: bool) -> Helper:
        """All teachers as one, their outputs fused from the cached ones."""
        recipe, settings = self.recipe, self.recipe.fusion
        widths = [int(helper.source.network["embedding"]) for helper in members]
        width = max(widths) if settings.embeddings == "project" else sum(widths)
        facts = {
            "version": VERSION,
            "members": [helper.source.identity for helper in members],
            "fusion": settings.model_dump(mode="json"),
            "pictures": [self.data.path(split) for split in ("train", "val")],
            "views": recipe.data.views.model_dump(),
        }
        identity = fingerprint(facts)
        folder = f"networks/fused-{identity}"
        rel = f"{folder}/weights.safetensors"
        if not stamps.intact(self.store, f"{folder}/stamp.json", identity):
            self.run.tracked.begin()
            self.store.write_bytes(rel, pack(self._joining(members, width)))
            stamps.put(self.store, f"{folder}/stamp.json", identity, [rel])
        source = Source(
            role=FUSED,
            network={"name": FUSED, "options": {}, "embedding": width},
            size=recipe.hr_size,
            classes=len(self.data.classes),
            segment=recipe.task == "segmentation",
            weights=rel,
            identity=identity,
            members=tuple(helper.source for helper in members),
            temperature=settings.temperature,
        )
        return self._fuse(source, members) if cached else Helper(FUSED, source, None)

    def _joining(self, members: Sequence[Helper], width: int) -> dict[str, Tensor]:
        """The tensors that join the members."""
        settings, classes = self.recipe.fusion, len(self.data.classes)
        if self.recipe.task == "segmentation":
            classes = 2
        shares = ensemble.equal_shares(len(members), classes)
        if isinstance(settings.weights, dict) and settings.kind == "weighted":
            given = torch.tensor([settings.weights[spec.label] for spec in self.recipe.seen_by])
            shares = (given / given.sum()).view(-1, 1).expand(-1, classes).contiguous()
        elif settings.kind != "mean":
            logits = [self._column(helper, "val", "logits") for helper in members]
            labels = self._labels("val").repeat_interleave(len(logits[0]) // len(self._labels("val")))
            fit = ensemble.best_shares if settings.kind == "best" else ensemble.fitted_shares
            shares = fit(logits, labels, settings.temperature)
        centre = projection = torch.zeros(0)
        if settings.embeddings == "project":
            joined = ensemble.join([self._column(helper, "train", "embedding") for helper in members])
            centre, projection = ensemble.principal(joined, width)
        return {"shares": shares, "centre": centre, "projection": projection}

    def _column(self, helper: Helper, split: str, name: str) -> Tensor:
        """A cached output of one split's pictures in all views: (pictures x views, ...) float32."""
        done = manifests.committed(self.store, self._folder(helper.source), STATS)
        parts = [open_verified(self.store, done[r.key]).columns[name] for r in self.data.splits[split].shards]
        return torch.from_numpy(np.concatenate(parts)).float().flatten(0, 1)

    def _labels(self, split: str) -> Tensor:
        shards = self.data.splits[split].shards
        parts = [open_verified(self.store, receipt).columns["label"] for receipt in shards]
        return torch.from_numpy(np.concatenate(parts)).long()

    def _fuse(self, source: Source, members: Sequence[Helper]) -> Helper:
        run, train, folder = self.run, self.data.splits["train"], self._folder(source)
        done = manifests.committed(self.store, folder, STATS)
        made = [manifests.committed(self.store, self._folder(m.source), STATS) for m in members]
        tasks = [
            FuseTask(
                cache=self.store.uri,
                folder=folder,
                members=tuple(receipts[r.key] for receipts in made),
                weights=source.weights,
                temperature=source.temperature,
                identity=source.identity,
            )
            for r in train.shards
            if r.key not in done
        ]
        if tasks:
            run.tracked.begin()
            with run.reporter.line("fuse", sum(r.rows for r in train.shards), "pictures") as line:
                for receipt in run.engine.map(_fuse, tasks):
                    done[receipt.key] = receipt
                    line.advance(receipt.rows)
        manifest = run.save(folder, teaching.manifest(source, folder, train, done))
        return Helper(FUSED, source, manifest_path(folder, manifest))


def _teach(task: tuple[int, OutputTask], device: str) -> tuple[int, Receipt]:
    return task[0], task[1].run(device)


def _fuse(task: FuseTask, device: str) -> Receipt:
    return task.run(device)
