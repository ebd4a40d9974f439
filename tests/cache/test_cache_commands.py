"""cache ls, verify, gc and verify --rerun on a real small cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_kit import run
from recognition_kit import content as recognition
from road_kit import (
    Road,
    a_shard,
    flip,
    hashes,
    picture,
    recipe,
    recipe_file,
    snapshot,
    swap,
    teacher,
    truncate,
)

from pipeline.cache import manifest as manifests
from pipeline.cache.format import open_shard, write_shard
from pipeline.cache.manifest import Manifest, write_receipt
from pipeline.cache.store import Store


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a finished cache of two teachers and their mean."""
    root = tmp_path_factory.mktemp("filled")
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    Road(recipe(root)).distill()
    return root


@pytest.fixture
def place(filled: Path, tmp_path: Path) -> Path:
    shutil.copytree(filled, tmp_path / "place")
    return tmp_path / "place"


def verified(place: Path, *more: object) -> tuple[int, dict]:
    done = run("cache", "verify", place / "cache", "--json", "-", *more)
    return done.code, json.loads(done.out)


def test_ls_shows_every_set_with_its_size(place: Path) -> None:
    done = run("cache", "ls", place / "cache", "--json", "-")
    assert done.code == 0
    rows = done.json["sets"]
    assert {"set", "kind", "name", "fingerprint", "shards", "rows", "bytes"} == set(rows[0])
    shown = {(r["kind"], r["name"]) for r in rows}
    assert shown == {("tiles", ""), ("outputs", "edsr"), ("outputs", "compact"), ("outputs", "mean")}
    assert len(rows) == 8  # each for the training tiles and for the held-out ones
    tiles = sum(r["rows"] for r in rows if r["kind"] == "tiles")
    assert sum(r["rows"] for r in rows) == 4 * tiles > 0
    assert sum(r["bytes"] for r in rows) == sum(p.stat().st_size for p in (place / "cache").rglob("*.arrow"))
    table = run("cache", "ls", place / "cache").out.splitlines()
    assert len(table) == 9 and all(any(r["set"] in line for line in table) for r in rows)


def test_a_sound_cache_verifies(place: Path) -> None:
    code, result = verified(place)
    assert code == 0 and set(result) == {"shards", "bad"}
    assert result == {"shards": len(list((place / "cache").rglob("*.arrow"))), "bad": []}


def extra(shard: Path) -> None:
    shutil.copy(shard, shard.with_name("extra.arrow"))


@pytest.mark.parametrize("kind", ["tiles", "outputs", "fused"])
@pytest.mark.parametrize(
    ("harm", "name"),
    [(flip, "damaged"), (truncate, "damaged"), (swap, "damaged"), (Path.unlink, "damaged"), (extra, "extra")],
    ids=["flipped", "truncated", "foreign", "missing", "extra"],
)
def test_verify_names_the_bad_shard_and_ends_with_1(place: Path, kind: str, harm, name: str) -> None:
    shard = a_shard(place, kind)
    harm(shard)
    code, result = verified(place)
    (bad,) = result["bad"]
    assert code == 1 and bad["kind"] == name and bad["detail"]
    expected = shard.with_name("extra.arrow") if harm is extra else shard
    assert place / "cache" / bad["file"] == expected
    said = run("cache", "verify", place / "cache").out
    assert expected.name in said and "1 bad" in said


def test_verify_hashes_again_even_what_it_has_verified_before(place: Path) -> None:
    import os

    shard = a_shard(place, "outputs")
    assert verified(place)[0] == 0
    before = shard.stat()
    flip(shard)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, result = verified(place)
    assert code == 1 and result["bad"][0]["file"].endswith(shard.name)


def test_after_the_remedy_a_cache_verifies_again(place: Path) -> None:
    before = hashes(place / "cache", "*.arrow")
    flip(shard := a_shard(place, "outputs"))
    said = run("cache", "verify", place / "cache").out
    assert f"rm -f {shard}" in said, "the message says how to mend it"
    shard.unlink()
    assert run("teach", recipe_file(place), "--inline").code == 0
    assert verified(place) == (0, {"shards": len(before), "bad": []})
    assert hashes(place / "cache", "*.arrow") == before


def test_gc_deletes_what_no_manifest_names_and_nothing_else(place: Path) -> None:
    before = snapshot(place / "cache")
    shard = a_shard(place, "outputs")
    orphan, leftover = shard.with_name("orphan.arrow"), shard.with_name("x.arrow.17-ab.tmp")
    shutil.copy(shard, orphan)
    shutil.copy(f"{shard}.json", f"{orphan}.json")
    leftover.write_bytes(b"half")
    note = shard.with_name("orphan.stats.json")
    note.write_text("{}")
    dry = run("cache", "gc", place / "cache", "--dry-run", "--json", "-")
    assert dry.code == 0 and orphan.exists() and leftover.exists()
    done = run("cache", "gc", place / "cache", "--json", "-")
    assert done.code == 0 and set(done.json) == {"deleted", "bytes"} and done.json == dry.json
    assert {Path(name).name for name in done.json["deleted"]} == {
        orphan.name,
        f"{orphan.name}.json",
        leftover.name,
        note.name,
    }
    assert done.json["bytes"] >= shard.stat().st_size
    assert snapshot(place / "cache") == before
    assert run("cache", "gc", place / "cache", "--json", "-").json == {"deleted": [], "bytes": 0}


def test_gc_waits_for_a_builder(place: Path) -> None:
    import threading

    orphan = a_shard(place, "outputs").with_name("orphan.arrow")
    orphan.write_bytes(b"being written")
    with Store.open(place / "cache").lock("building.lock"):
        work = threading.Thread(target=run, args=("cache", "gc", place / "cache"))
        work.start()
        work.join(0.7)
        assert work.is_alive() and orphan.exists()
    work.join(30)
    assert not orphan.exists()


def test_rerun_finds_the_teachers_where_they_were(place: Path) -> None:
    code, result = verified(place, "--rerun", recipe_file(place), "--sample", 5)
    assert code == 0 and set(result) == {"shards", "bad", "rerun"}
    assert set(result["rerun"]) == {"edsr", "compact"}
    assert all(error <= 1.0 for error in result["rerun"].values())


def test_rerun_reports_pixels_that_no_teacher_made(place: Path) -> None:
    """A shard that is whole by its sha256, but holds something else: only running the teacher again can tell."""
    store = Store.open(place / "cache")
    for rel, manifest in _manifests(store, "compact"):
        receipts = []
        for receipt in manifest.shards:
            shard = open_shard(place / "cache" / receipt.file)
            wrong = np.array(shard.columns["sr"])
            wrong[:, 20, 20] ^= 64
            made = write_shard(
                store, receipt.file, {"id": shard.columns["id"], "sr": wrong}, metadata=shard.metadata
            )
            write_receipt(store, made)
            receipts.append(made)
        manifests.save(
            Manifest(manifest.kind, manifest.fingerprint, manifest.inputs, tuple(receipts)), store, rel
        )
    code, result = verified(place, "--rerun", recipe_file(place), "--sample", 3)
    assert code == 0 and result["bad"] == [] and result["rerun"]["compact"] == 64 > result["rerun"]["edsr"]


def _manifests(store: Store, teacher: str) -> list[tuple[str, Manifest]]:
    names = [rel for rel, _ in store.list("outputs") if rel.split("/")[-1].startswith("manifest-")]
    return [(rel, m) for rel in names if (m := manifests.load(store, rel)).inputs["name"] == teacher]


def test_rerun_knows_every_task(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recognition(tmp_path, method={"name": "kd"})))
    early = run("cache", "verify", tmp_path, "--rerun", file)
    assert early.code == 2 and "faculty teach" in early.err
    assert run("teach", file, "--inline").code == 0
    code, result = verified(tmp_path, "--rerun", file, "--sample", 3)
    assert code == 0 and result["bad"] == [] and 0 <= result["rerun"]["teacher"] < 0.01


@pytest.mark.parametrize(
    "changes",
    [{"teachers": [teacher("rcan")], "method": {"name": "scratch"}}, {"cache": {"dtype": "float16"}}],
    ids=["teacher", "dtype"],
)
def test_rerun_says_when_there_is_nothing_to_compare(place: Path, changes: dict) -> None:
    done = run("cache", "verify", place / "cache", "--rerun", recipe_file(place, **changes))
    assert done.code == 1 and "faculty teach" in done.err


@pytest.mark.parametrize(
    "pattern", ["*.arrow", "*.arrow.json", "manifest-*.json", "*.stats.json", "teachers/*.json"]
)
def test_repair_sets_damaged_files_aside_and_the_next_run_makes_them_again(place: Path, pattern: str) -> None:
    before = hashes(place / "cache", "*.arrow")
    broken = next(p for p in sorted((place / "cache").rglob(pattern)))
    flip(broken)
    data, shown = broken.read_bytes(), snapshot(place / "cache")
    code, result = verified(place)
    assert code == 1 and set(result) == {"shards", "bad"}
    assert [b["file"] for b in result["bad"]] == [broken.relative_to(place / "cache").as_posix()]
    assert snapshot(place / "cache") == shown, "without --repair it only looks"
    code, result = verified(place, "--repair")
    aside = [place / "cache" / name for name in result["set_aside"]]
    assert code == 0 and not broken.exists() and aside[0].read_bytes() == data
    assert run("run", recipe_file(place), "--inline").code == 0
    assert broken.exists() and verified(place)[0] == 0
    assert hashes(place / "cache", "*.arrow") == before


def test_repair_of_a_sound_cache_does_nothing(place: Path) -> None:
    before = snapshot(place / "cache")
    code, result = verified(place, "--repair")
    assert code == 0 and result["set_aside"] == [] and snapshot(place / "cache") == before
