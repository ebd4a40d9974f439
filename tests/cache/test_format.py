"""Shards: what is written is read back, and damage is found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cache.format import CorruptShard, open_shard, verify, write_shard
from pipeline.cache.store import LocalStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    return LocalStore(tmp_path / "store")


def some_columns(rows: int = 5, seed: int = 0) -> dict[str, np.ndarray | list[str]]:
    rng = np.random.default_rng(seed)
    return {
        "id": [f"p{i}:é" for i in range(rows)],
        "lr": rng.integers(0, 256, (rows, 6, 7, 3), dtype=np.uint8),
        "out": rng.random((rows, 12, 14, 3)).astype(np.float16),
        "label": rng.integers(0, 9, rows),
    }


def write(store, rel="a/s0.arrow", seed=0, **options):
    options = {"metadata": {"fingerprint": "f" * 16, "made by": "test"}, **options}
    return write_shard(store, rel, some_columns(seed=seed), **options)


def test_what_is_written_comes_back(store):
    receipt = write(store, value_ranges={"out": (-0.5, 1.5)})
    shard = open_shard(store.path(receipt.file))
    assert (receipt.key, receipt.file, receipt.rows) == ("s0", "a/s0.arrow", 5)
    assert (receipt.first_id, receipt.last_id) == ("p0:é", "p4:é")
    assert (receipt.bytes, receipt.sha256) == (store.size("a/s0.arrow"), store.sha256("a/s0.arrow"))
    assert shard.metadata == {"fingerprint": "f" * 16, "made by": "test"}
    assert shard.value_ranges == {"lr": (0, 255), "out": (-0.5, 1.5)}
    for name, values in some_columns().items():
        assert np.array_equal(shard.columns[name], values)
        assert isinstance(values, list) or shard.columns[name].dtype == values.dtype


def test_the_same_columns_give_the_same_bytes(store):
    assert write(store, "a/x.arrow").sha256 == write(store, "b/y.arrow").sha256 != write(store, seed=1).sha256


def test_tensors_are_read_only_views_of_the_mapped_file(store):
    path = store.path(write(store).file)
    before = pa.total_allocated_bytes()
    shard = open_shard(path)
    assert pa.total_allocated_bytes() == before
    lr = shard.columns["lr"]
    assert not lr.flags.writeable and not lr.flags.owndata
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    low, high = (int(end, 16) for end in maps[0][0].split("-"))
    assert low <= lr.ctypes.data and lr.ctypes.data + lr.nbytes <= high


def test_many_open_shards_hold_no_descriptors(store):
    paths = [store.path(write(store, f"{i}.arrow").file) for i in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    shards = [open_shard(path) for path in paths]
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(np.array_equal(shard.columns["lr"], some_columns()["lr"]) for shard in shards)


def test_views_outlive_their_shard_and_its_file(store):
    path = store.path(write(store).file)
    lr = open_shard(path).columns["lr"]
    path.unlink()
    assert np.array_equal(lr, some_columns()["lr"])


@pytest.mark.parametrize(
    "change",
    [{"id": ["a"] * 5}, {"id": []}, {"label": np.arange(4)}, {"lr": np.zeros((5, 2, 2, 3))}],
    ids=["repeated ids", "no rows", "lengths differ", "float64"],
)
def test_columns_that_do_not_fit_are_refused_and_nothing_is_written(store, change):
    with pytest.raises(ValueError):
        write_shard(store, "x.arrow", {**some_columns(), **change}, metadata={})
    assert store.list() == []


@pytest.mark.parametrize("keep", [0, 7, 500, -1, -200])
def test_a_truncated_file_is_refused_at_open(store, keep):
    path = store.path(write(store).file)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptShard, match="complete shard") as caught:
        open_shard(path)
    assert str(path) in str(caught.value) and f"rm {path}" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).found == caught.value.found


def test_a_missing_file_is_a_corrupt_shard(tmp_path):
    with pytest.raises(CorruptShard, match="No such file"):
        open_shard(tmp_path / "x.arrow")


def test_files_that_are_no_shards_are_refused(store):
    batch = pa.record_batch({"id": pa.array(["a"])})
    (store.root).mkdir()
    foreign, picture, two = (store.path(f"{name}.arrow") for name in ("foreign", "picture", "two"))
    with pa.ipc.new_file(foreign, batch.schema) as writer:
        writer.write_batch(batch)
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pa.ipc.new_file(two, batch.schema.with_metadata({"faculty.schema": "1"})) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    for path, complaint in ((foreign, "version none"), (picture, "Not an Arrow"), (two, "2 record batches")):
        with pytest.raises(CorruptShard, match=complaint):
            open_shard(path)


def test_a_shard_of_another_schema_version_is_refused(store):
    path = store.path(write(store).file)
    with pa.ipc.open_file(path) as reader:
        batch = reader.get_batch(0)
    with pa.ipc.new_file(path, batch.schema.with_metadata({"faculty.schema": "2"})) as writer:
        writer.write_batch(batch)
    with pytest.raises(CorruptShard, match="version 1, found .* version 2"):
        open_shard(path)


def test_verify_accepts_what_was_written(store):
    receipt = write(store)
    assert verify(store, receipt, full=False) is None and verify(store, receipt, full=True) is None


def test_verify_refuses_missing_truncated_and_flipped_shards(store):
    receipt = write(store)
    path = store.path(receipt.file)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for damage, complaint in ((data[:-1], "bytes"), (bytes(flipped), "sha256")):
        path.write_bytes(damage)
        for full in (False, True):
            with pytest.raises(CorruptShard, match=f"expected.*{complaint}.*rm {path}"):
                verify(store, receipt, full)
    path.unlink()
    with pytest.raises(CorruptShard, match="nothing there"):
        verify(store, receipt, full=False)


def test_only_a_full_check_finds_damage_that_left_size_and_time_alone(store):
    receipt = write(store)
    verify(store, receipt, full=False)
    path = store.path(receipt.file)
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    verify(store, receipt, full=False)  # one look at a known state costs no hashing
    with pytest.raises(CorruptShard, match="sha256"):
        verify(store, receipt, full=True)


def test_a_full_disk_leaves_no_shard(store):
    code = (
        "import resource, sys; import numpy as np\n"
        "from pipeline.cache.format import write_shard\n"
        "from pipeline.cache.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "columns = {'id': list(map(str, range(9))), 'lr': np.zeros((9, 300, 300, 3), np.uint8)}\n"
        "write_shard(Store.open(sys.argv[1]), 'x.arrow', columns, metadata={})\n"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert "FacultyError" in result.stderr and "x.arrow: cannot be written" in result.stderr
    assert store.list() == []
