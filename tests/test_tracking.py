"""Tracking against real stores: sqlite with several writers, and an `mlflow server` that dies, hangs and
returns.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.engine import store as store_module
from pipeline.engine import writer as writer_module
from pipeline.engine.records import Record
from pipeline.engine.spool import Spool
from pipeline.engine.store import Store, public, resolve_uri
from pipeline.engine.tracking import Tracker, open_tracker, resume, sync, ui_command
from pipeline.errors import FacultyError, InputError
from pipeline.tracking_null import NullTracker, RunTracker

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def no_ambient_store(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory) -> Path:
    """An empty database with MLflow's tables, which take 2 s to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Store(f"sqlite:///{path}").initialise()
    return path


@pytest.fixture
def folder(tmp_path, migrated) -> Path:
    """A run's folder with a fresh database."""
    (tmp_path / "run").mkdir()
    shutil.copy(migrated, tmp_path / "run" / "mlflow.db")
    return tmp_path / "run"


def begin(folder: Path, name: str = "run", **options) -> Tracker:
    return open_tracker("experiment", name, uri=options.pop("uri", None), folder=folder, **options)


def client(uri: str):
    return Store(uri).client


def points(tracker: Tracker, name: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(tracker.uri).get_metric_history(tracker.run_id, name))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def stored_pictures(uri: str, run_id: str) -> list[str]:
    return [a.path for a in client(uri).list_artifacts(run_id, "images") if a.path.endswith(".png")]


# Addresses


def test_the_default_store_is_sqlite_beside_the_run(tmp_path):
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_environment_names_the_store_and_an_explicit_address_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert resolve_uri(None, tmp_path) == "http://tracking.example:5000"
    assert resolve_uri("sqlite:////data/m.db", tmp_path) == "sqlite:////data/m.db"


def test_a_relative_database_is_made_absolute_for_workers_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///sub/m.db", tmp_path) == f"sqlite:///{tmp_path}/sub/m.db"


@pytest.mark.parametrize(
    "uri", ["file:///somewhere/mlruns", "./mlruns", "ftp://host/x", "sqlite://", "sqlite:///"]
)
def test_a_store_that_mlflow_no_longer_writes_is_bad_input(uri, tmp_path):
    with pytest.raises(InputError, match=r"tracking\.uri: expected .*sqlite:///") as caught:
        resolve_uri(uri, tmp_path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_passwords_stay_out_of_messages():
    assert public("http://me:secret@host:5000/x") == "http://host:5000/x"
    assert public("sqlite:////a/b@c/m.db") == "sqlite:////a/b@c/m.db"


# What is recorded


def test_metrics_params_tags_and_status_arrive(folder):
    with begin(
        folder, tags={"cache": "0123"}, params={"optim": {"lr": 2e-4, "betas": [0.9, 0.99]}}
    ) as tracker:
        for step in range(2500):  # more than one call may hold
            tracker.metrics({"loss/total": 1.0 / (step + 1)}, step)
        tracker.metrics({"loss/total": float("nan"), "odd name: (x)": 1}, 2500)
        tracker.params({"teachers": [{"name": "a"}, {"name": "b"}], "empty": {}, "recipe": "x" * 9000})
        tracker.tags({"teacher.a": "f" * 64})
    run = client(tracker.uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr"] == "0.0002"
    assert run.data.params["optim.betas"] == "[0.9, 0.99]"
    assert run.data.params["teachers.1.name"] == "b"
    assert len(run.data.params["recipe"]) == 6000
    assert run.data.tags["cache"] == "0123"
    assert run.data.tags["teacher.a"] == "f" * 64
    stored = points(tracker, "loss/total")
    assert [step for step, _ in stored] == list(range(2501))
    assert stored[7][1] == pytest.approx(1 / 8)
    assert np.isnan(stored[2500][1])
    assert points(tracker, "odd name_ _x_") == [(2500, 1.0)]


def test_pictures_are_indexed_by_step_and_artefacts_keep_their_bytes(folder, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights.bin").write_bytes(b"\x00\x01" * 500)
    with begin(folder) as tracker:
        before = picture(1)
        tracker.image("compare/baby", before, 100)
        kept = before.copy()
        before[:] = 0  # the caller may go on using its array
        tracker.image("compare/baby", picture(2), 200)
        tracker.artifact(tmp_path / "checkpoint", "checkpoints")
        tracker.text("name: demo\n", "recipe.yaml")
    paths = stored_pictures(tracker.uri, tracker.run_id)
    assert sorted(p.split("+")[2] for p in paths) == ["100", "200"]
    first = next(p for p in paths if "+step+100+" in p)
    mlflow_client = client(tracker.uri)
    local = mlflow_client.download_artifacts(tracker.run_id, first, str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(local)), kept)
    weights = folder / "mlartifacts"
    assert [p.read_bytes() for p in weights.rglob("weights.bin")] == [b"\x00\x01" * 500]
    assert [p.read_text() for p in weights.rglob("recipe.yaml")] == ["name: demo\n"]


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), picture()[..., :1]]
)
def test_a_picture_of_another_kind_is_refused_where_it_is_made(folder, bad):
    with begin(folder) as tracker, pytest.raises(ValueError, match="uint8"):
        tracker.image("x", bad, 0)


def test_a_parameter_keeps_its_first_value_and_the_others_still_arrive(folder, caplog):
    with begin(folder, params={"lr": 1}) as tracker:
        tracker.params({"lr": 2, "batch": 16})
    assert "lr stays '1'" in caplog.text
    assert client(tracker.uri).get_run(tracker.run_id).data.params == {"lr": "1", "batch": "16"}


def test_a_missing_artefact_is_a_warning_and_what_follows_arrives(folder, tmp_path, caplog):
    with begin(folder) as tracker:
        tracker.artifact(tmp_path / "nothing.bin")
        tracker.metrics({"x": 1.0}, 1)
    assert "nothing.bin is gone" in caplog.text
    assert points(tracker, "x") == [(1, 1.0)]


def test_children_hang_below_their_parent_and_names_may_repeat(folder):
    with begin(folder) as parent, parent.child("distill", tags={"phase": "1"}, params={"lr": 1}) as child:
        grandchild = child.child("trial")
        grandchild.finish("KILLED", tags={"stopped_by": "asha"})
    with begin(folder) as again:
        pass
    runs = {r.info.run_id: r for r in client(parent.uri).search_runs(["1"])}
    assert len(runs) == 4
    assert runs[parent.run_id].info.run_name == runs[again.run_id].info.run_name == "run"
    assert runs[child.run_id].data.tags["mlflow.parentRunId"] == parent.run_id
    assert runs[child.run_id].data.params == {"lr": "1"}
    assert runs[grandchild.run_id].data.tags["mlflow.parentRunId"] == child.run_id
    assert runs[grandchild.run_id].info.status == "KILLED"
    assert runs[grandchild.run_id].data.tags["stopped_by"] == "asha"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_way_a_run_ends_is_its_status(folder, error, status):
    with pytest.raises(error):
        with begin(folder) as tracker:
            raise error
    assert client(tracker.uri).get_run(tracker.run_id).info.status == status


def test_system_load_is_recorded_where_mlflow_shows_it(folder):
    with begin(folder, system_metrics=True) as tracker:
        tracker.metrics({"loss": 1.0}, 0)
    names = set(client(tracker.uri).get_run(tracker.run_id).data.metrics)
    assert {"loss", "system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= names


def test_a_deleted_experiment_is_bad_input(folder):
    begin(folder).finish()
    uri = resolve_uri(None, folder)
    client(uri).delete_experiment("1")
    with pytest.raises(InputError, match=r"deleted.*mlflow experiments restore -x 1"):
        begin(folder)


def test_mlflow_is_quiet_and_sends_no_telemetry(tmp_path):
    code = (
        "import logging, os, pathlib, sys\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "from pipeline.engine.tracking import open_tracker\n"
        "with open_tracker('e', 'r', uri=None, folder=pathlib.Path(sys.argv[1])) as t: t.metrics({'x': 1}, 1)\n"
        "print(os.environ['MLFLOW_DISABLE_TELEMETRY'], os.environ['MLFLOW_HTTP_REQUEST_MAX_RETRIES'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout == "true 2\n"
    assert done.stderr == ""


# Several processes


def work(handle: dict, worker: int) -> None:
    """What a training worker does: resume, record, leave the status alone."""
    tracker = resume(handle)
    for step in range(200):
        tracker.metrics({f"worker{worker}/loss": float(step)}, step)
    tracker.image(f"worker{worker}", picture(worker), 3)
    tracker.close()


def test_several_processes_write_to_one_sqlite_run_and_nothing_is_lost(folder):
    tracker = begin(folder)
    handle = json.loads(json.dumps(tracker.handle()))  # plain data
    workers = [SPAWN.Process(target=work, args=(handle, i)) for i in range(3)]
    for w in workers:
        w.start()
    for step in range(200):
        tracker.metrics({"driver/loss": float(step)}, step)
    for w in workers:
        w.join()
        assert w.exitcode == 0
    assert client(tracker.uri).get_run(tracker.run_id).info.status == "RUNNING"
    tracker.finish()
    for name in ("driver", "worker0", "worker1", "worker2"):
        assert points(tracker, f"{name}/loss") == [(i, float(i)) for i in range(200)]
    assert len(stored_pictures(tracker.uri, tracker.run_id)) == 3
    assert not (folder / "spool").exists()


def race(folder: str, barrier) -> None:
    barrier.wait()
    begin(Path(folder)).finish()


def test_two_drivers_may_make_one_database_at_once(tmp_path):
    barrier = SPAWN.Barrier(2)
    drivers = [SPAWN.Process(target=race, args=(str(tmp_path), barrier)) for _ in range(2)]
    for d in drivers:
        d.start()
    for d in drivers:
        d.join()
        assert d.exitcode == 0
    uri = resolve_uri(None, tmp_path)
    experiment = client(uri).get_experiment_by_name("experiment").experiment_id
    assert [r.info.status for r in client(uri).search_runs([experiment])] == ["FINISHED"] * 2


def test_a_resumed_run_that_replays_its_last_steps_adds_nothing(folder):
    tracker = begin(folder)
    for step in range(10):
        tracker.metrics({"loss": float(step)}, step)
    tracker.image("compare", picture(), 5)
    tracker.finish("FAILED")
    again = resume(tracker.handle(), reopen=True)
    assert again.flush()
    assert client(tracker.uri).get_run(tracker.run_id).info.status == "RUNNING"
    for step in range(5, 15):
        again.metrics({"loss": float(step)}, step)
    again.image("compare", picture(), 5)
    again.image("compare", picture(), 10)
    again.params({"lr": 1})
    again.finish()
    assert points(tracker, "loss") == [(i, float(i)) for i in range(15)]
    assert len(stored_pictures(tracker.uri, tracker.run_id)) == 2
    assert client(tracker.uri).get_run(tracker.run_id).info.status == "FINISHED"


def test_a_tracker_says_how_it_travels(folder):
    with begin(folder) as tracker, pytest.raises(TypeError, match=r"handle\(\)"):
        pickle.dumps(tracker)


def test_a_worker_that_cannot_see_the_database_spools_instead_of_making_another(folder, caplog):
    handle = begin(folder).handle()
    elsewhere = folder / "other-machine" / "mlflow.db"
    handle["uri"] = f"sqlite:///{elsewhere}"
    tracker = resume(handle)
    tracker.metrics({"x": 1.0}, 1)
    assert not tracker.flush()
    tracker.close()
    assert not elsewhere.exists()
    assert sync(folder, resolve_uri(None, folder))["metrics"] == 1


# A store that is slow, lost or full


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


def test_recording_costs_microseconds(folder):
    with begin(folder) as tracker:
        start = time.perf_counter()
        for step in range(1000):
            tracker.metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step)
        assert (time.perf_counter() - start) / 1000 < 200e-6


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
    spool.release()
    shutil.copytree(folder / "spool", tmp_path / "copy")
    first = sync(folder)
    second = sync(tmp_path / "copy")
    assert (first["metrics"], first["image"]) == (5, 1)
    assert second["records"] == 6
    assert second.get("metrics", 0) == 0
    (run,) = client(uri).search_runs(["1"])
    assert len(client(uri).get_metric_history(run.info.run_id, "loss")) == 5
    assert len(stored_pictures(uri, run.info.run_id)) == 1


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


# A server that dies


class Server:
    """A real `mlflow server` with a database and artefact folder of its own."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db", "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            # A session of its own: it starts many processes, and all have to go.
            self.process = subprocess.Popen(
                command, env=environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"{self.uri}/health", self.process)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def wait_for(url: str, process: subprocess.Popen, seconds: float = 90.0) -> bytes:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"no answer from {url}")


@pytest.fixture(scope="module")
def any_server(tmp_path_factory, migrated):
    server = Server(tmp_path_factory.mktemp("server"), migrated)
    yield server
    server.kill()


@pytest.fixture
def server(any_server) -> Server:
    """The module's server, running."""
    if any_server.process is None:
        any_server.start()
    return any_server


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


# The page


@pytest.mark.slow
def test_the_page_is_served_from_the_run_folder(folder):
    begin(folder).finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ui_command(folder, port=port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert b"MLflow" in wait_for(f"http://127.0.0.1:{port}/", process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_page_of_a_server_or_of_nothing_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"Open http://127\.0\.0\.1:5000/#/experiments"):
        ui_command("http://127.0.0.1:5000")
    with pytest.raises(InputError, match="A run with tracking enabled makes it"):
        ui_command(tmp_path)


# No tracking


def test_the_null_tracker_has_every_call_and_survives_a_handle():
    calls = [name for name in vars(RunTracker) if not name.startswith("_")]
    assert len(calls) == 12
    for kind in (NullTracker, Tracker):
        assert all(hasattr(kind, name) for name in calls)
    tracker = NullTracker()
    tracker.metrics({"x": 1.0}, 1)
    with tracker.child("below") as child:
        assert isinstance(resume(child.handle()), NullTracker)
    assert tracker.flush()
