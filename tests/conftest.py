"""What several test files need: fixtures, the environment of local Ray clusters, and the `gpu` marker."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

# Read by Ray and MLflow when they are imported or started, here and in the processes that tests start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")  # how long a report may wait
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "30000")  # as in a run
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """One thread: sums keep their order, so figures repeat, and tests share a machine fairly."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def databases_at_once() -> Iterator[None]:
    """MLflow takes seconds to make a database, through all that its tables ever were: it does so once, and every other
    empty one that is made in this process gets a copy.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    make, guard = utils._initialize_tables, threading.Lock()
    template = sqlite3.connect(":memory:", check_same_thread=False)

    def copied(engine: sqlalchemy.Engine) -> None:
        if engine.dialect.name != "sqlite" or not utils._is_empty_database(engine):
            return make(engine)
        with guard, closing(engine.raw_connection()) as connection:
            if not template.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                make(engine)
                connection.driver_connection.backup(template)
            else:
                template.backup(connection.driver_connection)
        return None

    utils._initialize_tables = copied
    yield
    utils._initialize_tables = make


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real pictures and checkpoints beside the checkout; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir() or not (folder / "weights").is_dir():
        pytest.skip("needs the real pictures and checkpoints of ../shared, which is not here")
    return folder


def natural_picture(height: int, width: int, seed: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 somewhat like a photograph: 1/f texture and a few hard edges."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :]
    spectrum = 1.0 / np.maximum(np.hypot(fy, fx), 1.0 / max(height, width))
    noise = rng.standard_normal((3, height, width))
    texture = np.fft.ifft2(np.fft.fft2(noise[:1] + 0.3 * noise) * spectrum).real
    picture = texture / texture.std() * 22.0 + rng.uniform(90.0, 160.0, (3, 1, 1))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(6):  # ellipses and half planes of flat colour: the edges that super-resolution is about
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        if rng.random() < 0.5:
            ry, rx = rng.uniform(0.06, 0.3, 2) * (height, width)
            inside = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 < 1.0
        else:
            angle = rng.uniform(0.0, np.pi)
            distance = (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle)
            inside = np.abs(distance) < rng.uniform(1.0, 6.0)
        picture = np.where(inside, 0.3 * picture + 0.7 * rng.uniform(0, 255, (3, 1, 1)), picture)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8).transpose(1, 2, 0)


@pytest.fixture
def tiny_pictures(tmp_path: Path) -> Path:
    """A fresh folder with four RGB files: `a.png` 96x128, `b.png` 120x100, `c.png` 97x131, `d.png` 64x64."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = {"a": (96, 128), "b": (120, 100), "c": (97, 131), "d": (64, 64)}
    for seed, (name, (height, width)) in enumerate(sizes.items()):
        Image.fromarray(natural_picture(height, width, seed)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small pictures after `distill`; one of them is held out."""
    from road_kit import Road, five_pictures, recipe

    root = five_pictures(tmp_path_factory.mktemp("finished"))
    Road(recipe(root)).distill()
    return root


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished place, to change."""
    for name in ("pictures", "cache", "runs"):
        shutil.copytree(finished / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[str]:
    """A folder for this session's Ray, which ends with it; the path is short, as sockets below it must be."""
    import ray

    folder, before = tempfile.mkdtemp(prefix="fray-"), os.environ.get("RAY_TMPDIR")
    yield folder
    ray.shutdown()
    if before is None:
        os.environ.pop("RAY_TMPDIR", None)
    else:
        os.environ["RAY_TMPDIR"] = before
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_local(ray_folder: str) -> None:
    """A local Ray of two CPUs: the session's, begun anew where a test has ended it.

    RAY_TMPDIR is set too: it is where Ray looks for an address file that another cluster may have left. The dashboard
    runs because Ray Train and Tune ask it for the state of their actors.
    """
    import ray

    os.environ["RAY_TMPDIR"] = ray_folder
    if ray.is_initialized():
        return
    tests = REPOSITORY / "tests"  # what is sent to a worker may be defined in any of its folders
    path = os.pathsep.join(map(str, [REPOSITORY, tests, *sorted(p for p in tests.iterdir() if p.is_dir())]))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        object_store_memory=200 * 2**20,
        _temp_dir=ray_folder,
        log_to_driver=False,
        logging_level="warning",
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )


@pytest.fixture
def ray_home() -> Iterator[str]:
    """A folder for one command's Ray. What of it outlives the command is found by this folder's name, and ended."""
    from ray_kit import end_ray

    folder = tempfile.mkdtemp(prefix="fr-")
    yield folder
    end_ray(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test's own for fetched shards."""
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server in this process, with one bucket."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    boto3 = pytest.importorskip("boto3")
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="faculty")
        yield "s3://faculty"
    server.stop()
