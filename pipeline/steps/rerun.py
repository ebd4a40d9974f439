"""Networks run again over a sample of what the cache holds of them: do they still give what is stored?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.cache import manifest as manifests
from pipeline.cache.format import open_verified
from pipeline.cache.store import Store
from pipeline.steps.values import Column, Network


@dataclass(frozen=True, slots=True)
class Kept:
    """A network, and where its outputs may lie."""

    label: str
    network: Network
    columns: Sequence[tuple[str, Column]]
    """(folder of samples, column of outputs)."""


def largest_difference(
    kept: Kept, store: Store, sample: int, device: str, generator: np.random.Generator
) -> float | None:
    """Of up to `sample` samples a column between stored and new outputs, in grey levels or in the outputs' own unit.

    None where nothing of the network is cached.
    """
    loaded, worst = kept.network.open(store.uri, device), -1.0
    for folder, column in kept.columns:
        outputs, samples = (manifests.committed(store, f) for f in (column.folder, folder))
        places = [(key, row) for key, r in sorted(outputs.items()) if key in samples for row in range(r.rows)]
        for i in generator.permutation(len(places))[:sample]:
            key, row = places[i]
            step = column.step(samples[key])
            shard = step.read()
            one = replace(shard, batch=shard.batch.slice(row, 1))
            again = step.compute(one, loaded, device).columns
            stored = open_verified(store, outputs[key]).columns
            for name, values in again.items():
                worst = max(worst, _distance(values, stored[name][row : row + 1]) * step.unit)
    return worst if worst >= 0 else None


def _distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).max())
