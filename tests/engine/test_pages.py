"""Addresses inside MLflow's pages of real runs."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, unquote

from command_kit import run
from mlflow import MlflowClient
from road_kit import picture, recipe_file

from pipeline.engine.pages import pages
from pipeline.engine.store import PAGE
from pipeline.engine.tracking import ui_command

BASE = "http://127.0.0.1:5000"


def test_the_newest_runs_experiment_and_its_students_compared(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    (tmp_path / "runs").mkdir()
    client = MlflowClient(tracking_uri=uri)
    client.create_run(client.create_experiment("earlier"))
    file = recipe_file(
        tmp_path, name="second", method={"name": "kd"}, tracking={"enabled": True, "system_metrics": False}
    )
    done = run("run", file, "--inline")
    assert done.code == 0, done.err
    command = ui_command(tmp_path / "runs")
    assert command[command.index("--backend-store-uri") + 1] == uri
    found = pages(uri, BASE)
    experiment = client.get_experiment_by_name("second").experiment_id
    assert found["newest run"] == f"{BASE}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    asked = parse_qs(found["its students compared"].partition("?")[2])
    ids = json.loads(unquote(asked["runs"][0]))
    assert json.loads(asked["experiments"][0]) == [experiment]
    assert {client.get_run(i).info.run_name.split("-")[0] for i in ids} == {"scratch", "kd"}


def test_a_store_without_runs_shows_its_experiments(tmp_path: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_experiment("empty")
    assert pages(f"sqlite:///{tmp_path / 'mlflow.db'}", BASE) == {"experiments": BASE + PAGE}
    (tmp_path / "text.db").write_text("no database")
    assert pages(f"sqlite:///{tmp_path / 'text.db'}", BASE) == {"experiments": BASE + PAGE}
