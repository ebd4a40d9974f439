"""Several Ray nodes: the same results as here, also when one is killed or taken away in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_kit import Nodes
from ray_kit import end_ray
from road_kit import Road, command, content, hashes, picture, recipe, recipe_file, snapshot, weights

TRAIN = {"steps": 2000, "evaluate_every": 50, "log_every": 10, "keep": 3}
CACHE = {"shard_mb": 0.03}


def settings(root: Path) -> object:
    return recipe(root, cache=CACHE, train=TRAIN, teach={"actors": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run here, in this process."""
    root = tmp_path_factory.mktemp("whole")
    for seed in range(10):
        picture(root / "pictures" / f"{seed}.png", 144, 152, seed)
    Road(settings(root)).distill()
    return root


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / "pictures", tmp_path / "pictures")
    recipe_file(tmp_path, cache=CACHE, train=TRAIN, teach={"actors": 1})
    assert content(tmp_path)["tracking"] == {"enabled": False}
    return tmp_path


@pytest.fixture
def nodes() -> Iterator[Callable[..., Nodes]]:
    started: list[tuple[Nodes, Path]] = []

    def start(*cpus: int) -> Nodes:
        folder = Path(tempfile.mkdtemp(prefix="frn-"))
        started.append((Nodes(folder, *cpus), folder))
        return started[-1][0]

    yield start
    for found, folder in started:
        found.end()
        end_ray(str(folder), patience=5)
        shutil.rmtree(folder, ignore_errors=True)


def committed(root: Path) -> dict[str, tuple[str, int]]:
    found = snapshot(root / "cache" / "outputs")
    return {n: state for n, state in found.items() if n.endswith(".arrow") and f"{n}.json" in found}


def checkpoints(root: Path) -> list[int]:
    return sorted(int(p.stem.split("-")[1]) for p in (root / "runs").rglob("step-*.json"))


class Work:
    """`faculty ...` on a cluster."""

    def __init__(self, nodes: Nodes, place: Path, *arguments: object) -> None:
        self.process = subprocess.Popen(
            command(*arguments, "--address", nodes.address),
            cwd=place,
            env=nodes.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._reader = threading.Thread(target=lambda: self.said.extend(self.process.stdout), daemon=True)
        self._reader.start()

    def until(self, condition: Callable[[], object], seconds: float = 400) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, "".join(self.said)
            assert time.monotonic() < end, "".join(self.said)
            time.sleep(0.05)

    def end(self, seconds: float = 400) -> str:
        try:
            self.process.wait(seconds)
        finally:
            self.process.kill()
            self._reader.join(5)
        assert self.process.returncode == 0, "".join(self.said)
        return "".join(self.said)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_killed_in_teach_and_one_in_distill_change_nothing(
    nodes: Callable[..., Nodes], place: Path, whole: Path
) -> None:
    cluster = nodes(1, 1, 1)
    total = len(committed(whole))
    work = Work(cluster, place, "distill", "recipe.yaml")
    work.until(lambda: len(committed(place)) >= 3 and cluster.ask("where", "TeacherActor"))
    (gone, *_) = cluster.ask("where", "TeacherActor")
    before = committed(place)
    cluster.ask("kill", gone)
    assert 3 <= len(before) < total, "it was done before a node could be killed"
    cluster.ask("add", 1)
    work.until(lambda: len(checkpoints(place)) >= 2)
    where = cluster.ask("where", "RayTrainWorker")
    killed = [cluster.ask("kill", node) for node in where]
    step = checkpoints(place)[-1]
    assert hashes(place / "cache", "*.arrow") == hashes(whole / "cache", "*.arrow")
    assert before.items() <= committed(place).items(), "what was committed was not taught again"
    work.end()
    assert killed and step < TRAIN["steps"], "the training was done, or ran on the head"
    (here,), (there,) = (Road(settings(root)).distill()[3] for root in (whole, place))
    assert weights(here) == weights(there)
    assert here.result()["curves"] == there.result()["curves"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_will_be_taken_away_leaves_a_checkpoint_first(
    nodes: Callable[..., Nodes], place: Path, whole: Path
) -> None:
    shutil.copytree(whole / "cache", place / "cache")
    cluster = nodes(0, 1)
    rare = (
        "--set",
        "train.evaluate_every=100000",
        "--set",
        "train.steps=100000",
        "--set",
        "train.log_every=1",
    )
    work = Work(cluster, place, "distill", "recipe.yaml", *rare)
    try:
        work.until(lambda: cluster.ask("where", "RayTrainWorker"))
        (node,) = cluster.ask("where", "RayTrainWorker")
        time.sleep(5)
        assert not checkpoints(place), "none was due"
        assert cluster.ask("drain", node, 40)
        work.until(lambda: checkpoints(place), 35)
        assert checkpoints(place)[0] % 100000, "a checkpoint between the usual ones"
    finally:
        work.process.kill()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_elastic_training_makes_do_with_the_workers_there_are(
    nodes: Callable[..., Nodes], place: Path, whole: Path
) -> None:
    shutil.copytree(whole / "cache", place / "cache")
    cluster = nodes(0, 1)
    options = ("--set", "distill.workers=[1, 2]", "--set", "train.steps=150")
    Work(cluster, place, "distill", "recipe.yaml", *options).end()
    (file,) = (place / "runs").rglob("result.json")
    (curve,) = json.loads(file.read_text())["curves"].values()
    assert [step for step, _ in curve["held_out/psnr_y"]] == [50, 100, 150]
