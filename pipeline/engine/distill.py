"""Trainings under Ray Train, several side by side.

Ray Train (V2) starts the workers, their process group and their restarts. Checkpoints are ours
(pipeline/training/checkpoint.py): complete or absent, the same with or without Ray, so a restarted worker group goes
on from the newest one.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engine import session
from pipeline.engine.board import Board
from pipeline.engine.shares import settled
from pipeline.engine.threads import Threads
from pipeline.engine.together import abreast as within
from pipeline.engine.workers import threads_of, worker
from pipeline.errors import FacultyError
from pipeline.progress import Line
from pipeline.recipe.recipe import Distill
from pipeline.steps.job import Job

log = logging.getLogger(__name__)


def here() -> NodeAffinitySchedulingStrategy:
    """On the driver's own node: whichever other node dies, what it places there stays."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def run(
    bundles: Sequence[Sequence[Job]],
    settings: Distill,
    lines: Mapping[str, Line],
    handles: Mapping[str, dict[str, Any]],
) -> None:
    """Train all jobs, a bundle in one process, as many side by side as the recipe says or the machine carries. Where
    there are more, of one worker each, a process stays and takes the next: to start one takes as long as many a small
    training. Raises the first job's failure.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    abreast = concurrency(settings, len(bundles), cpus)
    board = Board.options(scheduling_strategy=here()).remote()
    pool = Threads(abreast)
    parts: Sequence[Sequence[Job]] = bundles
    queue = settings.workers == 1 and len(bundles) > abreast and all(len(jobs) == 1 for jobs in bundles)
    if queue:
        parts = [[job for jobs in bundles for job in jobs]] * abreast
    try:
        running = [
            pool.submit(
                fit,
                jobs,
                settings,
                board,
                cpus / abreast,
                handles,
                within(settings, len(bundles)),
                process=number if queue else None,
            )
            for number, jobs in enumerate(parts)
        ]
        told = False
        while not all(f.done() for f in running):
            _show(board, lines)
            if not told and (error := _first_error(running)) is not None:
                log.warning("%s; no further training is begun, those under way end first", error)
                told = True
                for future in running:
                    future.cancel()
            time.sleep(0.25)
        _show(board, lines)
    finally:
        pool.close()
    for future in running:
        if not future.cancelled():
            future.result()


def _first_error(running: Sequence[Future[None]]) -> BaseException | None:
    """What the first of those that failed raised."""
    errors = (f.exception() for f in running if f.done() and not f.cancelled())
    return next((error for error in errors if error is not None), None)


def _show(board: Any, lines: Mapping[str, Line]) -> None:
    judged, (latest, _) = ray.get([board.evaluations.remote(), board.read.remote()])
    for label, step, note in judged:
        lines[label].to(step, note)
    for label, (step, note) in latest.items():
        lines[label].to(step, note)


def concurrency(settings: Distill, jobs: int, cpus: int) -> int:
    """Trainings at the same time. On a CPU one thread each is the best use of the cores; a GPU job gets its
    share first.
    """
    most = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    if settings.side_by_side != "auto":
        return max(1, min(settings.side_by_side, jobs))
    if gpus := settled(settings.gpus_per_worker):
        fit = int((session.most("GPU") + 1e-9) / (gpus * most))
    else:
        fit = (
            cpus // most
            if settings.cpus_per_worker == "auto"
            else int(cpus / (settings.cpus_per_worker * most))
        )
    return max(1, min(fit, jobs))


def needs(settings: Distill) -> dict[str, float]:
    """What the workers of one training must find free together."""
    least = settings.workers if isinstance(settings.workers, int) else settings.workers[0]
    cpus = 0.0 if settings.cpus_per_worker == "auto" else settings.cpus_per_worker
    custom = {name: least * amount for name, amount in settings.resources.items()}
    return {"CPU": least * cpus, "GPU": least * settled(settings.gpus_per_worker), **custom}


class _Trainer(TorchTrainer):
    """Without the process that hands out Ray Data's shards: a worker reads the cache itself."""

    def _create_default_callbacks(self) -> list[Any]:
        return [c for c in super()._create_default_callbacks() if not isinstance(c, DatasetsCallback)]


def fit(
    jobs: Sequence[Job],
    settings: Distill,
    board: Any,
    cpus: float,
    handles: Mapping[str, dict[str, Any]],
    abreast: int = 1,
    judged: bool = False,
    process: int | None = None,
) -> None:
    """Train the jobs of a process, `abreast` at a time, its workers sharing `cpus` where the settings leave that open.
    Raises what a worker raised.

    `judged`: after each evaluation the board's `judge(label, step, metrics)` says whether to stop there. `process`: its
    number among those that share the jobs, each taking the next as the board says.
    """
    while (found := _fit(jobs, settings, board, cpus, handles, abreast, judged, process)) is not None:
        label, times = ray.get(board.under_way.remote(process)) if process is not None else ("", 0)
        # Ray counts the failures of a process, we those of a training.
        if not label or 0 <= settings.max_failures < times:
            labels = label or ", ".join(job.label for job in jobs)
            error = _failure(jobs, board) or FacultyError(f"training {labels} failed: {cause(found)}")
            if label:  # the others of the queue begin nothing more
                ray.get(board.fail.remote(label, error))
            raise error from found
    if (failure := _failure(jobs, board)) is not None:
        raise failure


def _fit(
    jobs: Sequence[Job],
    settings: Distill,
    board: Any,
    cpus: float,
    handles: Mapping[str, dict[str, Any]],
    abreast: int,
    judged: bool,
    process: int | None,
) -> Exception | None:
    """A run of Ray Train; what it failed with, after as many new beginnings as it allows."""
    most = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    gpus, share = settled(settings.gpus_per_worker), settings.cpus_per_worker
    if share == "auto":
        share = cpus // most or cpus / most  # whole cores where there are enough
    name = f"{jobs[0].label}-{uuid.uuid4().hex[:8]}"
    # Ray's own record of a run; nothing of ours depends on it. Each attempt has a new name, so none is
    # continued by accident.
    with tempfile.TemporaryDirectory(prefix="faculty-train-") as storage:
        trainer = _Trainer(
            worker,
            train_loop_config={
                "jobs": jobs,
                "board": board,
                "handles": {job.label: handles.get(job.label, {}) for job in jobs},
                "abreast": abreast,
                "judged": judged,
                "process": process,
                "threads": threads_of(settings.model_copy(update={"cpus_per_worker": share})),
            },
            scaling_config=ScalingConfig(
                num_workers=settings.workers,
                use_gpu=gpus > 0,
                resources_per_worker={
                    "CPU": share,
                    **({"GPU": gpus} if gpus else {}),
                    **settings.resources,
                },
            ),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=settings.max_failures),
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            return error
    return None


def _failure(jobs: Sequence[Job], board: Any) -> Exception | None:
    """The first that a worker told of."""
    _, failures = ray.get(board.read.remote())
    return next((failures[job.label] for job in jobs if job.label in failures), None)


def cause(error: BaseException) -> str:
    """The innermost message of a Ray Train failure, in one line."""
    text = str(error).strip().splitlines()
    return text[-1] if text else type(error).__name__
