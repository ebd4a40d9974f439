"""The constants of the cost model (pipeline/steps/forecast.py), measured on one core, and what it says of
a run here.

The rows carry the rates in their notes; that file's `MEASURED_CORE` is copied from them by hand.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import PICTURES, row
from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.store import LocalStore
from pipeline.cost import multiply_adds
from pipeline.data.decode import decode, scan
from pipeline.data.tiles import Grid, cut
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.steps.forecast import BACKWARD, MEASURED_CORE, Rates, predict
from pipeline.steps.values import Samples
from pipeline.tasks.super_resolution.work import work
from students import build

ROUNDS = 3
MEGABYTES = 64
FILES = 3
"""Of the demo's training pictures."""
STEPS = 60
WITHIN = 1.5
"""Factor by which the model may be wrong, to either side."""


def rows() -> list[dict[str, Any]]:
    """One row: the model's seconds for a small run against the clock, with the rates measured just before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rates = measure(Path(folder))
            return [against_the_clock(Path(folder), rates)]
    finally:
        torch.set_num_threads(threads)


def best(work_: Any) -> float:
    """Seconds of the fastest of a few rounds, after one to warm up: rates are what the machine can do."""
    work_()
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work_()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure(folder: Path) -> Rates:
    """What one core does: teacher and training operations, cutting, hashing, writing."""
    teacher = build("edsr", 2, blocks=16, features=64).eval().to(memory_format=torch.channels_last)
    x = torch.rand(4, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        teach = 4 * multiply_adds(teacher, (1, 3, 48, 48)) / best(partial(teacher, x))

    student = build("compact", 2, features=24, convs=6).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(student.parameters(), fused=True)
    y = torch.rand(8, 3, 48, 48)
    small = torch.rand(8, 3, 24, 24).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        torch.nn.functional.l1_loss(student(small), y).backward()
        optimiser.step()
        optimiser.zero_grad()

    train = 8 * BACKWARD * multiply_adds(student, (1, 3, 24, 24)) / best(step)

    pictures, _ = scan(PICTURES, min_side=8, on_bad="raise")
    pixels = sum(p.height * p.width for p in pictures)
    grid = Grid(scale=2, size=96)

    def cut_all() -> None:
        for picture in pictures:
            for _ in cut(decode(picture.path), None, grid):
                pass

    cut_rate = pixels / best(cut_all)
    data = np.random.default_rng(0).bytes(MEGABYTES * 10**6)
    store = LocalStore(folder / "disk")
    (folder / "one").write_bytes(data)
    disk = len(data) / best(lambda: store.write_bytes("x", data))
    hash_ = len(data) / best(lambda: file_sha256(folder / "one"))
    return replace(MEASURED_CORE, teach=teach, train=train, cut=cut_rate, hash=hash_, disk=disk, start=0.0)


def against_the_clock(folder: Path, rates: Rates) -> dict[str, Any]:
    """The demo's pictures and teachers: tiles, teach, fuse and some training in this process."""
    pictures = scan(PICTURES, min_side=8, on_bad="raise")[0][:FILES]
    files, sides = [p.path for p in pictures], [(p.height, p.width) for p in pictures]
    demo = PICTURES.parent.parent / "teachers"
    recipe = Recipe.model_validate(
        {
            "name": "plan",
            "scale": 2,
            "output": str(folder / "runs"),
            "data": {"train": files, "tile": 96, "holdout": 0.0},
            "cache": {"root": str(folder / "cache"), "shard_mb": 4},
            "teachers": [
                {"checkpoint": str(p), "precision": "fp32"} for p in sorted(demo.glob("*.safetensors"))
            ],
            "student": {"name": "compact", "options": {"features": 24, "convs": 6}},
            "method": {"name": "mtkd"},
            "train": {"steps": STEPS, "batch": 8, "patch": 24, "evaluate_every": STEPS},
        }
    )
    run = Run(recipe, InlineEngine("cpu"), Quiet())
    # Looking at a teacher is no part of the model.
    facts = [teacher for _, teacher in run.task.teachers(run.planner, Samples("", {}), [])]
    student = multiply_adds(build("compact", 2, features=24, convs=6), (1, 3, 48, 48))
    predicted = sum(
        predict(
            replace(work(recipe, 1, h, w, [f.multiply_adds for f in facts], student), steps=0), rates, 1
        ).seconds
        for h, w in sides
    )
    whole = work(recipe, 1, *sides[0], [f.multiply_adds for f in facts], student)
    predicted += predict(replace(whole, tiles=0, pictures=0), rates, 1).seconds
    start = time.perf_counter()
    run.distill(["mtkd"], [0])
    measured = time.perf_counter() - start
    note = (
        f"one core: teach {rates.teach:.3g} and train {rates.train:.3g} multiply-adds/s, cut {rates.cut:.3g} pixels/s, "
        f"sha256 {rates.hash:.3g} and durable writes {rates.disk:.3g} bytes/s"
    )
    what = f"run on one core, three teachers and {STEPS} steps: seconds on the clock / by the cost model"
    found = row(what, measured, predicted, f"<= {WITHIN}", note=note)
    return {
        **found,
        "target": f"{1 / WITHIN:.2f} to {WITHIN}",
        "met": 1 / WITHIN <= measured / predicted <= WITHIN,
    }
