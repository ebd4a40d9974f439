"""Where a store lies: folders with any sign in their name, and what messages advise about a store."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pytest
from command_kit import run
from road_kit import picture as save_picture
from road_kit import recipe_file
from tracking_kit import any_server, begin, client, migrated, no_ambient_store, picture, server, wait_for  # noqa: F401

from pipeline.engine.store import page, resolve_uri, sqlite_path
from pipeline.engine.tracking import ui_command
from pipeline.errors import InputError

ODD = "what? #1 50% [a] ü %3F&x=y;z"


@pytest.fixture
def odd(tmp_path, migrated) -> Path:
    """A run's folder below one with an odd name, with a fresh database."""
    folder = tmp_path / ODD / "runs"
    folder.mkdir(parents=True)
    shutil.copy(migrated, folder / "mlflow.db")
    return folder


@pytest.mark.parametrize("name", ["plain", "a b", "what?", "#1", "50%", "%41", "[a]", "ü", "a=b&c", ODD])
def test_an_address_leads_back_to_its_folder_however_often_it_is_resolved(tmp_path, name):
    uri = resolve_uri(None, tmp_path / name)
    assert sqlite_path(uri) == tmp_path / name / "mlflow.db"
    assert resolve_uri(uri, tmp_path) == uri
    assert uri == f"sqlite:///{tmp_path / name / 'mlflow.db'}" or set(name) & set("?#%")


def test_a_question_mark_in_an_address_is_refused_and_the_remedy_leads_to_the_folder(tmp_path):
    with pytest.raises(InputError, match="%, . and # of a file's name are written %25, %3F and %23"):
        resolve_uri(f"sqlite:///{tmp_path}/what?/mlflow.db", tmp_path)
    assert (
        sqlite_path(resolve_uri(f"sqlite:///{tmp_path}/what%3F/mlflow.db", tmp_path))
        == tmp_path / "what?/mlflow.db"
    )


def test_a_database_is_made_in_its_folder_and_nothing_beside_it(tmp_path):
    tracker = begin(tmp_path / ODD)
    tracker.metrics({"loss": 1.0}, 0)
    tracker.image("p", picture(), 0)
    tracker.finish()
    assert [p.name for p in tmp_path.iterdir()] == [ODD]
    assert {"mlflow.db", "mlartifacts"} <= {p.name for p in (tmp_path / ODD).iterdir()}
    assert list((tmp_path / ODD / "mlartifacts").rglob("*.png"))


def test_a_run_in_a_folder_with_an_odd_name_ends_well_and_its_links_lead_to_its_files(odd):
    root = odd.parent
    for seed, name in enumerate("ab"):
        save_picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    save_picture(root / "Bench" / "HR" / "one.png", 64, 72, 50)
    file = recipe_file(
        root,
        method={"name": "scratch"},
        teachers=[],
        tracking={"enabled": True},
        data={"test": [str(root / "Bench/HR")]},
    )
    done = run("run", file, "--inline")
    assert done.code == 0, done.err
    assert [p.name for p in root.parent.iterdir()] == [ODD]
    runs = client(resolve_uri(None, odd)).search_runs(["1"])
    assert {r.info.run_name for r in runs} >= {"r", "scratch-fsrcnn-s0"}
    last = done.out.splitlines()[-1].removeprefix("MLflow: ")
    assert shlex.split(last) == ["faculty", "ui", str(odd)]
    web = (odd / "r/report/report.html").read_text()
    links = [html.unescape(link) for link in re.findall(r'<a href="([^"]*)"', web)]
    markdown = re.findall(r"\]\(<([^>]*)>\)", (odd / "r/report/report.md").read_text())
    assert links and markdown == links
    for link in links:
        assert not set(link) & set("?# ") and (odd / "r/report" / unquote(link)).is_file()


@pytest.mark.slow
def test_the_page_of_a_folder_with_an_odd_name_shows_its_runs(odd):
    begin(odd, "seen").finish()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ui_command(odd, port=port),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": ["1"]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            (found,) = json.load(answer)["runs"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert found["info"]["run_name"] == "seen"
    assert [p.name for p in odd.parent.parent.iterdir()] == [ODD]


# Remedies, followed


def restored(folder, **options):
    """Delete the experiment, follow the advice of the error as a shell does, begin a run again."""
    tracker = begin(folder, **options)
    tracker.finish()
    name = "experiment"
    store = client(tracker.uri)
    store.delete_experiment(store.get_experiment_by_name(name).experiment_id)
    with pytest.raises(InputError, match=r"tracking\.experiment: expected an active experiment") as caught:
        begin(folder, **options)
    done = subprocess.run(
        caught.value.remedy.split("restore it: ")[1], shell=True, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and "has been restored" in done.stdout, done.stderr
    begin(folder, **options).finish()


def test_a_deleted_experiment_is_restored_by_the_command_that_the_error_prints(odd):
    restored(odd)


def test_a_deleted_experiment_of_a_server_is_restored_by_the_command_that_the_error_prints(server, tmp_path):
    restored(tmp_path, uri=server.uri)


def test_the_last_line_of_a_run_with_a_server_is_its_page(server, tmp_path, monkeypatch):
    shown = page(server.uri, tmp_path)
    assert shown == f"{server.uri}/#/experiments?workflowType=machine_learning"
    with urllib.request.urlopen(shown, timeout=30) as answer:
        assert b"MLflow" in answer.read()
    assert page("http://me:secret@host:5000/", tmp_path).startswith("http://host:5000/#/")
    save_picture(tmp_path / "pictures" / "a.png", 96, 96, 0)
    changes = {"method": {"name": "scratch"}, "teachers": [], "data": {"holdout": 0.3}}
    recipe = recipe_file(tmp_path, tracking={"enabled": True, "uri": server.uri}, **changes)
    done = run("run", recipe, "--inline")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"MLflow: {shown}" and not (tmp_path / "runs" / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert page(None, tmp_path) == shown


def test_the_last_line_of_a_run_with_a_database_opens_that_database(odd, tmp_path, monkeypatch):
    for uri in (None, resolve_uri(None, odd)):
        words = shlex.split(page(uri, odd))
        assert words[:2] == ["faculty", "ui"] and resolve_uri(None, odd) in ui_command(words[2])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", resolve_uri(None, odd))
    assert page(None, tmp_path) == "faculty ui"  # which takes the store of the environment
