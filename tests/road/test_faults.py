"""The failures that a user will meet, injected for real: killed commands, two at once, no room, no server."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from command_kit import run, until
from ray_kit import end_ray, of_ray
from road_kit import (
    Road,
    command,
    content,
    environment,
    faculty,
    picture,
    recipe,
    recipe_file,
    snapshot,
    weights,
)

from pipeline.cache.store import Store

TRAIN = {"steps": 120, "evaluate_every": 6, "keep": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed: sixteen output shards and a student."""
    root = tmp_path_factory.mktemp("whole")
    for seed in range(8):
        picture(root / "pictures" / f"{seed}.png", 144, 152, seed)
    Road(settings(root)).distill()
    return root


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """The same pictures, nothing computed."""
    shutil.copytree(whole / "pictures", tmp_path / "pictures")
    recipe_file(tmp_path, cache={"shard_mb": 0.1}, train=TRAIN)
    return tmp_path


def settings(root: Path) -> object:
    return recipe(root, cache={"shard_mb": 0.1}, train=TRAIN)


def trained(root: Path) -> dict[str, bytes]:
    (job,) = Road(settings(root)).distill()[3]
    return weights(job)


def committed(root: Path, kind: str) -> dict[str, tuple[str, int]]:
    """The shards with a receipt."""
    found = snapshot(root / "cache" / kind)
    return {n: state for n, state in found.items() if n.endswith(".arrow") and f"{n}.json" in found}


def start(place: Path, *arguments: object, **env: str) -> subprocess.Popen:
    """The command in a session of its own."""
    return subprocess.Popen(
        command(*arguments),
        cwd=place,
        env=environment(**env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill_when(condition: Callable[[], object], place: Path, *arguments: object, **env: str) -> None:
    """Start the command and SIGKILL it, and it alone, as soon as the condition holds."""
    work = start(place, *arguments, **env)
    try:
        until(condition, work)
    finally:
        work.kill()
        work.communicate()
    assert work.returncode == -signal.SIGKILL


def checkpoints(place: Path) -> list[int]:
    return sorted(int(p.stem.split("-")[1]) for p in (place / "runs").rglob("step-*.json"))


# ---- killed


def test_teach_killed_goes_on_without_making_a_committed_shard_again(place: Path, whole: Path) -> None:
    kill_when(lambda: len(committed(place, "outputs")) > 2, place, "teach", "recipe.yaml", "--inline")
    before = {kind: committed(place, kind) for kind in ("tiles", "outputs")}
    total = len(committed(whole, "outputs"))
    assert 2 < len(before["outputs"]) < total, "it was done before it could be killed"
    done = run("teach", place / "recipe.yaml", "--inline", "--json", "-")
    assert done.code == 0, done.err
    assert done.json["shards_reused"] == len(before["outputs"])
    assert done.json["shards_written"] == total - len(before["outputs"])
    for kind, shards in before.items():
        after = committed(place, kind)
        assert shards.items() <= after.items()
        assert {n: sha256 for n, (sha256, _) in after.items()} == {
            n: sha256 for n, (sha256, _) in committed(whole, kind).items()
        }


def test_distill_killed_ends_with_the_bits_of_a_run_that_was_not(place: Path, whole: Path) -> None:
    shutil.copytree(whole / "cache", place / "cache")
    kill_when(lambda: len(checkpoints(place)) >= 2, place, "distill", "recipe.yaml", "--inline")
    assert 0 < checkpoints(place)[-1] < TRAIN["steps"] and not list(place.rglob("result.json"))
    done = run("distill", place / "recipe.yaml", "--inline")
    assert done.code == 0, done.err
    assert trained(place) == trained(whole)
    assert result(place)["curves"] == result(whole)["curves"]


def result(root: Path) -> dict:
    (file,) = root.glob("runs/r/trainings/*/result.json")
    return json.loads(file.read_text())


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_killed_in_teach_and_in_distill_loses_nothing_that_was_committed(
    place: Path, whole: Path, ray_home: str
) -> None:
    again = ("distill", "recipe.yaml")
    kill_when(lambda: len(committed(place, "outputs")) > 1, place, *again, RAY_TMPDIR=ray_home)
    end_ray(ray_home)
    taught = committed(place, "outputs")
    assert 1 < len(taught) < len(committed(whole, "outputs")), "it was done before it could be killed"
    kill_when(lambda: len(checkpoints(place)) >= 2, place, *again, RAY_TMPDIR=ray_home)
    end_ray(ray_home)
    assert taught.items() <= committed(place, "outputs").items()
    assert 0 < checkpoints(place)[-1] < TRAIN["steps"] and not list(place.rglob("result.json"))
    made = {kind: committed(place, kind) for kind in ("tiles", "outputs", "fused")}
    before = set(os.listdir(ray_home))
    done = faculty(*again, cwd=place, RAY_TMPDIR=ray_home)
    assert done.returncode == 0, done.stderr
    assert {kind: committed(place, kind) for kind in made} == made
    assert trained(place) == trained(whole)
    assert set(os.listdir(ray_home)) == before, "a command that ends leaves nothing of its Ray"


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_during_a_training_over_ray_end_it_soon(
    place: Path, whole: Path, ray_home: str, number: int, code: int
) -> None:
    shutil.copytree(whole / "cache", place / "cache")
    work = start(place, "distill", "recipe.yaml", "--set", "train.steps=100000", RAY_TMPDIR=ray_home)
    try:
        until(lambda: checkpoints(place), work)
        if number == signal.SIGINT:
            os.killpg(work.pid, number)  # as a terminal does
        else:
            work.send_signal(number)
        _, said = work.communicate(timeout=200)
    finally:
        work.kill()
    assert work.returncode == code and "goes on" in said, said[-3000:]
    assert "Traceback" not in said and "received" not in said, said[-3000:]
    end_ray(ray_home)
    assert of_ray(ray_home) == []


# ---- two at once


def test_two_commands_at_once_share_the_work(place: Path, whole: Path) -> None:
    files = [(place / f"{i}.out", place / f"{i}.err") for i in range(2)]
    both = []
    with Store.open(place / "cache").lock("building.lock"):  # until both stand before the door
        for out, err in files:
            with out.open("w") as stdout, err.open("w") as stderr:
                both.append(
                    subprocess.Popen(
                        command("distill", "recipe.yaml", "--inline"),
                        cwd=place,
                        env=environment(COLUMNS="500"),
                        stdout=stdout,
                        stderr=stderr,
                    )
                )
        for work, (_, err) in zip(both, files, strict=True):
            until(lambda err=err: f"is being built by process {os.getpid()} on" in err.read_text(), work)
    said = [err.read_text() for work, (_, err) in zip(both, files, strict=True) if work.wait(240) == 0]
    assert len(said) == 2, [err.read_text() for _, err in files]
    tiles, _ = Road(settings(whole)).teach()
    rows = 2 * sum(m.rows for _, m in tiles.splits())
    for work in ("tiles", "look at teachers", f"teach: {rows}/{rows}", "fuse", "mtkd-fsrcnn-s0: 120/120"):
        assert sum(work in text for text in said) == 1, (work, said)
    assert files[0][0].read_text() == files[1][0].read_text()
    assert (
        trained(place) == trained(whole)
        and committed(place, "outputs").keys() == committed(whole, "outputs").keys()
    )


def test_a_second_training_of_one_student_waits_for_the_first(place: Path, whole: Path) -> None:
    """Also where the cache is complete: the lock is the training's own."""
    shutil.copytree(whole / "cache", place / "cache")
    road = Road(settings(place))
    (job,) = Road(settings(whole)).distill()[3]
    training = Store.open(place / "runs" / "r" / job.folder)
    with training.lock("training.lock"):
        thread = threading.Thread(target=road.distill)
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and not checkpoints(place)
        # What the first leaves is what the second takes.
        for file in (whole / "runs" / "r" / job.folder).glob("*.*"):
            shutil.copy(file, place / "runs" / "r" / job.folder)
    thread.join(60)
    assert not thread.is_alive() and not checkpoints(place) and trained(place) == trained(whole)


# ---- no room, no server


def test_a_full_disk_names_the_file_and_commits_nothing(place: Path, whole: Path) -> None:
    size = min(p.stat().st_size for p in (whole / "cache/outputs").rglob("*.arrow"))
    done = subprocess.run(
        command(
            "teach",
            "recipe.yaml",
            "--inline",
            "--set",
            f"cache.shard_mb={content(place)['cache']['shard_mb']}",
        ),
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert done.returncode == 1 and "cannot be written" in done.stderr and ".arrow" in done.stderr, (
        done.stderr
    )
    assert not list((place / "cache").rglob("*.arrow*")), "neither shards nor leftovers"
    assert run("teach", place / "recipe.yaml", "--inline").code == 0
    assert len(committed(place, "outputs")) == len(committed(whole, "outputs"))


def test_a_tracking_server_that_is_away_does_not_stop_a_run(
    place: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "cache", place / "cache")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = run("distill", place / "recipe.yaml", "--inline", "--set", "tracking.enabled=true")
    assert done.code == 0, done.err
    assert trained(place) == trained(whole)
    assert list((place / "runs").rglob("*spool*")), "what was to be recorded is kept for `faculty track sync`"
