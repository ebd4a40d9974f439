"""A store that comes back: one run for each run, nothing lost, whoever uploads first."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from test_spool import spooled
from tracking_kit import begin, client, folder, migrated, no_ambient_store  # noqa: F401

from pipeline.engine import spool as spool_module
from pipeline.engine import writer as writer_module
from pipeline.engine.records import Record
from pipeline.engine.store import Store, Unavailable, resolve_uri
from pipeline.engine.tracking import sync
from pipeline.errors import InputError


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(self: Store, *_: object, **__: object) -> None:
        raise Unavailable("away")

    for call in ("probe", "initialise", "create_run"):
        monkeypatch.setattr(Store, call, gone)


def test_children_that_come_back_together_hang_below_one_parent(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "PROBE_EVERY", 0.5)
        with pytest.MonkeyPatch.context() as gone:
            away(gone)
            parent = begin(folder)
            children = [parent.child(f"k{n}") for n in range(6)]
            for child in children:
                child.metrics({"loss": 1.0}, 1)
            time.sleep(1)
            assert parent.run_id.startswith("local-")
        create = Store.create_run

        def slowly(self: Store, header: Mapping[str, Any], **tags: str) -> str:
            time.sleep(0.5 * (not header["parent"]))
            return create(self, header, **tags)

        patch.setattr(Store, "create_run", slowly)
        time.sleep(4)  # all look for the store at once
        for child in children:
            child.finish(timeout=60.0)
        parent.finish(timeout=60.0)
    store = client(resolve_uri(None, folder))
    (experiment,) = [e for e in store.search_experiments() if e.name != "Default"]
    runs = store.search_runs([experiment.experiment_id])
    top = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(runs) == 7 and len(top) == 1
    assert {r.data.tags["mlflow.parentRunId"] for r in runs if r is not top[0] and r not in top} == {
        top[0].info.run_id
    }
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_what_cannot_be_sent_on_return_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A deleted experiment is bad input, not a store that is away."""
    caplog.set_level(logging.WARNING)
    with pytest.MonkeyPatch.context() as gone:
        away(gone)
        tracker = begin(folder)
        tracker.metrics({"loss": 1.0}, 1)
        assert not tracker.flush(2.0)

    def deleted(self: Store, name: str, artifacts: str) -> str:
        raise InputError("tracking.experiment", "an experiment that is there", "one that was deleted")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "experiment", deleted)
        tracker.finish(timeout=5.0)
    assert "tracking: lost" not in caplog.text
    assert sync(folder)["files"] == 1
    store = client(resolve_uri(None, folder))
    (experiment,) = [e for e in store.search_experiments() if e.name != "Default"]
    (run,) = store.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.metrics == {"loss": 1.0}


def test_sync_goes_on_where_an_owner_was_faster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = resolve_uri(None, folder)
    spools = [spooled(folder / name, uri, 2) for name in "ab"]
    for each in spools:
        each.release()
    listed = [str(each.path) for each in spools]
    upload, done = spool_module._sync_file, []

    def and_removes_the_other(path: Path, target: str | None) -> object:
        done.append(str(path))
        for other in listed:
            if other not in done:
                os.unlink(other)
        return upload(path, target)

    monkeypatch.setattr(spool_module, "_sync_file", and_removes_the_other)
    counts = sync(folder)
    assert (counts["files"], counts["metrics"], len(done)) == (1, 2, 1)


def test_a_spool_that_was_removed_while_it_was_opened_is_begun_again(folder: Path) -> None:
    """`sync` takes a file without a line for one whose process was killed."""
    uri = resolve_uri(None, folder)
    one = spooled(folder, uri, 0)
    lock, removed = spool_module.fcntl.flock, []

    def removed_before(file: object, how: int) -> None:
        lock(file, how)
        if not removed:
            removed.append(one.path)
            os.unlink(one.path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module.fcntl, "flock", removed_before)
        one.append(Record("metrics", 1000, step=1, values={"loss": 1.0}))
    assert removed and one.path.exists()
    one.release()
    assert sync(folder)["metrics"] == 1
