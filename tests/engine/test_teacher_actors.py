"""Teachers as actors: one dies, vanishes or meets a damaged shard; how many there are of each."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray_kit import processes
from road_kit import Road, flip, hashes, picture, recipe, snapshot, teacher

from pipeline.cache.format import Receipt
from pipeline.cache.node import CorruptShard
from pipeline.engine import teach as teaching
from pipeline.engine.ray_engine import RayEngine
from pipeline.errors import FacultyError
from pipeline.recipe.recipe import Teach
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.super_resolution.teach import TeachTask
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts


@pytest.fixture
def shards(tmp_path: Path) -> tuple[Road, TeacherFacts, list[TeachTask]]:
    """Ten tile shards, a teacher for them, and the work that this makes."""
    for seed in range(10):
        picture(tmp_path / "pictures" / f"{seed}.png", 96, 120, seed)
    road = Road(recipe(tmp_path, teachers=[teacher("edsr")], cache={"shard_mb": 0.02}))
    run = road.run
    tiles = run.planner.samples(run.task.samples(run.planner), "tiles")
    ((_, facts),) = run.task.teachers(run.planner, tiles, [])
    folder = facts.folder(tiles.folder, "uint8")
    root = str(tmp_path / "cache")
    receipts = [r for _, m in tiles.splits() for r in m.shards]
    return road, facts, [TeachTask(root, r, folder, 2, "uint8", 4) for r in receipts]


@pytest.mark.ray
@pytest.mark.parametrize("actors", ["auto", 1])
def test_what_a_teacher_leaves_free_another_gets(
    ray_local: None,
    shards: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    actors: str | int,
) -> None:
    _, facts, tasks = shards
    monkeypatch.setattr(teaching, "WORTH_S", 0.0)
    grow = teaching.Pool.grow

    def grown_up(pool: teaching.Pool) -> None:
        """Both begin together: a process that is slow to start must not come when the other is done with everything."""
        grow(pool)
        ray.wait(list(pool.starting), num_returns=len(pool.starting))

    monkeypatch.setattr(teaching.Pool, "grow", grown_up)
    caplog.set_level("INFO", logger="pipeline.engine.teach")
    seen: list[tuple[str, str]] = []
    beside = replace(tasks[0], folder="outputs/beside")
    tasks = [replace(t, folder=f"outputs/long{n}") for n in range(3) for t in tasks]
    RayEngine().teach(
        {"short": (facts, [beside]), "long": (facts, tasks)},
        recipe(tmp_path, teach={"actors": actors}).teach,
        lambda label, receipt, _: seen.append((label, receipt.key)),
    )
    assert sorted(seen) == sorted([("short", beside.samples.key), *(("long", t.samples.key) for t in tasks)])
    grown = [r.message for r in caplog.records if r.message.startswith("one more actor for long")]
    assert len(grown) == (1 if actors == "auto" else 0), "two slots, one of them left by the other teacher"


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_how_far_shards_are_is_told_before_they_are_committed(
    ray_local: None, shards: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    _, facts, tasks = shards
    monkeypatch.setattr(teaching, "NEWS_S", 0.001)
    rows, moved = [t.samples.rows for t in tasks], []
    small = [replace(t, batch=1) for t in tasks]
    engines = {"inline": InlineEngine("cpu"), "ray": RayEngine()}
    engines[engine].teach(
        {"edsr": (facts, small)},
        recipe(tmp_path).teach,
        lambda *_: None,
        moved.append,
    )
    assert max(moved) > 0 and max(moved) <= 4 * max(rows), (
        "two actors, each at one shard and with another to write"
    )
    if engine == "inline":
        assert moved == [float(n) for count in rows for n in range(1, count + 1)]


@pytest.mark.ray
def test_a_teacher_killed_in_the_middle_of_a_shard_costs_nothing_but_time(
    ray_local: None, shards: tuple, tmp_path: Path
) -> None:
    road, facts, tasks = shards
    outputs = tmp_path / "cache" / "outputs"
    seen: list[str] = []
    before: dict[str, tuple[str, int]] = {}

    def taught(label: str, receipt: Receipt, stats: dict) -> None:
        seen.append(receipt.key)
        if len(seen) == 2:  # the actor is two calls deep, so it is at the next shard
            before.update(snapshot(outputs, f"{receipt.key}.*"))
            os.kill(processes("TeacherActor")[0], signal.SIGKILL)

    settings = recipe(tmp_path, teach={"actors": 1})
    RayEngine().teach({"edsr": (facts, tasks)}, settings.teach, taught)
    assert sorted(seen) == sorted(t.samples.key for t in tasks) and len(set(seen)) == len(seen) >= 8
    after = snapshot(outputs)
    assert before and before.items() <= after.items(), "what was committed was not made again"
    # The killed process may have been writing: what it left has a name that no reader takes.
    assert len([name for name in after if name.endswith(".tmp")]) <= 2
    shutil.move(outputs, tmp_path / "theirs")
    InlineEngine("cpu").teach({"edsr": (facts, tasks)}, settings.teach, lambda *_: None)
    assert hashes(outputs, "*.arrow") == hashes(tmp_path / "theirs", "*.arrow")


@pytest.mark.ray
def test_a_teacher_that_dies_too_often_ends_the_run_with_what_to_do(ray_local: None, shards: tuple) -> None:
    _, facts, tasks = shards
    committed = []

    def taught(label: str, receipt: Receipt, stats: dict) -> None:
        committed.append(receipt)
        for process in processes(
            "TeacherActor"
        ):  # none where its second call had ended before the first was heard of
            os.kill(process, signal.SIGKILL)

    settings = recipe(Path("."), teach={"actors": 1, "max_restarts": 0})
    with pytest.raises(FacultyError, match=r"teach\.max_restarts"):
        RayEngine().teach({"edsr": (facts, tasks)}, settings.teach, taught)
    assert 1 <= len(committed) < len(tasks)


@pytest.mark.ray
def test_a_damaged_shard_is_named_by_an_actor_as_it_is_here(
    ray_local: None, shards: tuple, tmp_path: Path
) -> None:
    _, facts, tasks = shards
    flip(shard := tmp_path / "cache" / tasks[0].samples.file)
    with pytest.raises(CorruptShard, match=shard.name) as caught:
        RayEngine().teach({"edsr": (facts, tasks)}, recipe(tmp_path).teach, lambda *_: None)
    assert caught.value.exit_code == 2 and f"rm {shard}" in caught.value.remedy


@pytest.mark.ray
def test_a_teacher_that_vanishes_is_named(ray_local: None, shards: tuple, tmp_path: Path) -> None:
    _, facts, tasks = shards
    lost = replace(facts, path=str(tmp_path / "lost.pth"))
    with pytest.raises(FacultyError, match=r"does not load.*lost\.pth"):
        RayEngine().teach({"edsr": (lost, tasks)}, recipe(tmp_path).teach, lambda *_: None)


def work(multiply_adds: int, shards: int) -> tuple:
    class Tiles:
        rows = 10

    class Task:
        samples = Tiles

    class Facts:
        pass

    Facts.multiply_adds = multiply_adds
    return Facts, [Task] * shards


@pytest.mark.parametrize(
    ("settings", "slots", "expected"),
    [
        (Teach(actors=2), 8, {"a": 2, "b": 2}),
        (Teach(actors={"a": 3}), 8, {"a": 3, "b": 1}),
        (Teach(), 2, {"a": 1, "b": 1}),
        (Teach(), 8, {"a": 6, "b": 2}),
        (Teach(actors=64), 8, {"a": 9, "b": 9}),
    ],
    ids=["number", "table", "few", "by cost", "no more than shards"],
)
def test_actors_are_shared_out_by_cost(settings: Teach, slots: int, expected: dict) -> None:
    assert teaching.sizes(settings, {"a": work(300, 9), "b": work(100, 9)}, slots) == expected
