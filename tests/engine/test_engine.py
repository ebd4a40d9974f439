"""The Ray engine: the same bits as here in this process, though a worker dies; errors as they are; who fits where."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray
from ray_kit import processes
from road_kit import Road, environment, hashes, picture, recipe, teacher, weights

from pipeline.engine import distill as distilling
from pipeline.engine import session
from pipeline.engine import together as bundling
from pipeline.engine.ray_engine import RayEngine, call, plain_errors
from pipeline.engine.shares import shared_out
from pipeline.errors import FacultyError, InputError
from pipeline.recipe.recipe import Distill

STEPS = 40


def make_place(root: Path) -> Path:
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 112 + 8 * seed, seed)
    return root


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students, trained in this process."""
    root = make_place(tmp_path_factory.mktemp("inline"))
    Road(recipe(root, cache={"shard_mb": 0.05})).distill("scratch", "mtkd")
    return root


@pytest.fixture
def fresh(inline: Path, tmp_path: Path) -> Path:
    """The same pictures, nothing computed."""
    shutil.copytree(inline / "pictures", tmp_path / "pictures")
    return tmp_path


@pytest.fixture
def cached(fresh: Path, inline: Path) -> Path:
    """The same pictures and cache, no student."""
    shutil.copytree(inline / "cache", fresh / "cache")
    return fresh


def settings(root: Path, **changes: object) -> object:
    return recipe(root, **{"cache": {"shard_mb": 0.05}, **changes})


def on_ray(root: Path, **changes: object) -> Road:
    return Road(settings(root, **changes), RayEngine())


@pytest.fixture
def killer() -> Iterator[Callable[[Callable[[], object], str], threading.Thread]]:
    """Kill one process of a class of actors as soon as a condition holds."""
    threads: list[threading.Thread] = []
    stop = threading.Event()

    def start(condition: Callable[[], object], kind: str) -> threading.Thread:
        def work() -> None:
            while not stop.is_set():
                if condition() and (found := processes(kind)):
                    os.kill(found[0], signal.SIGKILL)
                    thread.killed = found[0]
                    return
                time.sleep(0.02)

        thread = threading.Thread(target=work, daemon=True)
        thread.killed = None
        thread.start()
        threads.append(thread)
        return thread

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)


# ---- the same bits


@pytest.mark.ray
def test_ray_gives_the_shards_of_this_process(ray_local: None, inline: Path, fresh: Path) -> None:
    road = on_ray(fresh)
    road.teach()
    road.run.prepare(["mtkd"])
    assert hashes(fresh / "cache", "*.arrow") == hashes(inline / "cache", "*.arrow")


@pytest.mark.ray
@pytest.mark.parametrize(
    "together", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("", "threads")), "queue"]
)
def test_trainings_side_by_side_have_the_bits_of_this_process_though_a_worker_is_killed(
    ray_local: None,
    inline: Path,
    cached: Path,
    killer: Callable,
    together: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if together == "threads":  # of one worker, as on a GPU
        monkeypatch.setattr(bundling, "bundles", lambda jobs, settings, gpus: [jobs])
    train = {"steps": STEPS, "evaluate_every": 2}
    queue = (
        {"distill": {"side_by_side": 1}} if together == "queue" else {}
    )  # one worker takes one after the other
    here = Road(settings(inline, train=train)).distill("scratch", "mtkd")[3]
    saved: list[int] = []

    def one_is_saved() -> bool:
        saved[:] = sorted(int(p.stem.split("-")[1]) for p in (cached / "runs").rglob("step-*.json"))
        return bool(saved)

    thread = killer(one_is_saved, "RayTrainWorker")
    there = on_ray(cached, train=train, **queue).distill("scratch", "mtkd")[3]
    assert thread.killed and saved[-1] < STEPS, "the trainings were done before a worker could be killed"
    assert [job.fingerprint for job in there] == [job.fingerprint for job in here]
    assert [weights(job) for job in there] == [weights(job) for job in here]
    assert [job.result()["curves"] for job in there] == [job.result()["curves"] for job in here]


# ---- errors arrive as they are


@pytest.mark.ray
@pytest.mark.parametrize("together", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_reaches_the_driver_with_step_and_term(
    ray_local: None, cached: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    if together:
        monkeypatch.setattr(bundling, "bundles", lambda jobs, settings, gpus: [jobs])
    monkeypatch.chdir(cached)
    road = on_ray(Path("."), train={"lr": 1e30, "steps": 8})
    with pytest.raises(
        FacultyError, match=r"^phase (distill|train), step \d+: the term `(distill|hr|loss)` is"
    ) as caught:
        road.distill(*(["scratch", "mtkd"] if together else []))
    assert type(caught.value) is FacultyError and "ray" not in str(caught.value).lower()
    assert not list((cached / "runs").rglob("result.json"))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_an_address_where_nobody_listens_is_named_at_once(address: str) -> None:
    script = "import sys; from pipeline.engine import session; session.start(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", script, address], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert f"FacultyError: Ray at '{address}' does not answer" in done.stderr


# ---- how work is shared out


def double(item: int, device: str) -> int:
    if item == 13:
        raise InputError("item", "another", "13")
    return 2 * item


@pytest.mark.ray
def test_map_gives_every_result_and_raises_what_was_raised(ray_local: None) -> None:
    engine = RayEngine()
    assert sorted(engine.map(double, range(12))) == [2 * i for i in range(12)]
    assert list(engine.map(double, [])) == []
    with pytest.raises(InputError, match="found 13"):
        list(engine.map(double, [12, 13]))


@pytest.mark.ray
def test_a_node_without_the_package_is_named(ray_local: None, tmp_path: Path) -> None:
    task = call.options(runtime_env={"env_vars": {"PYTHONPATH": str(tmp_path)}})  # there this file is unknown
    with (
        pytest.raises(FacultyError, match="a node of the cluster has no package test_engine.*faculty submit"),
        plain_errors(),
    ):
        ray.get(task.remote(double, 1))


@pytest.mark.ray
@pytest.mark.slow
def test_teachers_that_do_not_fit_together_take_turns(
    ray_local: None, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh)  # Ray's workers are elsewhere: a recipe's relative paths are the command's
    teachers = [{**teacher(n), "checkpoint": f"{n}.safetensors"} for n in ("edsr", "compact")]
    for entry in teachers:
        shutil.copy(teacher(entry["name"])["checkpoint"], entry["checkpoint"])
    road = on_ray(Path("."), teachers=teachers, teach={"actors": 1, "cpus_per_actor": 2.0})
    _, taught = road.teach()
    assert [t.label for t in taught] == ["edsr", "compact"]
    assert processes("TeacherActor") == []


@pytest.mark.ray
def test_what_this_machine_does_not_have_is_refused_instead_of_waited_for(
    ray_local: None, cached: Path
) -> None:
    engine = RayEngine()
    with pytest.raises(InputError, match="teach.gpus_per_actor"):
        next(engine.map(double, [1], gpus=99))
    for teach in ({"gpus_per_actor": 99}, {"cpus_per_actor": 99}):
        with pytest.raises(
            InputError, match="an actor of `teach`: expected at most .* of this machine, found 99"
        ):
            engine.teach({}, recipe(cached, teach=teach).teach, lambda *_: None)
    for distill in ({"gpus_per_worker": 99}, {"workers": 2, "cpus_per_worker": 49.5}):
        with pytest.raises(InputError, match="workers of `distill`: expected at most .*, found 99"):
            on_ray(cached, distill=distill).distill("scratch")


@pytest.mark.parametrize(
    ("settings", "jobs", "cpus", "expected"),
    [
        (Distill(), 6, 2, 2),
        (Distill(), 1, 8, 1),
        (Distill(workers=2), 6, 8, 4),
        (Distill(workers=(1, 4)), 6, 8, 2),
        (Distill(cpus_per_worker=4), 6, 8, 2),
        (Distill(cpus_per_worker=16), 6, 8, 1),
        (Distill(side_by_side=3), 6, 2, 3),
        (Distill(side_by_side=3), 2, 2, 2),
    ],
)
def test_trainings_run_side_by_side_as_the_cores_allow(
    settings: Distill, jobs: int, cpus: int, expected: int
) -> None:
    assert distilling.concurrency(shared_out(settings, 0, jobs), jobs, cpus) == expected


def test_a_cluster_is_not_asked_for_what_it_may_grow() -> None:
    session.require("10.0.0.1:6379", "teach", {"GPU": 1000.0})


def test_another_seed_has_other_bits(inline: Path) -> None:
    (first,) = Road(settings(inline)).distill("scratch")[3]
    (other,) = Road(settings(inline, seed=1)).distill("scratch")[3]
    assert weights(first) != weights(other)
