"""Teachers' outputs: one tile shard in, one output shard out, by teacher.

An output shard is named after its tile shard and lies in a folder named after everything that shaped its
pixels: the tiles' folder, the checkpoint's sha256, the precision and the stored type. So one more teacher, or
one more picture, computes only itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pipeline.cache import stats as statistics
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt, Shard, open_verified, write_shard
from pipeline.cache.manifest import Manifest, write_receipt
from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.metrics import to_y
from pipeline.steps.batches import Halving
from pipeline.tasks.super_resolution.streaming import through

BATCH = {"cpu": 8, "cuda": 32}
"""Tiles at a time where the recipe leaves it open."""


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher's answer to one shard, not yet written."""

    ids: list[str]
    pictures: np.ndarray
    """(tiles, H, W, 3) in the stored type."""
    stats: dict[str, float]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """By their names in the cache."""
        return {"sr": self.pictures}


@dataclass(frozen=True, slots=True)
class TeachTask:
    """One tile shard for one teacher."""

    cache: str
    samples: Receipt
    folder: str
    scale: int
    dtype: str
    batch: int | Literal["auto"]

    @property
    def unit(self) -> float:
        """Grey levels of a difference of 1."""
        return 1.0 if self.dtype == "uint8" else 255.0

    def run(
        self, teacher: Callable[[torch.Tensor], torch.Tensor], device: str = "cpu"
    ) -> tuple[Receipt, dict[str, float]]:
        """Read, compute, commit. Returns the shard's receipt and {tiles, seconds, squared_error, pixels}.

        The squared error is the luma's against HR. Raises as `compute`.
        """
        return self.commit(self.compute(self.read(), teacher, device))

    def read(self) -> Shard:
        """The tile shard, verified."""
        return read(Store.open(self.cache), self.samples)

    def compute(self, shard: Shard, teacher: Callable[[torch.Tensor], torch.Tensor], device: str) -> Taught:
        """Every tile through the teacher.

        Raises FacultyError naming folder and tile where an output is not finite or has another size.
        """
        ids, lr = shard.columns["id"], shard.columns["lr"]
        hr = shard.columns.get("hr")
        started = time.perf_counter()
        if torch.device(device).type == "cuda":
            return self._streamed(ids, lr, hr, teacher, device, started)
        out: np.ndarray | None = None
        error, pixels = 0.0, 0
        batches = Halving(self.folder, BATCH["cpu"] if self.batch == "auto" else self.batch, len(ids))
        for rows in batches:
            begin = rows.start
            with batches.tried():
                sr = self._forward(teacher, lr[rows], ids[begin], device)
            if batches.again:
                continue
            if out is None:
                out = np.empty((len(ids), *sr.shape[1:]), sr.dtype)
            out[begin : begin + len(sr)] = sr
            if hr is not None:
                e, n = luma_error(sr, hr[begin : begin + len(sr)], self.scale)
                error, pixels = error + e, pixels + n
        assert out is not None
        seconds = time.perf_counter() - started
        stats = {"tiles": len(ids), "seconds": seconds, "squared_error": error, "pixels": pixels}
        return Taught(ids, out, {**stats, **batches.said})

    def _streamed(
        self,
        ids: list[str],
        lr: np.ndarray,
        hr: np.ndarray | None,
        teacher: Callable[[torch.Tensor], torch.Tensor],
        device: str,
        started: float,
    ) -> Taught:
        """As `compute`, without waiting for a batch before the next one."""
        dtype = torch.uint8 if self.dtype == "uint8" else torch.float16
        batch = BATCH["cuda"] if self.batch == "auto" else self.batch
        batches = Halving(self.folder, batch, len(ids), even=True)
        try:
            out, error, pixels = through(teacher, lr, hr, self.scale, dtype, batches, torch.device(device))
        except FacultyError as wrong:
            raise FacultyError(
                f"{self.folder}: the teacher, on the tiles from {ids[0]} on: {wrong}"
            ) from None
        stats = {"tiles": len(ids), "seconds": time.perf_counter() - started, "squared_error": error}
        return Taught(ids, out, {**stats, "pixels": pixels, **batches.said})

    def commit(self, taught: Taught) -> tuple[Receipt, dict[str, float]]:
        """Write the output shard; its receipt comes last."""
        store = Store.open(self.cache)
        receipt = commit_output(
            store, self.folder, self.samples.key, taught.ids, taught.pictures, taught.stats
        )
        return receipt, taught.stats

    def _forward(
        self, teacher: Callable[[torch.Tensor], torch.Tensor], lr: np.ndarray, first: str, device: str
    ) -> np.ndarray:
        x = torch.from_numpy(np.array(lr)).to(device).permute(0, 3, 1, 2).float().div_(255)
        sr = one_by_one(teacher, x)
        wanted = (len(lr), 3, lr.shape[1] * self.scale, lr.shape[2] * self.scale)
        if tuple(sr.shape) != wanted or not torch.isfinite(sr).all():
            raise FacultyError(
                f"{self.folder}: the teacher's output for the tiles from {first} on has shape {tuple(sr.shape)} "
                f"(expected {wanted}) or is not finite; precision: fp32 may help."
            )
        return to_stored(sr, self.dtype)


def one_by_one(teacher: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The teacher's outputs; of one that takes no more than a picture at a time, picture by picture."""
    try:
        return teacher(x)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(x) == 1:
            raise
        return torch.cat([teacher(picture[None]) for picture in x])


def read(store: Store, receipt: Receipt) -> Shard:
    """The shard of a receipt, verified once on this machine (fetched first from an object store)."""
    return open_verified(store, receipt)


def to_stored(sr_NCHW: torch.Tensor, dtype: str) -> np.ndarray:
    """Float pictures in [0, 1] to the stored form, NHWC: uint8 0..255 rounded, or float16 as they are."""
    sr = sr_NCHW.permute(0, 2, 3, 1)
    if dtype == "uint8":
        return sr.mul(255).round().clamp(0, 255).to(torch.uint8).contiguous().cpu().numpy()
    return sr.to(torch.float16).contiguous().cpu().numpy()


def as_levels(stored: np.ndarray) -> np.ndarray:
    """Stored pictures of either type as uint8 levels."""
    if stored.dtype == np.uint8:
        return stored
    return np.clip(np.rint(stored.astype(np.float32) * 255), 0, 255).astype(np.uint8)


def luma_error(sr: np.ndarray, hr: np.ndarray, shave: int) -> tuple[float, int]:
    """Sum of squared luma errors (grey levels^2) and pixel count of (n, H, W, 3) stored pictures, `shave`
    pixels cut.
    """
    inner = (slice(None), slice(shave, -shave), slice(shave, -shave))
    difference = to_y(as_levels(sr[inner])) - to_y(hr[inner])
    return float(np.square(difference).sum()), difference.size


def psnr(stats: list[dict[str, float]]) -> float:
    """PSNR in dB over all tiles together, from the pooled squared error: a tile that comes out exactly right is a part
    without errors like any other. At most 148.13 dB, which is what is found where all are exactly right.
    """
    error, pixels = sum(s["squared_error"] for s in stats), sum(s["pixels"] for s in stats)
    if not pixels:
        return float("nan")
    return float(10 * np.log10(255**2 / max(error / pixels, 1e-10)))


def commit_output(
    store: Store, folder: str, key: str, ids: list[str], pictures: np.ndarray, stats: dict[str, float]
) -> Receipt:
    """Write an output shard, its statistics, and last its receipt."""
    span = (0, 255) if pictures.dtype == np.uint8 else (0, 1)
    receipt = write_shard(
        store,
        f"{folder}/{key}.arrow",
        {"id": ids, "sr": pictures},
        metadata={"kind": "outputs", "key": key, "folder": folder},
        value_ranges={"sr": span},
    )
    statistics.save(store, folder, key, stats)
    write_receipt(store, receipt)
    return receipt


def output_manifest(
    facts: dict[str, object], folder: str, tiles: Manifest, receipts: Mapping[str, Receipt]
) -> Manifest:
    """The manifest of one teacher's (or the fusion's) outputs over one set of tiles."""
    return Manifest(
        kind="outputs",
        fingerprint=fingerprint({"folder": folder, "tiles": tiles.fingerprint}),
        inputs={**facts, "tiles": tiles.fingerprint},
        shards=tuple(receipts[r.key] for r in tiles.shards),
    )
