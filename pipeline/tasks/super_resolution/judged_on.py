"""The pictures that a run is judged on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.cache.fingerprint import file_sha256, fingerprint
from pipeline.data.pairs import pairs, registered
from pipeline.deploy.evaluate import BenchmarkSet, load_set
from pipeline.errors import InputError
from pipeline.recipe.data import Pairs
from pipeline.recipe.recipe import Recipe
from pipeline.tracking import DataSet


def load_sets(recipe: Recipe) -> list[BenchmarkSet]:
    """The recipe's test pictures, all decoded once.

    Raises InputError for a missing or bad picture, and for two sets of one name.
    """
    found: dict[str, BenchmarkSet] = {}
    sets = [(folder, load_set(folder, recipe.scale)) for folder in recipe.data.test]
    sets += [(entry.hr, load_pairs(entry, recipe.scale)) for entry in recipe.data.test_pairs]
    for folder, benchmark in sets:
        if benchmark.name in found:
            raise InputError(
                f"data.test: {folder}",
                "sets of different names",
                f"a second {benchmark.name}",
                "Rename a folder.",
            )
        found[benchmark.name] = benchmark
    return list(found.values())


def load_pairs(entry: Pairs, scale: int) -> BenchmarkSet:
    """Test pictures whose LR somebody else made. Raises InputError as `load_set`, and for what is no pair or is not in
    register where the entry does not say `align: true`.
    """
    whole = load_set(entry.hr, scale)
    matched, _ = pairs(entry.lr, entry.hr, scale, "raise", copies=True)
    moved = {pair.hr.name: registered(pair, scale, entry.align) for pair in matched}
    lr = {pair.hr.name: pair.lr.path for pair in matched}
    return replace(whole, lr=lr, moved={name: by for name, by in moved.items() if by != (0, 0)})


def test_inputs(sets: Sequence[BenchmarkSet]) -> list[DataSet]:
    """Each test set as MLflow shows it; its digest covers names and content of its pictures, given LR included."""
    found = []
    for benchmark in sets:
        read = [(name, file_sha256(path)) for name, path in benchmark.pictures]
        read += [(name, file_sha256(path)) for name, path in sorted(benchmark.lr.items())]
        folder = os.path.commonpath([Path(path).parent for _, path in benchmark.pictures])
        digest = fingerprint([list(pair) for pair in read])
        found.append(DataSet(benchmark.name, digest, folder, "testing", len(benchmark.pictures)))
    return found


def known_pictures(sets: Sequence[BenchmarkSet], trained: Mapping[str, str]) -> Iterator[str]:
    """A warning for each test set with pictures that are trained or validated on, `trained` by their pixels' sha256."""
    for benchmark in sets:
        pictures = benchmark.survey.pictures if benchmark.survey else []
        if known := [p.name for p in pictures if p.pixels in trained]:
            named = ", ".join(known[:5]) + (", ..." if len(known) > 5 else "")
            yield (
                f"test set {benchmark.name}: {len(known)} of {len(pictures)} pictures are among the training "
                f"pictures ({named}); its figures say little about other pictures"
            )
