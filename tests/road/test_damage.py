"""Damage in a cache: found, and that shard alone made again; what a failed training leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from road_kit import (
    Road,
    Untouchable,
    a_shard,
    flip,
    hashes,
    recipe,
    rewritten,
    snapshot,
    swap,
    teacher,
    truncate,
)

from pipeline.errors import FacultyError


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("tiles", {"train": {"lr": 2e-3}}),
        ("tiles", {"teachers": [teacher("edsr"), teacher("rcan")]}),
        ("outputs", {"fusion": {"kind": "median"}}),
        ("outputs", {"fusion": {"kind": "weighted"}}),
        ("fused", {"train": {"lr": 2e-3}}),
    ],
    ids=["tiles-train", "tiles-teach", "outputs-fuse", "outputs-fit", "fused-train"],
)
def test_a_flipped_bit_is_found_and_that_shard_alone_made_again(
    again: Path, kind: str, changes: dict, caplog: pytest.LogCaptureFixture
) -> None:
    before = snapshot(again / "cache")
    shard = a_shard(again, kind)
    flip(shard)
    broken = shard.read_bytes()
    Road(recipe(again, **changes)).distill()
    assert caplog.text.count(f"{shard} is damaged (expected sha256") == 1
    assert shard.with_name(f"{shard.name}.damaged").read_bytes() == broken, "it is kept for people to look at"
    after = snapshot(again / "cache")
    name = shard.relative_to(again / "cache").as_posix()
    assert after[name][0] == before[name][0], "the same bytes as before"
    touched = {n for n in rewritten(before, after) if n in before}
    assert {n for n in touched if n.endswith(".arrow")} == {name}


@pytest.mark.parametrize("kind", ["tiles", "outputs", "fused"])
@pytest.mark.parametrize("harm", [truncate, swap, Path.unlink], ids=["truncated", "foreign", "missing"])
def test_a_shard_of_the_wrong_size_counts_as_not_made_and_is_made_again_alone(
    again: Path, kind: str, harm
) -> None:
    before = snapshot(again / "cache")
    harm(shard := a_shard(again, kind))
    road = Road(recipe(again))
    road.distill()
    after = snapshot(again / "cache")
    name = shard.relative_to(again / "cache").as_posix()
    assert hashes(again / "cache") == {n: sha256 for n, (sha256, _) in before.items()} | {
        n: sha256 for n, (sha256, _) in after.items() if n.endswith((".stats.json", ".damaged"))
    }
    assert {n for n in rewritten(before, after) if n.endswith(".arrow")} == {name}
    assert road.run.planner.shards_written == (kind == "outputs")


def test_a_foreign_shard_of_the_same_size_is_made_again(again: Path) -> None:
    shard = a_shard(again, "outputs")
    whole = shard.read_bytes()
    shard.write_bytes(b"\0" * len(whole))
    Road(recipe(again, fusion={"kind": "median"})).distill()
    assert shard.read_bytes() == whole


def test_an_extra_shard_is_ignored(again: Path) -> None:
    shard = a_shard(again, "outputs")
    shutil.copy(shard, shard.with_name("extra.arrow"))
    road = Road(recipe(again), Untouchable())
    assert road.distill() and road.opened == 0


def test_a_manifest_that_was_tampered_with_is_made_again(again: Path) -> None:
    manifest = next((again / "cache/fused").rglob("manifest-*.json"))
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"version": 1', '"version": 7'))
    Road(recipe(again)).distill()
    assert manifest.read_text() == whole and manifest.with_name(f"{manifest.name}.damaged").exists()


def test_a_cache_of_before_without_checksums_is_used(again: Path) -> None:
    for path in [*again.rglob("cache/**/*.json"), *again.rglob("runs/**/result.json")]:
        value = json.loads(path.read_text())
        assert value.pop("checksum")
        if path.name == "result.json":
            del value["sha256"]
        path.write_text(json.dumps(value))
    before = snapshot(again / "cache")
    road = Road(recipe(again), Untouchable())
    assert road.distill() and road.opened == 0
    assert snapshot(again / "cache") == before


def test_a_training_that_fails_leaves_its_cause_and_nothing_half_done(again: Path) -> None:
    before = snapshot(again / "runs")
    with pytest.raises(FacultyError, match=r"step \d+: the term `(distill|hr|loss)` is (nan|inf)") as caught:
        Road(recipe(again, train={"lr": 1e30, "steps": 8})).distill()
    assert caught.value.exit_code == 1 and snapshot(again / "runs") == before
