"""Rows of several shards as one table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.format import write_shard
from pipeline.cache.manifest import Manifest
from pipeline.cache.rows import Rows
from pipeline.cache.store import Store


@pytest.mark.parametrize("shards", [1, 3])
def test_rows_are_taken_from_wherever_they_lie(shards: int, tmp_path: Path) -> None:
    store, random = Store.open(tmp_path), np.random.default_rng(0)
    values = random.normal(size=(30, 4, 5)).astype(np.float16)
    ids = [f"{i:02}" for i in random.permutation(30)]
    receipts = tuple(
        write_shard(
            store,
            f"{n}.arrow",
            {"id": ids[n::shards], "x": np.ascontiguousarray(values[n::shards])},
            metadata={},
        )
        for n in range(shards)
    )
    rows = Rows(store, Manifest("outputs", "f" * 16, {}, receipts))
    expected = values[np.argsort(ids)]
    for numbers in (np.arange(30), random.integers(0, 30, 50), np.array([7])):
        inner = random.integers(0, 4, len(numbers))
        np.testing.assert_array_equal(rows.take("x", numbers), expected[numbers])
        np.testing.assert_array_equal(rows.take("x", numbers, inner), expected[numbers, inner])
        assert rows.take("x", numbers, inner).dtype == np.float16
