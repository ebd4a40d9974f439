"""Teacher outputs to fused targets, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.recipe.fusion import Aggregate
from pipeline.tasks.super_resolution.teach import as_levels, commit_output, luma_error, read, to_stored
from pipeline.training import weights
from teachers.agreement import Mask
from teachers.fusion import Bands, WeightFit, Weights, fusion
from teachers.regional import Regional, RegionalFit

VERSION = 1
Chosen = Weights | Bands | Mask | Regional
"""What a fixed fusion was told, or was fitted to."""


@dataclass(frozen=True, slots=True)
class FuseTask:
    """Fuse the outputs of all teachers for one tile shard."""

    cache: str
    samples: Receipt
    teachers: tuple[Receipt, ...]
    """Their output shards in recipe order."""
    folder: str
    scale: int
    dtype: str
    kind: str
    weights: Chosen | None = None
    """Of kind `weighted`, `bands`, `mask` or `regions`."""
    network: dict[str, Any] = field(default_factory=dict)
    """Of kind `aggregate`: {"config": ..., "weights": path in the cache}."""
    batch: int = 4

    def run(self, device: str = "cpu") -> Receipt:
        """Returns the committed shard's receipt; its statistics lie beside it, as TeachTask's do."""
        store = Store.open(self.cache)
        tiles = read(store, self.samples)
        outputs = [read(store, receipt) for receipt in self.teachers]
        ids, hr = tiles.columns["id"], tiles.columns.get("hr")
        for shard in outputs:
            assert shard.columns["id"] == ids, shard.path
        network = self._load(store, device) if self.kind == "aggregate" else None
        chunks: list[np.ndarray] = []
        error, pixels = 0.0, 0
        for begin in range(0, len(ids), self.batch):
            rows = slice(begin, begin + self.batch)
            pictures = [o.columns["sr"][rows] for o in outputs]
            truth = hr[rows] if hr is not None else None
            if network is not None:
                fused = _aggregate(network, pictures, self.dtype, device)
            else:
                levels = fuse_levels(
                    self.kind,
                    [as_levels(p) for p in pictures],
                    truth,
                    self.weights,
                    tiles.columns["lr"][rows],
                )
                fused = levels if self.dtype == "uint8" else (levels / np.float32(255)).astype(np.float16)
            chunks.append(fused)
            if truth is not None:
                e, n = luma_error(fused, truth, self.scale)
                error, pixels = error + e, pixels + n
        stats = {"tiles": len(ids), "squared_error": error, "pixels": pixels}
        return commit_output(store, self.folder, self.samples.key, ids, np.concatenate(chunks), stats)

    def _load(self, store: Store, device: str) -> torch.nn.Module:
        from safetensors.torch import load as load_tensors

        from pipeline.methods.mtkd import network

        net = network(Aggregate(**self.network["config"]), len(self.teachers), self.scale)
        net.load_state_dict(load_tensors(weights.read(store, self.network["weights"])))
        return net.to(device).eval()


def fuse_levels(
    kind: str,
    outputs: list[np.ndarray],
    hr: np.ndarray | None,
    weights: Chosen | None,
    lr: np.ndarray,
) -> np.ndarray:
    """A fixed fusion of (n, H, W, 3) uint8 pictures that were made of `lr`, (n, h, w, 3) uint8."""
    extra: dict[str, Any] = {} if weights is None else {"weights": weights}
    if isinstance(weights, Mask):
        extra["lr"] = lr
    return fusion(kind)(outputs, hr, **extra)


def _aggregate(network: torch.nn.Module, pictures: list[np.ndarray], dtype: str, device: str) -> np.ndarray:
    batch = torch.from_numpy(np.stack(pictures, axis=1)).to(device).permute(0, 1, 4, 2, 3).float()
    if pictures[0].dtype == np.uint8:
        batch = batch / 255
    with torch.inference_mode():
        return to_stored(network(batch), dtype)


def fit_weights(
    cache: str, tiles: Manifest, teachers: list[Manifest], levels: int | None = None
) -> Weights | Regional:
    """Least-squares weights of the teachers against HR over the training tiles, one shard in memory at a time; with
    `levels` those of each region, for so many bands of detail and the rest.
    """
    store = Store.open(cache)
    fit = WeightFit(len(teachers)) if levels is None else RegionalFit(len(teachers), levels)
    by_key = [{r.key: r for r in m.shards} for m in teachers]
    for receipt in tiles.shards:
        hr = read(store, receipt).columns.get("hr")
        if hr is None:
            continue
        columns = [read(store, receipts[receipt.key]).columns["sr"] for receipts in by_key]
        for row in range(len(hr)):
            fit.add([as_levels(c[row : row + 1]) for c in columns], hr[row : row + 1])
    return fit.solve()


def fusion_folder(tiles_folder: str, kind: str, teacher_folders: list[str], extra: dict[str, Any]) -> str:
    """Named after everything that shapes the fused pixels."""
    identity = {"version": VERSION, "kind": kind, "teachers": teacher_folders, **extra}
    return f"fused/{tiles_folder.split('/')[-1]}/{kind}-{fingerprint(identity)}"
