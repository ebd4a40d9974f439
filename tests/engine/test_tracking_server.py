"""Tracking against a real `mlflow server` that dies, hangs and returns."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import logging
import shutil
import signal
import time
from pathlib import Path

import pytest
from tracking_kit import (  # noqa: F401
    SPAWN,
    any_server,
    begin,
    client,
    migrated,
    no_ambient_store,
    picture,
    points,
    server,
    stored_pictures,
    work,
)

from pipeline.engine import store as store_module
from pipeline.engine import writer as writer_module
from pipeline.engine.tracking import sync
from pipeline.errors import FacultyError


def test_a_run_outlives_its_server_and_catches_up_when_it_returns(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(writer_module, "PROBE_EVERY", 0.5)
    caplog.set_level(logging.INFO)
    tracker = begin(tmp_path, uri=server.uri, tags={"cache": "1"})
    for step in range(100):
        tracker.metrics({"loss": float(step)}, step)
    tracker.image("compare", picture(1), 50)
    assert tracker.flush()
    server.kill()
    start = time.perf_counter()
    for step in range(100, 200):
        tracker.metrics({"loss": float(step)}, step)
    tracker.image("compare", picture(2), 150)
    tracker.text("notes", "notes.txt")
    assert time.perf_counter() - start < 0.5
    assert not tracker.flush(60.0)
    child = tracker.child("phase")  # begun while the server is away
    child.metrics({"psnr": 30.0}, 1)
    assert child.run_id.startswith("local-")
    assert not tracker.online
    assert "recording to" in caplog.text
    server.start()
    assert tracker.flush(60.0)
    assert tracker.online
    for step in range(200, 300):
        tracker.metrics({"loss": float(step)}, step)
    child.finish(timeout=60.0)
    tracker.finish(timeout=60.0)
    assert points(tracker, "loss") == [(i, float(i)) for i in range(300)]
    assert points(child, "psnr") == [(1, 30.0)]
    mlflow_client = client(server.uri)
    assert mlflow_client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == tracker.run_id
    assert mlflow_client.get_run(tracker.run_id).info.status == "FINISHED"
    assert len(stored_pictures(server.uri, tracker.run_id)) == 2
    assert not list((tmp_path / "spool").rglob("*.jsonl"))


def test_a_run_without_a_server_is_uploaded_afterwards_and_only_once(
    server, tmp_path, tmp_path_factory, caplog, capfd
):
    server.kill()
    start = time.perf_counter()
    parent = begin(tmp_path, uri=server.uri, tags={"cache": "2"}, params={"lr": 1})
    child = parent.child("distill")
    assert time.perf_counter() - start < 15.0
    for step in range(20):
        child.metrics({"loss": float(step)}, step)
    child.image("compare", picture(), 10)
    (tmp_path / "student.bin").write_bytes(b"weights")
    child.artifact(tmp_path / "student.bin", "student")
    worker = SPAWN.Process(target=work, args=(child.handle(), 0))
    worker.start()
    worker.join()
    child.finish(timeout=5.0)
    parent.finish("FAILED", timeout=5.0)
    (tmp_path / "student.bin").unlink()  # the spool holds a copy
    assert "faculty track sync" in caplog.text
    with pytest.raises(FacultyError, match="It is kept; try again"):
        sync(tmp_path)
    copy = shutil.copytree(tmp_path / "spool", tmp_path_factory.mktemp("copy"), dirs_exist_ok=True)

    server.start()
    counts = sync(tmp_path)
    assert counts["files"] == 3
    assert (counts["metrics"], counts["image"], counts["artifact"], counts["status"]) == (220, 2, 1, 2)
    again = sync(copy)
    assert again["records"] == counts["records"]
    assert "metrics" not in again and "image" not in again

    mlflow_client = client(server.uri)
    experiment = mlflow_client.get_experiment_by_name("experiment").experiment_id
    found = mlflow_client.search_runs([experiment])
    runs = {r.data.tags.get("faculty.spool_id"): r for r in found}
    assert runs[parent.run_id].info.status == "FAILED"
    assert runs[parent.run_id].data.params == {"lr": "1"}
    assert runs[parent.run_id].data.tags["cache"] == "2"
    uploaded = runs[child.run_id]
    assert uploaded.data.tags["mlflow.parentRunId"] == runs[parent.run_id].info.run_id
    assert [r.data.tags.get("cache") for r in found].count("2") == 1
    assert len(mlflow_client.get_metric_history(uploaded.info.run_id, "loss")) == 20
    assert len(mlflow_client.get_metric_history(uploaded.info.run_id, "worker0/loss")) == 200
    assert len(stored_pictures(server.uri, uploaded.info.run_id)) == 2
    local = mlflow_client.download_artifacts(uploaded.info.run_id, "student/student.bin", str(tmp_path))
    assert Path(local).read_bytes() == b"weights"
    assert capfd.readouterr().out == ""  # MLflow would print addresses


def test_a_server_that_hangs_holds_up_neither_the_work_nor_its_end(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(store_module, "PROBE_SECONDS", 1.0)
    tracker = begin(tmp_path, uri=server.uri)
    assert tracker.flush()
    server.signal(signal.SIGSTOP)
    try:
        start = time.perf_counter()
        for step in range(50):
            tracker.metrics({"loss": float(step)}, step)
        assert time.perf_counter() - start < 0.2
        tracker.finish(timeout=1.0)
        assert time.perf_counter() - start < 10.0
        tracker._writer._thread.join(60.0)
    finally:
        server.signal(signal.SIGCONT)
    assert sync(tmp_path)["files"] == 1
    assert points(tracker, "loss") == [(i, float(i)) for i in range(50)]
    assert client(server.uri).get_run(tracker.run_id).info.status == "FINISHED"
