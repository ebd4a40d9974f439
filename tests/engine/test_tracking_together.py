"""Several processes on one sqlite, runs that are resumed or handed over, more runs than the default pool holds."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import json
import pickle
import subprocess
import sys
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
    work,
)

from pipeline.engine.store import resolve_uri
from pipeline.engine.tracking import resume, sync


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


def test_more_runs_may_write_at_a_time_than_the_default_pool_has_connections(tmp_path: Path) -> None:
    code = """
import sys
from contextlib import ExitStack
from pipeline.engine.store import configure
configure()
from mlflow.store.db.utils import create_sqlalchemy_engine
engine = create_sqlalchemy_engine("sqlite:///" + sys.argv[1])
with ExitStack() as stack:
    print(len([stack.enter_context(engine.connect()) for _ in range(40)]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "mlflow.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "40", done.stderr[-500:]
