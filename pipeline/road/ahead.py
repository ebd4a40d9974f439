"""How long teaching will take here, before it begins: each teacher is timed on a few samples."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cache import manifest as manifests
from pipeline.cache.stats import STATS
from pipeline.road.run import Run
from pipeline.steps.forecast import ASSUMED_GPU, BACKWARD, MEASURED_CORE
from pipeline.steps.values import Network

SAMPLES = 4
"""Of which the time is taken, after one to warm up."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is to be taught."""

    seconds: float
    """On all that the engine has."""
    outputs: int
    """Samples times networks that are not cached yet."""
    trainings: int
    """Teachers that are trained first."""


def teaching(run: Run, method: str) -> Ahead:
    """What a run of a method has to teach first. Raises InputError."""
    run.check([method])
    task, planner, recipe = run.task, run.planner, run.recipe
    if not task.needs(recipe, [method], True).outputs:
        return Ahead(0.0, 0, 0)
    with planner.locked():
        samples = run.samples()
        jobs = task.teacher_jobs(recipe, samples)
        untrained = [job for job in jobs if job is not None and job.result() is None]
        networks = [] if untrained else task.teachers(planner, samples, jobs)
        wanted = [r for split in task.splits(recipe, samples) for r in samples.manifests[split].shards]
        todo: list[tuple[Network, Any, int]] = []
        for label, network in networks:
            column = task.column(planner, samples, label, network)
            done = manifests.committed(planner.store, column.folder, STATS)
            left = [r for r in wanted if r.key not in done]
            if left:
                todo.append((network, column.step(left[0]), sum(r.rows for r in left)))
        gpus = planner.actors.gpus_per_actor
        asked = [(network, step, planner.store.uri) for network, step, _ in todo]
        each = dict(planner.map("time the teachers", _timed, list(enumerate(asked)), "teachers", gpus=gpus))
    abreast = planner.engine.abreast(gpus) if todo else 1
    seconds = sum(rows * each[i] for i, (_, _, rows) in enumerate(todo)) / abreast
    on_gpu = planner.engine.device_kind(gpus) == "cuda"
    rate = ASSUMED_GPU.train if on_gpu else MEASURED_CORE.train
    for job in untrained:
        settings = job.settings
        seconds += BACKWARD * settings.steps * settings.batch * task.cost(job) / rate
    return Ahead(seconds, sum(rows for _, _, rows in todo), len(untrained))


def _timed(asked: tuple[int, tuple[Network, Any, str]], device: str) -> tuple[int, float]:
    """(number, seconds a sample) of a network's step."""
    number, (network, step, cache) = asked
    loaded, shard = network.open(cache, device), step.read()

    def compute(rows: int) -> float:
        begun = time.monotonic()
        step.compute(replace(shard, batch=shard.batch.slice(0, rows)), loaded, device)
        return time.monotonic() - begun

    rows = min(SAMPLES, shard.batch.num_rows)
    compute(1)
    return number, compute(rows) / rows
