"""What the tests of tracking share: a fresh database, a real `mlflow server`, and what they hold."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine.store import Store
from pipeline.engine.tracking import Tracker, open_tracker, resume

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


def work(handle: dict, worker: int) -> None:
    """What a training worker does: resume, record, leave the status alone."""
    tracker = resume(handle)
    for step in range(200):
        tracker.metrics({f"worker{worker}/loss": float(step)}, step)
    tracker.image(f"worker{worker}", picture(worker), 3)
    tracker.close()


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
