"""The teach stage against a bare loop, one actor against two, bf16 against fp32.

Rates are marginal: the time of many shards minus the time of few, so that start-up (which has its own row) cancels out.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.common import in_turn, noise_pictures, row
from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.format import Receipt
from pipeline.cost import multiply_adds, parameters
from pipeline.engine.ray_engine import RayEngine
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.super_resolution.teach import TeachTask, read
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts, load
from students import build

FEW, MANY, ROUNDS = 2, 14, 3
SIDE = 336
"""Pixels of a picture that makes one shard of 4 x 4 tiles."""


def rows() -> list[dict[str, Any]]:
    """Three rows, with EDSR-baseline networks at x2 as teachers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiles = make_tiles(folder)
        teachers = [teacher(folder, f"t{i}", blocks=16, features=64) for i in range(3)]
        engine = RayEngine()
        try:
            return [
                against_a_loop(engine, folder, tiles, teachers),
                two_against_one(engine, folder, tiles, teachers[0]),
                half_precision(folder, tiles, teachers[0]),
            ]
        finally:
            engine.close()


def recipe(folder: Path, **teach: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "bench",
            "scale": 2,
            "data": {"train": [str(folder / "pictures")], "tile": 96, "holdout": 0.0},
            "cache": {"root": str(folder / "cache"), "shard_mb": 0.5},
            "teach": teach,
            "method": {"name": "scratch"},
        }
    )


def make_tiles(folder: Path) -> list[Receipt]:
    """Equal shards of sixteen tiles of 48 LR pixels."""
    noise_pictures(folder / "pictures", MANY, SIDE)
    run = Run(recipe(folder), InlineEngine("cpu"), Quiet())
    shards = list(run.planner.samples(run.task.samples(run.planner), "tiles").train.shards)
    assert len(shards) == MANY and {r.rows for r in shards} == {16}
    return shards


def teacher(folder: Path, label: str, **options: Any) -> TeacherFacts:
    """A network with random weights, saved and described without the gate, which would refuse it."""
    net = build("edsr", 2, **options)
    path = folder / f"{label}.safetensors"
    facts = {"architecture": "edsr", "options": options, "scale": 2}
    save_file(net.state_dict(), path, metadata={"faculty": json.dumps(facts)})
    cost = multiply_adds(net.eval(), (1, 3, 48, 48))
    return TeacherFacts(label, str(path), file_sha256(path), "edsr", 2, parameters(net), cost, "fp32")


def tasks(folder: Path, tiles: list[Receipt], facts: TeacherFacts, run: str) -> list[TeachTask]:
    cache = str(folder / "cache")
    return [TeachTask(cache, r, f"outputs/{run}/{facts.label}", 2, "uint8", 4) for r in tiles]


def marginal(sides: dict[str, Callable[[int], float]], rounds: int) -> dict[str, float]:
    """Median seconds per extra shard of each side, measured in turn."""
    for measure in sides.values():
        measure(FEW)  # the first one warms up files and code
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            found[name].append((measure(MANY) - measure(FEW)) / (MANY - FEW))
    return {name: median(values) for name, values in found.items()}


def timed(
    engine: RayEngine, work: dict[str, tuple[TeacherFacts, list[TeachTask]]], settings: Recipe
) -> float:
    start = time.perf_counter()
    engine.teach(work, settings.teach, lambda label, receipt, stats: None)
    return time.perf_counter() - start


def against_a_loop(
    engine: RayEngine, folder: Path, tiles: list[Receipt], teachers: list[TeacherFacts]
) -> dict[str, Any]:
    """All teachers on all shards: actors on the machine's cores against one process with as many threads."""
    cores = torch.get_num_threads()
    loaded = [load(facts) for facts in teachers]
    runs = iter(range(1000))

    def ours(shards: int) -> float:
        run = f"a{next(runs)}"
        work = {f.label: (f, tasks(folder, tiles[:shards], f, run)) for f in teachers}
        return timed(engine, work, recipe(folder))

    def theirs(shards: int) -> float:
        from pipeline.cache.store import Store

        store, start = Store.open(folder / "cache"), time.perf_counter()
        for each in loaded:
            for receipt in tiles[:shards]:
                lr = (
                    torch.from_numpy(read(store, receipt).columns["lr"].copy()).permute(0, 3, 1, 2).float()
                    / 255
                )
                for begin in range(0, len(lr), 4):
                    each(lr[begin : begin + 4])
        return time.perf_counter() - start

    seconds = marginal({"ours": ours, "theirs": theirs}, ROUNDS)
    return row(
        f"teach stage, three teachers on {cores} cores / bare loop with {cores} threads",
        tiles[0].rows / seconds["ours"],
        tiles[0].rows / seconds["theirs"],
        ">= 0.95",
        unit="tiles/s",
        note="ours also reads, rounds, scores and writes verified shards",
    )


def two_against_one(
    engine: RayEngine, folder: Path, tiles: list[Receipt], facts: TeacherFacts
) -> dict[str, Any]:
    """Two actors of one thread against one."""
    runs = iter(range(1000))

    def with_actors(actors: int) -> Callable[[int], float]:
        settings = recipe(folder, actors=actors, threads=1)

        def measure(shards: int) -> float:
            work = {facts.label: (facts, tasks(folder, tiles[:shards], facts, f"b{next(runs)}"))}
            return timed(engine, work, settings)

        return measure

    seconds = marginal({"one": with_actors(1), "two": with_actors(2)}, ROUNDS)
    return row(
        "teach stage, two actors of one thread / one",
        tiles[0].rows / seconds["two"],
        tiles[0].rows / seconds["one"],
        ">= 1.8",
        unit="tiles/s",
    )


def half_precision(folder: Path, tiles: list[Receipt], facts: TeacherFacts) -> dict[str, Any]:
    """One convolutional teacher in bf16 channels_last against fp32."""
    from pipeline.cache.store import Store

    lr = read(Store.open(folder / "cache"), tiles[0]).columns["lr"][:4].copy()
    x = torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255
    half, full = load(facts).precision("bf16"), load(facts)
    seconds = in_turn({"half": lambda: half(x), "full": lambda: full(x)}, rounds=7)
    return row(
        "convolutional teacher in bf16 channels_last / fp32 (speed)",
        1 / seconds["half"],
        1 / seconds["full"],
        ">= 2",
        unit="batches/s",
        note="a teacher runs in bf16 only where its wide layers do most of the work and it is at most 0.005 dB worse",
    )
