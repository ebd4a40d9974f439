"""Jobs on a real Ray cluster: `ray start --head`, then `ray job submit` and `faculty submit`."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from road_kit import environment, faculty, picture, recipe_file
from test_cli import run
from test_faults import end_ray

from pipeline.engine.submit import EXCLUDES, runtime_env
from pipeline.errors import InputError

# ---- what goes along


def test_credentials_go_along_and_nothing_else_does(tmp_path: Path) -> None:
    variables = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_URI": "u",
        "LS_COLORS": "x",
        "SSH_AUTH_SOCK": "y",
    }
    found = runtime_env(tmp_path, variables)
    assert found["env_vars"] == {
        "AWS_SECRET_ACCESS_KEY": "s",
        "MLFLOW_TRACKING_URI": "u",
        "PYTHONUNBUFFERED": "1",
    }
    assert found["working_dir"] == str(tmp_path) and "pip" not in found
    assert {"**/.venv/**", "**/.git/**", "*.arrow"} <= set(EXCLUDES)


def test_a_working_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--working-dir: expected a folder"):
        runtime_env(tmp_path / "nowhere", {})


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


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """`ray start --head` of one machine, with a token, a folder and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.gcs, self.dashboard, *others = free_ports(7)
        self.folder = folder
        programs = folder / "bin"  # what a submitted job's PATH is: the head's
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "faculty").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline.cli "$@"\n')
        for file in programs.iterdir():
            file.chmod(0o755)
        self.env = environment(
            RAY_TMPDIR=str(folder),
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN="a-token-of-this-test-alone-0123456789",
            PATH=os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        )
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        names += ("ray-client-server-port", "runtime-env-agent-port")
        options = [f"--{name}={port}" for name, port in zip(names, others, strict=True)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", f"--temp-dir={folder / 't'}"),
                *("--object-store-memory=100000000", "--disable-usage-stats", *options),
            ],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.address = f"http://127.0.0.1:{self.dashboard}"

    def wait(self) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stdout.read()
            try:
                request = urllib.request.Request(self.address + "/api/version")
                request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
                urllib.request.urlopen(request, timeout=5).read()
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("Ray's head did not start")

    def job(self, place: Path, *entrypoint: str) -> tuple[int, str]:
        """`ray job submit`: exit code and output."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(place)),
                *("--address", self.address, "--", *entrypoint),
            ],
            env=self.env,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=400,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="frh-"))
    found = Head(folder)
    try:
        found.wait()
        yield found
    finally:
        found.process.terminate()
        end_ray(str(folder), patience=10)
        found.process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


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
    wrong = faculty(*shown, "teach", "absent.json", cwd=place, **env)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "a recipe file (YAML), found no such file" in wrong.stdout
    stranger = faculty(
        *shown,
        "teach",
        "recipe.yaml",
        cwd=place,
        **{**env, "RAY_AUTH_TOKEN": "another-token-000000000000000000000"},
    )
    assert stranger.returncode == 1 and "RAY_AUTH_TOKEN" in stranger.stderr
