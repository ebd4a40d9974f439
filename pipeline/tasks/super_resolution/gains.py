"""What a tile has to teach: how far its target is from bicubic enlargement.

Gains are measured once for each shard of targets and kept in a record beside it, so one more picture measures its own
tiles alone. They are sums of whole numbers: the same on every machine, however tiles are packed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.cache import records
from pipeline.cache.format import SUFFIX, Receipt
from pipeline.cache.manifest import GAINS
from pipeline.cache.sampler import Source
from pipeline.data.degrade import upscale_tensor
from pipeline.errors import InputError
from pipeline.tasks.super_resolution.teach import as_levels, read

VERSION = 1
BATCH = 32
"""Tiles at a time."""


def gains(lr: Source, target: Source, scale: int) -> np.ndarray:
    """Return (tiles,) float64: mean |target - bicubic(LR)| of each tile in grey levels, 0 to 255, in the order of the
    rows of `lr`'s manifest; 0 where there is no target.

    A record that is damaged, or of other shards, is set aside and made again. Raises InputError where a shard of tiles
    has no shard of targets, CorruptShard for one that does not verify.
    """
    by_key = {receipt.key: receipt for receipt in target.manifest.shards}
    found = []
    for tiles in lr.manifest.shards:
        if tiles.key not in by_key:
            raise InputError(f"gains of {target.manifest.kind}", f"a shard {tiles.key}", "none")
        found.append(_kept(lr, target, tiles, by_key[tiles.key], scale))
    return np.concatenate(found)


def _kept(lr: Source, target: Source, tiles: Receipt, outputs: Receipt, scale: int) -> np.ndarray:
    """Those of one shard, from the record or anew."""
    rel = outputs.file.removesuffix(SUFFIX) + GAINS
    of = {"version": VERSION, "tiles": tiles.sha256, "targets": outputs.sha256}

    def own(value: dict[str, Any]) -> np.ndarray:
        kept = np.array(value["gains"], np.float64)
        if value["of"] != of or kept.shape != (tiles.rows,):
            raise ValueError("it is of other shards")
        return kept

    kept = records.load(target.store, rel, own)
    if kept is None:
        kept = _measured(lr, target, tiles, outputs, scale)
        records.save(target.store, rel, {"of": of, "gains": kept.tolist()})
    return kept


def _measured(lr: Source, target: Source, tiles: Receipt, outputs: Receipt, scale: int) -> np.ndarray:
    small, large = read(lr.store, tiles).columns, read(target.store, outputs).columns
    assert small["id"] == large["id"], outputs.file
    found = np.zeros(tiles.rows)
    if target.column not in large:
        return found
    for begin in range(0, tiles.rows, BATCH):
        rows = slice(begin, begin + BATCH)
        planes = np.ascontiguousarray(small[lr.column][rows].transpose(0, 3, 1, 2))
        enlarged = upscale_tensor(planes, scale).astype(np.int16).transpose(0, 2, 3, 1)
        off = np.abs(as_levels(large[target.column][rows]) - enlarged)
        found[rows] = off.sum(axis=(1, 2, 3), dtype=np.int64) / off[0].size
    known = large.get(f"has_{target.column}")
    return found if known is None else np.where(known, found, 0.0)
