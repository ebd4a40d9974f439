"""Outputs of a network at HR for every picture and view, cached once: one shard of pictures in, one of outputs out.

They do not depend on the resolution gap, the method or the seed of a student, so all of these share them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt, open_verified, write_shard
from pipeline.cache.manifest import Manifest, write_receipt
from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.recipe.recognition import Network, Recognition, Views
from pipeline.tasks.recognition.ensemble import Ensemble, load_joining
from pipeline.tasks.recognition.networks import Recogniser, build
from pipeline.tasks.recognition.sampler import ViewBatch
from pipeline.tasks.recognition.views import draw, see
from pipeline.tasks.super_resolution.teach import STATS
from pipeline.training import weights

VERSION = 1
LARGEST = 65504.0
"""Of float16."""


@dataclass(frozen=True, slots=True)
class Source:
    """A trained network by value: what it is, and where its weights lie in the cache."""

    role: str
    """`teacher` or `assistant`."""
    network: dict[str, Any]
    size: tuple[int, int]
    classes: int
    segment: bool
    weights: str
    """Name in the cache."""
    identity: str
    """Follows from its weights."""
    members: tuple[Source, ...] = ()
    """Of several teachers together; `weights` say then how they are joined."""
    temperature: float = 1.0
    """At which the members' soft labels are averaged."""

    def load(self, store: Store, device: str = "cpu") -> Recogniser | Ensemble:
        """In eval mode."""
        from safetensors.torch import load

        if self.members:
            members = [member.load(store) for member in self.members]
            return Ensemble(members, load_joining(store, self.weights), self.temperature).to(device).eval()
        net = build(Network(**self.network), self.size, self.classes, segment=self.segment)
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
    pictures: Receipt
    folder: str
    source: Source
    views: dict[str, Any]
    features: str
    batch: int

    def run(self, device: str = "cpu") -> Receipt:
        """Returns the committed shard's receipt. Idempotent. Raises FacultyError for outputs that are not finite."""
        store = Store.open(self.cache)
        receipt = self.pictures
        shard = open_verified(store, receipt)
        columns = shard.columns
        ids, hr = columns["id"], columns["hr"]
        net, views = self.source.load(store, device), Views(**self.views)
        begun = time.perf_counter()
        seen = [self._view(net, ids, hr, views, number, device) for number in range(views.count)]
        seconds = time.perf_counter() - begun
        found: dict[str, np.ndarray] = {
            name: np.stack([view[name] for view in seen], axis=1) for name in seen[0]
        }
        ranges = {name: (float(x.min()), float(x.max())) for name, x in found.items()}
        written = write_shard(
            store,
            f"{self.folder}/{receipt.key}.arrow",
            {"id": ids, **found},
            metadata={"kind": "outputs", "key": receipt.key, "source": self.source.identity},
            value_ranges=ranges,
        )
        stats = {"pictures": len(ids), "views": views.count, "seconds": seconds}
        records.save(store, f"{self.folder}/{receipt.key}{STATS}", stats)
        write_receipt(store, written)
        return written

    @torch.inference_mode()
    def _view(
        self,
        net: Recogniser | Ensemble,
        ids: list[str],
        hr: np.ndarray,
        views: Views,
        number: int,
        device: str,
    ) -> dict[str, np.ndarray]:
        parts: dict[str, list[Tensor]] = {}
        for begin in range(0, len(ids), self.batch):
            rows = slice(begin, begin + self.batch)
            moves = [draw(views, i, number) for i in ids[rows]]
            x = ViewBatch({"hr": see(hr[rows], moves)}, []).to(device)["hr"]
            out = net(x)
            for name in kept(self.features):
                parts.setdefault(name, []).append(out[name].float().cpu())
        return {
            name: _half(torch.cat(values).numpy(), name, self.source.role) for name, values in parts.items()
        }


def kept(features: str) -> tuple[str, ...]:
    """The cached outputs."""
    return ("logits", "embedding", *({"none": (), "pooled": ("pooled",), "map": ("map",)}[features]))


def _half(values: np.ndarray, name: str, role: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise FacultyError(f"{role}: its {name} are not finite; train it again with a lower learning rate")
    return np.clip(values, -LARGEST, LARGEST).astype(np.float16)


def manifest(source: Source, folder: str, pictures: Manifest, receipts: dict[str, Receipt]) -> Manifest:
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


def source_of(
    recipe: Recognition, role: str, network: Network, classes: int, weights: str, identity: str
) -> Source:
    """A network of this recipe that works at HR."""
    return Source(
        role=role,
        network=network.model_dump(),
        size=recipe.hr_size,
        classes=classes,
        segment=recipe.task == "segmentation",
        weights=weights,
        identity=identity,
    )
