"""Manifests: what a set of shards was made from, and when it is whole."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pipeline.cache.format import Receipt, write_shard
from pipeline.cache.manifest import (
    Manifest,
    Problem,
    committed,
    gc,
    load,
    save,
    verify_set,
    write_receipt,
)
from pipeline.cache.store import LocalStore
from pipeline.errors import InputError


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    return LocalStore(tmp_path / "store")


def fill(store: LocalStore, keys: str, folder: str = "tiles") -> dict[str, Receipt]:
    receipts = {}
    for key in keys:
        columns = {"id": [f"{key}{i}" for i in range(3)], "lr": np.full((3, 40, 40, 3), ord(key), np.uint8)}
        receipts[key] = write_shard(store, f"{folder}/{key}.arrow", columns, metadata={})
        write_receipt(store, receipts[key])
    return receipts


def manifest_of(receipts: dict[str, Receipt]) -> Manifest:
    inputs = {"pictures": ["é"], "grid": {"size": 192}, "alpha": 0.1}
    return Manifest("tiles", "0123456789abcdef", inputs, tuple(receipts.values()))


def test_a_manifest_comes_back_as_it_was_saved(store):
    manifest = manifest_of(fill(store, "ab"))
    save(manifest, store, "tiles/manifest.json")
    assert load(store, "tiles/manifest.json") == manifest
    assert (manifest.rows, manifest.bytes) == (6, 2 * manifest.shards[0].bytes)
    assert json.loads(store.read_bytes("tiles/manifest.json"))["inputs"]["grid"] == {"size": 192}


def test_an_absent_manifest_is_bad_input(store):
    with pytest.raises(InputError, match=r"nope\.json.*nothing there"):
        load(store, "nope.json")


def shards_without(key: str) -> dict:
    return {"shards": [{name: value for name, value in SHARD.items() if name != key}]}


SHARD = {"key": "a", "file": "a.arrow", "rows": 1, "bytes": 2, "sha256": "", "first_id": "", "last_id": ""}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"surprise": 1}, "surprise"),
        ({"kind": 3}, "kind"),
        ({"inputs": []}, "inputs"),
        ({"shards": {}}, "shards"),
        ({"shards": ["a"]}, "shards.0"),
        ({"shards": [{**SHARD, "extra": 1}]}, "extra"),
        ({"shards": [{**SHARD, "rows": "1"}]}, "rows"),
        (shards_without("sha256"), "sha256"),
    ],
)
def test_a_manifest_with_other_content_is_refused_by_name(store, change, complaint):
    good = dataclasses.asdict(manifest_of({})) | {"shards": [SHARD]}
    store.write_bytes("m.json", json.dumps(good).encode())
    assert load(store, "m.json").shards[0].file == "a.arrow"
    store.write_bytes("m.json", json.dumps(good | change).encode())
    with pytest.raises(InputError, match=complaint) as caught:
        load(store, "m.json")
    assert store.where("m.json") in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"kind": "tiles"}'])
def test_damaged_manifests_are_refused(store, text):
    store.write_bytes("m.json", text)
    with pytest.raises(InputError, match=r"m\.json"):
        load(store, "m.json")


def test_a_whole_set_has_no_problems(store):
    manifest = manifest_of(fill(store, "abc"))
    assert verify_set(store, manifest, full=False) == verify_set(store, manifest, full=True) == []


def test_each_kind_of_damage_is_reported_once(store):
    manifest = manifest_of(fill(store, "abcd"))
    fill(store, "x")
    fill(store, "y", folder="elsewhere")
    data = bytearray(store.read_bytes("tiles/a.arrow"))
    data[len(data) // 2] ^= 4
    store.path("tiles/a.arrow").write_bytes(data)
    store.path("tiles/b.arrow").write_bytes(data[:-9])
    store.delete("tiles/c.arrow")
    for full in (True, False):
        problems = verify_set(store, manifest, full)
        found = [(problem.file, problem.kind) for problem in problems]
        expected = [(f"tiles/{key}.arrow", "damaged") for key in "abc"] + [("tiles/x.arrow", "extra")]
        assert found == expected
        for problem, complaint in zip(problems, ("sha256", "bytes", "nothing there", "no row"), strict=True):
            assert complaint in problem.detail
    assert isinstance(problems[0], Problem)


def test_committed_lists_shards_whose_receipt_and_size_agree(store, caplog):
    receipts = fill(store, "abcd")
    assert committed(store, "tiles") == receipts
    assert committed(store, "nowhere") == {}
    store.delete("tiles/a.arrow")
    store.delete("tiles/b.arrow.json")
    store.path("tiles/c.arrow").write_bytes(b"short")
    store.write_bytes("tiles/e.arrow.json", b'{"key": ')
    store.write_bytes("tiles/f.arrow.json", store.read_bytes("tiles/d.arrow.json"))
    with caplog.at_level(logging.WARNING):
        assert committed(store, "tiles") == {"d": receipts["d"]}
    assert "e.arrow.json" in caplog.text and store.exists("tiles/c.arrow.damaged")


def test_gc_deletes_what_no_one_needs(store):
    fill(store, "abc")
    save(manifest_of({}), store, "tiles/manifest.json")
    store.write_bytes("tiles/a.arrow.77-00ff.tmp", b"leftover")
    store.delete("tiles/c.arrow")
    deleted = gc(store, "tiles", {"tiles/a.arrow"})
    expected = ["a.arrow.77-00ff.tmp", "b.arrow", "b.arrow.json", "c.arrow.json"]
    assert sorted(deleted) == [f"tiles/{name}" for name in expected]
    assert [name for name, _ in store.list("tiles")] == [
        "tiles/a.arrow",
        "tiles/a.arrow.json",
        "tiles/manifest.json",
    ]


FILL = """
    import os, sys, time
    import numpy as np
    from pipeline.cache.format import write_shard
    from pipeline.cache.manifest import committed, write_receipt
    from pipeline.cache.store import Store
    store = Store.open(sys.argv[1])
    with store.lock("tiles/.lock"):
        done = committed(store, "tiles")
        for i in range(6):
            if f"{i}" not in done:
                columns = {"id": [f"{i}"], "lr": np.full((1, 64, 64, 3), i, np.uint8)}
                receipt = write_shard(store, f"tiles/{i}.arrow", columns, metadata={})
                print(i, flush=True)
                time.sleep(float(sys.argv[2]))
                write_receipt(store, receipt)
"""


def start(store: LocalStore, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(FILL), store.uri, str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_fill_goes_on_where_it_stopped(store):
    process = start(store, 0.2)
    made = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=180)
    assert made == ["0\n", "1\n", "2\n"]
    done = set(committed(store, "tiles"))
    assert {"0", "1"} <= done <= {"0", "1", "2"}
    rest, _ = start(store, 0).communicate(timeout=180)
    assert set(rest.split()) == set("012345") - done
    assert set(committed(store, "tiles")) == set("012345")


def test_two_processes_that_fill_one_cache_make_each_shard_once(store):
    processes = [start(store, 0.01) for _ in range(2)]
    made = sorted(i for process in processes for i in process.communicate(timeout=180)[0].split())
    assert made == list("012345")
    assert len(committed(store, "tiles")) == 6
