"""Tracking against real stores: addresses, what is recorded, the page, no tracking."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tracking_kit import (  # noqa: F401
    begin,
    client,
    folder,
    migrated,
    no_ambient_store,
    picture,
    points,
    stored_pictures,
    wait_for,
)

from pipeline.engine.store import public, resolve_uri
from pipeline.engine.tracking import Tracker, resume, ui_command
from pipeline.errors import InputError
from pipeline.tracking import NullTracker, RunTracker

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
    assert points(tracker, "odd name_x003A_ _x0028_x_x0029_") == [(2500, 1.0)]


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
    with pytest.raises(error), begin(folder) as tracker:
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
    assert len(calls) == 13
    for kind in (NullTracker, Tracker):
        assert all(hasattr(kind, name) for name in calls)
    tracker = NullTracker()
    tracker.metrics({"x": 1.0}, 1)
    with tracker.child("below") as child:
        assert isinstance(resume(child.handle()), NullTracker)
    assert tracker.flush()
