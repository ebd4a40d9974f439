"""Jobs on a real Ray cluster: `ray start --head`, then `ray job submit` and `faculty submit`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_kit import run
from head_kit import Head
from road_kit import faculty, picture, recipe_file

from pipeline.engine.packing import EXCLUDES, pack
from pipeline.engine.submit import runtime_env
from pipeline.errors import InputError

# ---- what goes along


def test_credentials_go_along_and_nothing_else_does(tmp_path: Path) -> None:
    variables = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_URI": "u",
        "LS_COLORS": "x",
        "SSH_AUTH_SOCK": "y",
    }
    found = runtime_env(pack(tmp_path), variables)
    assert found["env_vars"] == {
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_URI": "u",
        "PYTHONUNBUFFERED": "1",
    }
    assert found["working_dir"] == str(tmp_path) and "pip" not in found
    assert {".venv", ".git", "*.arrow"} <= set(EXCLUDES)


def test_a_working_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--working-dir: expected a folder"):
        pack(tmp_path / "nowhere")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("ab"):
        picture(tmp_path / "pictures" / f"{name}.png", 72, 80, seed)
    recipe_file(tmp_path)
    return tmp_path


def test_a_wrong_recipe_is_refused_here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    done = run("submit", "run", "recipe.yaml", "--set", "train.stepz=1")
    assert done.code == 2 and "train.stepz" in done.err
    done = run("submit", "run", "recipe.yaml", "--set", "output=runs")
    assert done.code == 2 and "output: expected a place that outlives the job" in done.err
    assert run("submit").code == 2 and run("submit", "--", "submit", "run").code == 2


def test_a_cluster_that_does_not_answer_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    done = run("submit", "--address", "http://127.0.0.1:9", "distill", "recipe.yaml")
    assert done.code == 1 and "http://127.0.0.1:9 does not take the job" in " ".join(done.err.split())


# ---- a cluster


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="frh-"))
    found = Head(folder)
    try:
        found.wait()
        yield found
    finally:
        found.end()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_recipe_as_a_job_succeeds_with_its_outputs_where_it_says(head: Head, place: Path) -> None:
    out = place.parent / f"{place.name}-out"
    recipe_file(place, output=str(out / "runs"), cache={"root": str(out / "cache")})
    code, said = head.job(place, "faculty", "distill", "recipe.yaml")
    assert code == 0, said
    assert "SUCCEEDED" in said or "succeeded" in said
    assert (out / "runs" / "r" / "trainings").is_dir() and list(out.rglob("weights.safetensors"))
    assert "teach: " in said and "\x1b[" not in said.split("teach: ")[1].splitlines()[0], "plain lines"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failing_recipe_is_a_failed_job_with_its_cause_at_the_end(head: Head, place: Path) -> None:
    code, said = head.job(place, "faculty", "distill", "recipe.yaml", "--set", "train.lr=1e30")
    assert code != 0 and "failed" in said.lower()
    assert "phase distill, step" in "\n".join(said.splitlines()[-12:]), said


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_submit_follows_the_job_and_carries_its_exit_code(head: Head, place: Path) -> None:
    env = {k: head.env[k] for k in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_TMPDIR")}
    shown = ("submit", "--address", head.address)
    done = faculty(
        *shown,
        "teach",
        "recipe.yaml",
        "--json",
        place / "t.json",
        cwd=place,
        AWS_SECRET_ACCESS_KEY="hush",
        **env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((place / "t.json").read_text())["shards_written"] > 0
    said = done.stdout + done.stderr
    assert "shards written" in done.stdout and "AWS_SECRET_ACCESS_KEY" in said and "hush" not in said
    wrong = faculty(
        *shown, "evaluate", "--model=absent.onnx", "--data=pictures", "--scale=2", cwd=place, **env
    )
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "absent.onnx" in wrong.stdout
    stranger = faculty(
        *shown,
        "teach",
        "recipe.yaml",
        cwd=place,
        **{**env, "RAY_AUTH_TOKEN": "another-token-000000000000000000000"},
    )
    assert stranger.returncode == 1 and "another token than the one of RAY_AUTH_TOKEN" in stranger.stderr
