"""One training on two Ray Train workers against the same on one, each worker with one thread.

The batch is the same; each of two workers computes half of it and the gradients meet. Steps are timed as the driver
hears of them, from the first report on, so that start-up does not count.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import PICTURES, row
from pipeline.engine.ray_engine import RayEngine
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine

STEPS, EVERY = 80, 8


def rows() -> list[dict[str, Any]]:
    """Steps a second of an EDSR-baseline student from cached tiles."""
    with tempfile.TemporaryDirectory() as folder:
        engine = RayEngine()
        try:
            rates = {workers: rate(Path(folder), engine, workers) for workers in (1, 2)}
        finally:
            engine.close()
    return [
        row(
            "cached training step, two Train workers of one thread / one, EDSR-baseline x2, batch 16",
            rates[2],
            rates[1],
            ">= 1.7",
            unit="steps/s",
        )
    ]


class Clock:
    """A progress line that notes when each step was first heard of."""

    def __init__(self) -> None:
        self.seen: dict[float, float] = {}

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Not called by trainings."""

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        self.seen.setdefault(done, time.perf_counter())


def rate(folder: Path, engine: RayEngine, workers: int) -> float:
    """Steps a second between the first report and the last."""
    recipe = Recipe.model_validate(
        {
            "name": f"bench{workers}",
            "scale": 2,
            "output": str(folder / "runs"),
            "data": {"train": [str(PICTURES)], "tile": 96, "holdout": 0.0},
            "cache": {"root": str(folder / "cache")},
            "student": {"name": "edsr"},
            "method": {"name": "scratch"},
            "train": {"steps": STEPS, "batch": 16, "patch": 24, "evaluate_every": 10_000, "log_every": EVERY},
            "distill": {"workers": workers, "cpus_per_worker": 1},
        }
    )
    run = Run(recipe, InlineEngine("cpu"), Quiet())
    job = run.student(run.prepare(["scratch"]), "scratch", recipe.scale, 0)
    clock = Clock()
    engine.train([job], {job.label: clock}, {job.label: {}})
    heard = sorted((step, at) for step, at in clock.seen.items() if step)
    (first, began), (last, ended) = heard[0], heard[-1]
    return (last - first) / (ended - began)
