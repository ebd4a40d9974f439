"""What was measured while a shard of outputs was made, in a small file beside it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cache import records
from pipeline.cache.node import damaged
from pipeline.cache.store import Store

STATS = ".stats.json"
"""How these files end; their stems are the shards'."""
Stats = dict[str, float]


def save(store: Store, folder: str, key: str, stats: Stats) -> None:
    """Write a shard's statistics."""
    records.save(store, f"{folder}/{key}{STATS}", stats)


def load(store: Store, folder: str, keys: Sequence[str]) -> list[Stats]:
    """The statistics of these shards. Raises Damaged for those that must be made again, with their shard."""
    return [_load(store, f"{folder}/{key}{STATS}") for key in keys]


def _load(store: Store, rel: str) -> Stats:
    found = records.load(store, rel, lambda value: {str(k): float(v) for k, v in value.items()})
    if found is None:
        raise damaged(store.where(rel), "a shard's statistics", "none that can be read")
    return found
