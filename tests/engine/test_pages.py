"""What `faculty ui` gives: the newest run's experiment in the view for training, its students compared."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from road_kit import command, environment, picture, recipe_file
from tracking_kit import begin, folder, migrated, no_ambient_store  # noqa: F401

from pipeline.cli import main, setup
from pipeline.engine.pages import comparison_page, experiment_page, newest
from pipeline.engine.store import Unavailable
from pipeline.engine.tracking import open_tracker
from pipeline.tracking import ROLE


def uri(place: Path) -> str:
    return f"sqlite:///{place}/mlflow.db"


def test_an_empty_store_has_no_page_and_a_missing_one_is_not_made(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    assert newest(uri(folder)) is None
    with pytest.raises(Unavailable):
        newest(uri(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_newest_runs_experiment_and_students_whatever_began_last(folder: Path) -> None:  # noqa: F811
    old = begin(folder, "old")
    old.finish()
    time.sleep(0.01)  # the store counts milliseconds
    run = open_tracker("other", "new", uri=None, folder=folder)
    made = {}
    for name, role in (("teach", ""), ("kd-s0", "student"), ("edsr", "teacher"), ("mtkd-s0", "student")):
        time.sleep(0.01)
        child = run.child(name)
        if role:
            child.tags({ROLE: role})
        made[name] = child.run_id
        child.finish()
    run.finish()
    found = newest(uri(folder))
    assert found is not None and found.run == "new" and found.students == 2
    assert re.fullmatch(r"/#/experiments/\d+/runs\?workflowType=machine_learning", found.experiment)
    runs, experiments = re.fullmatch(
        r"/#/compare-runs\?runs=(.*)&experiments=(.*)", found.comparison
    ).groups()
    assert json.loads(unquote(runs)) == [made["kd-s0"], made["mtkd-s0"]]
    (experiment,) = json.loads(unquote(experiments))
    assert found.experiment == experiment_page(experiment)
    assert found.comparison == comparison_page(experiment, [made["kd-s0"], made["mtkd-s0"]])
    # A run with one student has nothing to compare.
    time.sleep(0.01)
    lone = begin(folder, "lone")
    lone.finish()
    assert newest(uri(folder)).comparison == ""


def test_the_command_says_both_addresses_of_a_real_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 104, seed)
    monkeypatch.chdir(tmp_path)
    file = recipe_file(
        tmp_path,
        method={"name": "kd", "teacher": "edsr"},
        train={"steps": 1, "batch": 2, "evaluate_every": 1},
        tracking={"enabled": True, "system_metrics": False},
    )
    assert main(["run", str(file), "--inline"]) == 0
    capsys.readouterr()
    served: list[list[str]] = []
    monkeypatch.setattr(setup.subprocess, "call", lambda words: served.append(words) or 0)
    assert main(["ui", str(tmp_path / "runs"), "--port", "5999"]) == 0
    first, second = capsys.readouterr().out.strip().splitlines()
    assert re.match(r"http://127\.0\.0\.1:5999/#/experiments/\d+/runs\?workflowType=machine_learning ", first)
    assert second.startswith("the 2 students of r side by side: http://127.0.0.1:5999/#/compare-runs?runs=")
    assert "5999" in served[0]


@pytest.mark.slow
def test_open_opens_the_page_once_the_server_answers(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    begin(folder).finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    process = subprocess.Popen(
        command("ui", folder, "--port", port, "--open"),
        env=environment(BROWSER=f"{browser} %s"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 90
        while not (opened.is_file() and opened.read_text()) and time.monotonic() < end:
            assert process.poll() is None
            time.sleep(0.2)
        assert process.stdout.readline().startswith(opened.read_text().strip())
        assert "workflowType=machine_learning" in opened.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
