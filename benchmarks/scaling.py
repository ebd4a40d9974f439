"""What a second worker brings: a training on two Ray Train workers against one, and what the machine lets it bring.

The batch is the same; each of two workers of one thread computes half of it and the gradients meet. Steps are timed as
the driver hears of them, from the first report on, so that start-up does not count. How much faster two can be is the
machine's matter (half a batch is less than half the work, cores share caches and memory), so the other side is the same
step in plain processes: PyTorch's DistributedDataParallel over gloo on one batch in memory, two against one. They run
beside a Ray head that has nothing to do: its processes, and those of a training (controller, progress), take their part
of few cores, which one worker does not notice and two do. What they take during the two workers' steps is measured, and
so are the plain processes without Ray.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import distributed, multiprocessing, nn

from benchmarks.common import PICTURES, row
from pipeline.engine.ray_engine import RayEngine
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.training.parts import shared
from students import build

STEPS, EVERY = 80, 8
BATCH, PATCH = 16, 24


def rows() -> list[dict[str, Any]]:
    """Of an EDSR-baseline student: what a second worker brings, and how fast two are."""
    with tempfile.TemporaryDirectory() as folder:
        engine = RayEngine()
        try:
            rates, others = {}, {}
            for workers in (1, 2):
                rates[workers], others[workers] = rate(Path(folder), engine, workers)
            plain = {world: plain_rate(world) for world in (1, 2)}
        finally:
            engine.close()
    alone = {world: plain_rate(world) for world in (1, 2)}
    return [
        row(
            "cached training step, gain of two Train workers of one thread over one / gain of two plain processes, "
            f"EDSR-baseline x2, batch {BATCH}",
            rates[2] / rates[1],
            plain[2] / plain[1],
            ">= 0.95",
            unit="times",
            note=f"Train workers {rates[1]:.3f} and {rates[2]:.3f} steps/s, plain processes {plain[1]:.3f} and "
            f"{plain[2]:.3f} beside an idle Ray head, {alone[1]:.3f} and {alone[2]:.3f} without one "
            f"({alone[2] / alone[1]:.3f} times); all other processes took {others[2]:.2f} of {os.cpu_count()} cores "
            "while two workers trained",
        ),
        row(
            "two Train workers of one thread from cached tiles / two plain processes in memory, EDSR-baseline x2, "
            f"batch {BATCH}",
            rates[2],
            plain[2],
            ">= 0.95",
            unit="steps/s",
            note="the rates behind the gains: one Train worker reads the next batch beside its step, so it is faster "
            "than the plain process, and gains less from a second one",
        ),
    ]


def plain_rate(world: int) -> float:
    """Steps a second of `world` plain processes of one thread, each with its part of the batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(plain, (world, port, results), nprocs=world)
    return float(results.get())


def plain(rank: int, world: int, port: int, results: Any) -> None:
    """One of the plain processes: forward, L1, backward, Adam; the first tells the rate."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    student = build("edsr", 2).to(memory_format=torch.channels_last)
    network = shared(student, torch.device("cpu")) if world > 1 else student
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-4)
    lr, hr = (torch.rand(BATCH // world, 3, s * PATCH, s * PATCH) for s in (1, 2))
    lr, hr = (x.to(memory_format=torch.channels_last) for x in (lr, hr))
    for step in range(STEPS):
        if step == EVERY:
            began = time.perf_counter()
        optimiser.zero_grad()
        nn.functional.l1_loss(network(lr), hr).backward()
        optimiser.step()
    if rank == 0:
        results.put((STEPS - EVERY) / (time.perf_counter() - began))
    distributed.destroy_process_group()


class Clock:
    """A progress line that notes when each step was first heard of, and what other processes had taken by then."""

    def __init__(self) -> None:
        self.seen: dict[float, tuple[float, float]] = {}

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Not called by trainings."""

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        if done not in self.seen:
            self.seen[done] = time.perf_counter(), busy()


def busy() -> float:
    """Seconds of CPU that all processes but Train's workers have taken so far."""
    total = 0.0
    for process in psutil.process_iter(["name", "cmdline", "cpu_times"]):
        info = process.info
        name = " ".join([info["name"] or "", *(info["cmdline"] or ())[:1]])
        if info["cpu_times"] and "RayTrainWorker" not in name:
            total += info["cpu_times"].user + info["cpu_times"].system
    return total


def rate(folder: Path, engine: RayEngine, workers: int) -> tuple[float, float]:
    """(steps a second between the first report and the last, cores that processes other than workers were busy on)."""
    recipe = Recipe.model_validate(
        {
            "name": f"bench{workers}",
            "scale": 2,
            "output": str(folder / "runs"),
            "data": {"train": [str(PICTURES)], "tile": 96, "holdout": 0.0},
            "cache": {"root": str(folder / "cache")},
            "student": {"name": "edsr"},
            "method": {"name": "scratch"},
            "train": {
                "steps": STEPS,
                "batch": BATCH,
                "patch": PATCH,
                "evaluate_every": 10_000,
                "log_every": EVERY,
            },
            "distill": {"workers": workers, "cpus_per_worker": 1},
        }
    )
    run = Run(recipe, InlineEngine("cpu"), Quiet())
    job = run.student(run.prepare(["scratch"]), "scratch", recipe.scale, 0)
    clock = Clock()
    engine.train([job], {job.label: clock}, {job.label: {}})
    heard = sorted((step, *seen) for step, seen in clock.seen.items() if step)
    (first, began, before), (last, ended, after) = heard[0], heard[-1]
    return (last - first) / (ended - began), (after - before) / (ended - began)
