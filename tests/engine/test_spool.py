"""What waits on the disk for a store: the spool, and a store that is slow, lost or full."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tracking_kit import (  # noqa: F401
    SPAWN,
    begin,
    client,
    folder,
    migrated,
    no_ambient_store,
    picture,
    points,
    stored_pictures,
)

from pipeline.engine import writer as writer_module
from pipeline.engine.records import Record, inputs
from pipeline.engine.sink import Sink
from pipeline.engine.spool import Spool
from pipeline.engine.store import Store, resolve_uri
from pipeline.engine.tracking import sync
from pipeline.errors import InputError
from pipeline.tracking import DataSet


def test_no_call_waits_for_a_locked_database_and_sync_loses_nothing(folder, monkeypatch):
    monkeypatch.setattr(writer_module, "QUEUE", 300)  # so that it overflows
    tracker = begin(folder)
    assert tracker.flush()
    lock = sqlite3.connect(folder / "mlflow.db")
    lock.execute("BEGIN EXCLUSIVE")
    start = time.perf_counter()
    for step in range(2000):
        tracker.metrics({"loss": float(step)}, step)
    tracker.image("compare", picture(), 7)
    recorded = time.perf_counter() - start
    tracker.finish(timeout=1.0)
    ended = time.perf_counter() - start
    lock.rollback()
    lock.close()
    assert recorded < 2.0  # sqlite alone waits 20 s for the lock
    assert ended < 8.0
    tracker._writer._thread.join(30.0)
    counts = sync(folder)
    assert counts["files"] == 1
    assert points(tracker, "loss") == [(i, float(i)) for i in range(2000)]
    assert len(stored_pictures(tracker.uri, tracker.run_id)) == 1
    assert client(tracker.uri).get_run(tracker.run_id).info.status == "FINISHED"


def header(name: str = "run") -> dict:
    run = {"id": "local-1", "local": True, "experiment": "experiment", "name": name, "tags": {}, "start": 1}
    return {**run, "artifacts": "file:///nowhere", "parent": None}


def spooled(folder: Path, uri: str, steps: int) -> Spool:
    spool = Spool(folder / "spool", header(), uri)
    for step in range(steps):
        spool.append(Record("metrics", 1000 + step, step=step, values={"loss": float(step)}))
    return spool


def test_a_spool_in_use_is_left_to_its_process(folder):
    spool = spooled(folder, resolve_uri(None, folder), 3)
    assert sync(folder) == {"files": 0, "records": 0, "busy": 1}
    spool.release()
    counts = sync(folder)
    assert (counts["files"], counts["metrics"], counts["busy"]) == (1, 3, 0)
    assert not list((folder / "spool").rglob("*.jsonl"))


def test_sync_stores_nothing_twice(folder, tmp_path):
    uri = resolve_uri(None, folder)
    spool = spooled(folder, uri, 5)
    spool.append(Record("image", 1, name="compare", step=2, payload=picture()))
    spool.append(inputs(DataSet("Set5", "0" * 40, "/pictures/Set5", "testing", 5)))
    spool.release()
    shutil.copytree(folder / "spool", tmp_path / "copy")
    first = sync(folder)
    second = sync(tmp_path / "copy")
    assert (first["metrics"], first["image"]) == (5, 1)
    assert second["records"] == 7
    assert second.get("metrics", 0) == 0
    (run,) = client(uri).search_runs(["1"])
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("Set5", "0" * 36)
    assert len(client(uri).get_metric_history(run.info.run_id, "loss")) == 5
    assert len(stored_pictures(uri, run.info.run_id)) == 1


def test_runs_that_name_one_data_set_at_the_same_moment_are_all_recorded(folder: Path) -> None:
    uri = f"sqlite:///{folder}/mlflow.db"
    store = Store(uri)
    experiment = store.client.create_experiment("together")
    runs = [store.client.create_run(experiment).info.run_id for _ in range(6)]
    sets = [inputs(DataSet(f"set {n}", f"{n:040x}", "/pictures", "training", 1)) for n in range(8)]
    together = threading.Barrier(len(runs))

    def write(run: str) -> Counter[str]:
        sink = Sink(Store(uri), run, fresh=True)
        for record in sets:
            together.wait(timeout=60)
            sink.write([record])
        return sink.counts

    with ThreadPoolExecutor(len(runs)) as pool:
        counts = list(pool.map(write, runs))
    assert counts == [Counter(inputs=len(sets))] * len(runs)
    for run in runs:
        assert len(store.client.get_run(run).inputs.dataset_inputs) == len(sets)


def test_a_line_cut_short_by_a_kill_is_ignored(folder):
    uri = resolve_uri(None, folder)
    spool = spooled(folder, uri, 4)
    spool.release()
    with open(spool.path, "ab") as file:
        file.write(b'{"kind": "metrics", "time": 5, "st')
    assert sync(folder)["metrics"] == 4


def test_a_damaged_spool_names_its_file(folder):
    spool = spooled(folder, resolve_uri(None, folder), 2)
    spool.release()
    lines = spool.path.read_bytes().splitlines(keepends=True)
    spool.path.write_bytes(lines[0] + b"\x00garbage\n" + lines[2])
    with pytest.raises(InputError, match=rf"{spool.path.name}.*damaged"):
        sync(folder)
    assert spool.path.exists()


def test_a_full_disk_leaves_whole_lines(folder):
    spool = spooled(folder, resolve_uri(None, folder), 2)
    size = spool.path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))  # room for a part of the next line
    try:
        with pytest.raises(OSError):
            spool.append(Record("metrics", 1, step=2, values={"loss": 1.0}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert spool.path.stat().st_size == size
    spool.append(Record("metrics", 1, step=3, values={"loss": 3.0}))
    spool.release()
    assert sync(folder)["metrics"] == 3


def test_sync_of_nothing_is_bad_input_and_of_an_empty_folder_is_nothing(tmp_path):
    with pytest.raises(InputError, match="nothing there"):
        sync(tmp_path / "missing")
    assert sync(tmp_path) == {"files": 0, "records": 0, "busy": 0}


def killed(folder: str, uri: str) -> None:
    tracker = begin(Path(folder), uri=uri)
    for step in range(10):
        tracker.metrics({"loss": float(step)}, step)
    tracker.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_had_spooled_is_uploaded(folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    process = SPAWN.Process(target=killed, args=(str(tmp_path / "killed"), nobody))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    uri = resolve_uri(None, folder)
    counts = sync(tmp_path / "killed", uri)
    assert (counts["files"], counts["metrics"]) == (1, 10)
    (run,) = client(uri).search_runs([client(uri).get_experiment_by_name("experiment").experiment_id])
    assert run.info.status == "RUNNING"  # nobody has said how it ended
