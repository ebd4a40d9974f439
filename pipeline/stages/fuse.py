"""Teacher outputs to fused targets, shard by shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.recipe import Aggregate, Weighted
from pipeline.shards.fingerprint import fingerprint
from pipeline.shards.format import Receipt
from pipeline.shards.manifest import Manifest
from pipeline.shards.store import Store
from pipeline.stages.teach import as_levels, commit_output, luma_error, read, to_stored
from teachers.fusion import WeightFit, fuse

VERSION = 1


@dataclass(frozen=True, slots=True)
class FuseTask:
    """Fuse the outputs of all teachers for one tile shard."""

    cache: str
    tiles: Receipt
    teachers: tuple[Receipt, ...]
    """Their output shards in recipe order."""
    folder: str
    scale: int
    dtype: str
    kind: str
    weights: tuple[float, ...] | None = None
    """Of kind `weighted`."""
    network: dict[str, Any] = field(default_factory=dict)
    """Of kind `aggregate`: {"config": ..., "weights": path in the cache}."""
    batch: int = 4

    def run(self, device: str = "cpu") -> tuple[Receipt, dict[str, float]]:
        """Returns the committed shard's receipt and its statistics (as TeachTask.run)."""
        store = Store.open(self.cache)
        tiles = read(store, self.tiles)
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
                fused = _stored(fuse(self.kind, pictures, truth, self.weights), pictures[0].dtype)
            chunks.append(fused)
            if truth is not None:
                e, n = luma_error(fused, truth, self.scale)
                error, pixels = error + e, pixels + n
        stats = {"tiles": len(ids), "squared_error": error, "pixels": pixels}
        receipt = commit_output(store, self.folder, self.tiles.key, ids, np.concatenate(chunks), stats)
        return receipt, stats

    def _load(self, store: Store, device: str) -> torch.nn.Module:
        from safetensors.torch import load as load_tensors

        from pipeline.methods.mtkd import network

        net = network(Aggregate(**self.network["config"]), len(self.teachers), self.scale)
        net.load_state_dict(load_tensors(store.read_bytes(self.network["weights"])))
        return net.to(device).eval()


def _stored(levels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Fused grey levels (float, 0..255) in the stored type."""
    if dtype == np.uint8:
        return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return (levels / 255).astype(np.float16)


def _aggregate(network: torch.nn.Module, pictures: list[np.ndarray], dtype: str, device: str) -> np.ndarray:
    batch = torch.from_numpy(np.stack(pictures, axis=1)).to(device).permute(0, 1, 4, 2, 3).float()
    if pictures[0].dtype == np.uint8:
        batch = batch / 255
    with torch.inference_mode():
        return to_stored(network(batch), dtype)


def fit_weights(cache: str, tiles: Manifest, teachers: list[Manifest]) -> list[float]:
    """Least-squares weights of the teachers against HR over the training tiles, one shard in memory at a time."""
    store = Store.open(cache)
    fit = WeightFit(len(teachers))
    by_key = [{r.key: r for r in m.shards} for m in teachers]
    for receipt in tiles.shards:
        hr = read(store, receipt).columns.get("hr")
        if hr is None:
            continue
        columns = [read(store, receipts[receipt.key]).columns["sr"] for receipts in by_key]
        for row in range(len(hr)):
            fit.add([as_levels(c[row : row + 1]) for c in columns], hr[row : row + 1])
    return [float(w) for w in fit.solve()]


def fusion_folder(tiles_folder: str, kind: str, teacher_folders: list[str], extra: dict[str, Any]) -> str:
    """Named after everything that shapes the fused pixels."""
    identity = {"version": VERSION, "kind": kind, "teachers": teacher_folders, **extra}
    return f"fused/{tiles_folder.split('/')[-1]}/{kind}-{fingerprint(identity)}"


def needs_fit(config: object) -> bool:
    """Whether a fusion's weights must be fitted first."""
    return isinstance(config, Weighted) and config.weights == "fit"
