"""Tile shards whose pixels tell where they come from, and comparisons of batches drawn from them."""

from __future__ import annotations

import numpy as np
import torch

from pipeline.cache.format import write_shard
from pipeline.cache.manifest import Manifest
from pipeline.cache.sampler import Batch, Sampler, Source
from pipeline.cache.store import LocalStore

SCALE, TILE, PATCH, MARGIN = 2, 24, 8, 3


class Tiles:
    """Tile shards in which every pixel tells its tile, row and column, and output shards made from them."""

    def __init__(
        self, store: LocalStore, count: int = 37, shard: int = 10, lr_only: tuple[int, ...] = ()
    ) -> None:
        self.store, self.ids = store, [f"{7 * i % 97:016x}:{i}:0" for i in range(count)]
        y, x = np.mgrid[:TILE, :TILE]
        self.lr = np.stack([np.stack([np.full_like(y, i), y, x], -1) for i in range(count)]).astype(np.uint8)
        self.hr = self.lr.repeat(SCALE, 1).repeat(SCALE, 2)
        self.hr[:, 1::2] += 100
        self.hr[:, :, 1::2] += 50
        self.out = 255 - self.hr
        self.known = np.array([i not in lr_only for i in range(count)])
        self.hr[~self.known] = 0
        self.tiles = self.pack(
            "tiles", shard, {"lr": self.lr, "hr": self.hr, "has_hr": self.known.astype(np.uint8)}
        )
        self.outputs = self.pack("out", shard, {"out": self.out})

    def pack(self, kind: str, shard: int, columns: dict[str, np.ndarray], order=None) -> Manifest:
        order = list(range(len(self.ids))) if order is None else order
        receipts = []
        for start in range(0, len(order), shard):
            rows = order[start : start + shard]
            part = {
                "id": [self.ids[i] for i in rows],
                **{name: values[rows] for name, values in columns.items()},
            }
            if "hr" in part and not self.known[rows].any():
                del part["hr"]
            name = f"{kind}-{shard}-{hash(tuple(order)) % 10**6}/{start}.arrow"
            receipts.append(write_shard(self.store, name, part, metadata={}))
        return Manifest(kind, f"{kind}-{shard}", {}, tuple(receipts))

    def sources(self) -> dict[str, Source]:
        return {
            "lr": Source(self.store, self.tiles, "lr"),
            "hr": Source(self.store, self.tiles, "hr"),
            "target": Source(self.store, self.outputs, "out"),
        }

    def sampler(self, **changes) -> Sampler:
        options = {"scale": SCALE, "patch": PATCH, "batch": 8, "seed": 3, "margin": MARGIN} | changes
        return Sampler(options.pop("sources", self.sources()), **options)


def same(a: Batch, b: Batch) -> bool:
    equal = all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    return equal and a.ids == b.ids and np.array_equal(a.ops, b.ops) and np.array_equal(a.has_hr, b.has_hr)


def places(batch: Batch) -> list[tuple[int, int, int]]:
    """Tile, y, x of each sample, as the pixels tell."""
    return [tuple(square[0, 0].tolist()) for square in batch.tensors["lr"]]


def equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name].cpu(), tensor.cpu())
        if name != "has_hr":
            assert ours[name].is_contiguous(memory_format=torch.channels_last)
