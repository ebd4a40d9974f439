"""All teachers as one: the tensors that join them, fitted once, and where the joined outputs lie."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import stamps
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt, open_verified
from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.steps.planner import Planner
from pipeline.steps.values import Column, Outputs, Samples
from pipeline.tasks.recognition import ensemble
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.teach import Computed, Source, commit_outputs, manifest
from pipeline.training.weights import pack

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

FUSED = "fused"
VERSION = 1


@dataclass(frozen=True, slots=True)
class FuseTask:
    """One shard of every member's outputs into one of the ensemble's."""

    cache: str
    samples: Receipt
    folder: str
    members: tuple[Receipt, ...]
    """Of the same pictures."""
    source: Source

    def run(self, device: str = "cpu") -> Receipt:
        """Returns the committed shard's receipt. Idempotent."""
        store = Store.open(self.cache)
        tensors = ensemble.load_joining(store, self.source.weights)
        begun = time.perf_counter()
        shards = [open_verified(store, receipt).columns for receipt in self.members]
        pictures, views = shards[0]["embedding"].shape[:2]
        flat: list[dict[str, Tensor]] = [
            {n: torch.from_numpy(np.array(s[n])).flatten(0, 1) for n in ("logits", "embedding") if n in s}
            for s in shards
        ]
        together = ensemble.fuse(flat, tensors, self.source.temperature, self.source.task.mean_of)
        fused = {
            name: value.view(pictures, views, *value.shape[1:]).numpy().astype(np.float16)
            for name, value in together.items()
        }
        ids = shards[0]["id"]
        stats = {"pictures": len(ids), "views": views, "seconds": time.perf_counter() - begun}
        return commit_outputs(
            store, self.folder, self.samples.key, Computed(ids, fused, stats), self.source.identity
        )


def fuse(
    task: RecognitionTask, planner: Planner, samples: Samples, members: Sequence[Outputs]
) -> tuple[Source, Column | None]:
    """The recipe's fusion, its tensors fitted where they are missing; no column where no outputs are cached."""
    recipe: Recognition = planner.recipe
    settings, store = recipe.fusion, planner.store
    widths = [int(m.network.network["embedding"]) for m in members]
    width = sum(widths)
    if settings.embeddings != "concatenate":  # so many pictures have no more components
        width = min(max(widths), samples.train.rows * recipe.data.views.count)
    facts = {
        "version": VERSION,
        "members": [m.network.identity for m in members],
        "fusion": settings.model_dump(mode="json"),
        "pictures": [samples.path(split) for split in ("train", "val")],
        "views": recipe.data.views.model_dump(),
    }
    identity = fingerprint(facts)
    folder = f"networks/fused-{identity}"
    rel = f"{folder}/weights.safetensors"
    if not stamps.intact(store, f"{folder}/stamp.json", identity):
        planner.tracked.begin()
        store.write_bytes(rel, pack(_joining(task, planner, samples, members, width)))
        stamps.put(store, f"{folder}/stamp.json", identity, [rel])
    source = Source(
        task=task,
        role=FUSED,
        network={"name": FUSED, "options": {}, "embedding": width},
        size=recipe.hr_size,
        classes=max(m.network.classes for m in members),
        weights=rel,
        identity=identity,
        members=tuple(m.network for m in members),
        temperature=settings.temperature,
    )
    cached = [m.cached for m in members if m.cached]
    if len(cached) < len(members):
        return source, None
    place = source.folder(samples.train, recipe.data.views, recipe.cache.features)
    made = [{r.key: r for _, m in c.splits() for r in m.shards} for c in cached]

    def step(pictures: Receipt) -> FuseTask:
        receipts = tuple(by_key[pictures.key] for by_key in made)
        return FuseTask(store.uri, pictures, place, receipts, source)

    def joined(pictures: Manifest, receipts: Mapping[str, Receipt]) -> Manifest:
        return manifest(source, place, pictures, receipts)

    return source, Column(FUSED, place, step, joined)


def fits(recipe: Recognition) -> bool:
    """Whether the fusion is fitted on held-out pictures."""
    fusion = recipe.fusion
    return len(recipe.seen_by) > 1 and fusion.kind != "mean" and not isinstance(fusion.weights, dict)


def _joining(
    task: RecognitionTask, planner: Planner, samples: Samples, members: Sequence[Outputs], width: int
) -> dict[str, Tensor]:
    """The tensors that join the members."""
    recipe: Recognition = planner.recipe
    settings, answers = recipe.fusion, task.answers(samples.classes)
    answering = [m for m in members if m.network.classes]
    shares = ensemble.equal_shares(max(len(answering), 1), answers)
    if not answering:
        pass
    elif isinstance(settings.weights, dict) and settings.kind == "weighted":
        specs = [spec for spec, m in zip(recipe.seen_by, members, strict=True) if m.network.classes]
        given = torch.tensor([settings.weights[spec.label] for spec in specs])
        if not given.sum():
            raise InputError("fusion.weights", "a teacher with logits whose weight is above 0", "none")
        shares = (given / given.sum()).view(-1, 1).expand(-1, answers).contiguous()
    elif settings.kind != "mean":
        logits = [_column(planner.store, m, "val", "logits") for m in answering]
        labels = _labels(planner.store, samples, "val")
        labels = labels.repeat_interleave(len(logits[0]) // len(labels))
        fit = ensemble.best_shares if settings.kind == "best" else ensemble.fitted_shares
        shares = fit(logits, labels, settings.temperature)
    centre = projection = torch.zeros(0)
    if settings.embeddings != "concatenate":
        joined = ensemble.join([_column(planner.store, m, "train", "embedding") for m in members])
        centre, projection = ensemble.principal(joined, width, settings.embeddings == "whiten")
    return {"shares": shares, "centre": centre, "projection": projection}


def _column(store: Store, member: Outputs, split: str, name: str) -> Tensor:
    """A cached output of one split's pictures in all views: (pictures x views, ...) float32."""
    assert member.cached is not None
    shards = member.cached.manifests[split].shards
    parts = [open_verified(store, receipt).columns[name] for receipt in shards]
    return torch.from_numpy(np.concatenate(parts)).float().flatten(0, 1)


def _labels(store: Store, samples: Samples, split: str) -> Tensor:
    parts = [open_verified(store, receipt).columns["label"] for receipt in samples.manifests[split].shards]
    return torch.from_numpy(np.concatenate(parts)).long()
