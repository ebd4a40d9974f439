"""Whole runs whose tiles are drawn by what the cache knows of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from road_kit import Road, Untouchable, flip, picture, recipe, snapshot, weights

from pipeline.cache.manifest import GAINS
from pipeline.tasks.super_resolution.training import job_fingerprint


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, side in enumerate((96, 112, 128)):
        picture(tmp_path / "pictures" / f"{seed}.png", side, side, seed)
    return tmp_path


def test_a_run_keeps_gains_beside_its_targets_and_is_another_training(place: Path) -> None:
    plain, gain = recipe(place), recipe(place, train={"sampling": "gain"})
    assert len({job_fingerprint(r, "student", 0, {}) for r in (plain, gain)}) == 2
    jobs = {job.method: job for job in Road(gain).distill("scratch", "mtkd")[3]}
    uniform = {job.method: job for job in Road(plain).distill("scratch", "mtkd")[3]}
    for method, job in jobs.items():
        assert job.fingerprint != uniform[method].fingerprint and weights(job) != weights(uniform[method])
    notes = sorted(p.relative_to(place / "cache").parts[0] for p in (place / "cache").rglob(f"*{GAINS}"))
    assert set(notes) == {"tiles", "fused"}  # scratch learns from HR, mtkd from the fused target
    before = snapshot(place / "cache")
    Road(gain, Untouchable()).distill("scratch", "mtkd")
    assert snapshot(place / "cache") == before


def test_a_damaged_record_changes_no_training(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    gain = recipe(place, train={"sampling": "gain"})
    (job,) = Road(gain).distill("scratch")[3]
    first = weights(job)
    flip(next((place / "cache").rglob(f"*{GAINS}")))
    again = gain.model_copy(update={"output": str(tmp_path_factory.mktemp("again"))})
    (job,) = Road(again).distill("scratch")[3]
    assert weights(job) == first and list((place / "cache").rglob(f"*{GAINS}.damaged"))
