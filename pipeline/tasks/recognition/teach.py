"""Outputs of a network at HR for every picture and view, cached once: one shard of pictures in, one of outputs out.

They do not depend on the resolution gap, the method or the seed of a student, so all of these share them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import stats as statistics
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt, Shard, open_verified, write_shard
from pipeline.cache.manifest import Manifest, write_receipt
from pipeline.cache.store import Store
from pipeline.cost import multiply_adds
from pipeline.errors import FacultyError
from pipeline.steps.batches import Halving
from pipeline.tasks.recognition.ensemble import Ensemble, load_joining
from pipeline.tasks.recognition.networks import Recogniser
from pipeline.tasks.recognition.recipe import Network
from pipeline.tasks.recognition.sampler import ViewBatch
from pipeline.tasks.recognition.settings import Views
from pipeline.tasks.recognition.views import draw, see
from pipeline.training import weights
from teachers.classifier import Classifier, Public, open_classifier

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

VERSION = 1
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True, slots=True)
class Source:
    """A trained network by value: what it is, and where its weights lie in the cache."""

    task: RecognitionTask
    role: str
    """`teacher`, `assistant`, `student`; `fused` for several teachers together."""
    network: dict[str, Any]
    size: tuple[int, int]
    classes: int
    """How many answers it gives; 0 for an embedder, which has an embedding alone."""
    weights: str
    """Name in the cache."""
    identity: str
    """Follows from its weights."""
    members: tuple[Source, ...] = ()
    """Of several teachers together; `weights` say then how they are joined."""
    temperature: float = 1.0
    """At which the members' soft labels are averaged."""
    public: Public | None = None
    """Of a classifier made elsewhere; `weights` are the file that it is opened from then."""

    @property
    def multiply_adds(self) -> int | None:
        """Of one picture; None where nobody knows."""
        if self.public is not None:
            known: int | None = self.network["multiply_adds"]
            return known
        net = self.task.build(Network(**self.network), self.size, self.classes)
        return multiply_adds(net, (1, 3, *self.size))

    def open(self, cache: str, device: str) -> Recogniser | Ensemble | Classifier:
        """The network, ready to run."""
        return self.load(Store.open(cache), device)

    def load(self, store: Store, device: str = "cpu") -> Recogniser | Ensemble | Classifier:
        """In eval mode."""
        from safetensors.torch import load

        if self.public is not None:
            data = store.read_bytes(self.weights) if self.weights else b""
            return open_classifier(self.public, data, self.network["name"], self.size).to(device).eval()
        if self.members:
            members = [member.load(store) for member in self.members]
            joining = load_joining(store, self.weights)
            return Ensemble(members, joining, self.temperature, self.task.mean_of).to(device).eval()
        net = self.task.build(Network(**self.network), self.size, self.classes)
        net.load_state_dict(load(weights.read(store, self.weights)))
        return net.to(device).eval()  # type: ignore[return-value]

    def folder(self, pictures: Manifest, views: Views, features: str) -> str:
        """Named after everything that shapes its outputs, apart from the pictures, which name the shards."""
        facts = {
            "version": VERSION,
            "identity": self.identity,
            "views": views.model_dump(),
            "features": features,
            "pictures": pictures.inputs["folder"],
        }
        return f"outputs/recognition/{self.role}-{fingerprint(facts)}"


@dataclass(frozen=True, slots=True)
class OutputTask:
    """Run a network on all views of one shard of pictures."""

    cache: str
    samples: Receipt
    folder: str
    source: Source
    views: dict[str, Any]
    features: str
    batch: int

    @property
    def unit(self) -> float:
        """Outputs are no pictures."""
        return 1.0

    def read(self) -> Shard:
        """The pictures, verified."""
        return open_verified(Store.open(self.cache), self.samples)

    def compute(self, shard: Shard, net: Recogniser | Ensemble | Classifier, device: str) -> Computed:
        """All views of all pictures. Raises FacultyError for outputs that are not finite."""
        ids, hr = shard.columns["id"], shard.columns["hr"]
        views = Views(**self.views)
        begun = time.perf_counter()
        seen = [self._view(net, ids, hr, views, number, device) for number in range(views.count)]
        seconds = time.perf_counter() - begun
        found = {name: np.stack([view[name] for view in seen], axis=1) for name in seen[0]}
        stats = {"pictures": len(ids), "views": views.count, "seconds": seconds}
        return Computed(ids, found, {**stats, **Halving(self.folder, self.batch, 0).said})

    def commit(self, computed: Computed) -> tuple[Receipt, dict[str, float]]:
        """Write the shard of outputs and its statistics; its receipt comes last. Idempotent."""
        store = Store.open(self.cache)
        receipt = commit_outputs(store, self.folder, self.samples.key, computed, self.source.identity)
        return receipt, computed.stats

    @torch.inference_mode()
    def _view(
        self,
        net: Recogniser | Ensemble | Classifier,
        ids: list[str],
        hr: np.ndarray,
        views: Views,
        number: int,
        device: str,
    ) -> dict[str, np.ndarray]:
        parts: dict[str, list[Tensor]] = {}
        batches = Halving(self.folder, self.batch, len(ids), passes=views.count)
        for rows in batches:
            moves = [draw(views, i, number) for i in ids[rows]]
            with batches.tried():
                x = ViewBatch({"hr": see(hr[rows], moves)}, []).to(device)["hr"]
                out = net(x)
            if batches.again:
                continue
            for name in kept(self.features, self.source.classes > 0):
                parts.setdefault(name, []).append(out[name].float().cpu())
        return {
            name: _half(torch.cat(values).numpy(), name, self.source.role) for name, values in parts.items()
        }


def kept(features: str, answers: bool = True) -> tuple[str, ...]:
    """The cached outputs of a network, with or without logits."""
    return (
        *(("logits",) if answers else ()),
        "embedding",
        *(("map",) if features == "map" else ()),
    )


def _half(values: np.ndarray, name: str, role: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FacultyError(f"{role}: its {name} are not finite; train it again with a lower learning rate")
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)


def manifest(source: Source, folder: str, pictures: Manifest, receipts: Mapping[str, Receipt]) -> Manifest:
    """Of a network's outputs over one split."""
    return Manifest(
        kind="outputs",
        fingerprint=fingerprint({"folder": folder, "pictures": pictures.fingerprint}),
        inputs={
            "name": f"{source.role} {source.network['name']}",
            "identity": source.identity,
            "pictures": pictures.fingerprint,
        },
        shards=tuple(receipts[r.key] for r in pictures.shards),
    )


@dataclass(frozen=True, slots=True)
class Computed:
    """A network's answers to one shard, not yet written."""

    ids: list[str]
    columns: dict[str, np.ndarray]
    """By name: (pictures, views, ...) float16."""
    stats: dict[str, float]


def commit_outputs(store: Store, folder: str, key: str, computed: Computed, identity: str) -> Receipt:
    """Write a shard of outputs, its statistics, and last its receipt."""
    written = write_shard(
        store,
        f"{folder}/{key}.arrow",
        {"id": computed.ids, **computed.columns},
        metadata={"kind": "outputs", "key": key, "source": identity},
        value_ranges={name: (float(x.min()), float(x.max())) for name, x in computed.columns.items()},
    )
    statistics.save(store, folder, key, computed.stats)
    write_receipt(store, written)
    return written
