"""Trainings under Ray Train: the worker function, its news, and several trainings side by side.

Ray Train (V2) starts the workers, their process group and their restarts. Checkpoints are ours
(pipeline/training/checkpoint.py): complete or absent, the same with or without Ray, so a restarted worker group goes
on from the newest one.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engine import session
from pipeline.engine.board import Board
from pipeline.engine.shares import settled
from pipeline.engine.tracking import resume
from pipeline.errors import FacultyError
from pipeline.progress import HELD_OUT, Line
from pipeline.recipe.recipe import Distill
from pipeline.steps.engines import note_of, tracked
from pipeline.steps.job import Job, Stopped

SAVE_AGAIN_S = 20.0
"""Between two checkpoints of a machine that is about to go: grace periods are 30 s to 2 minutes."""


def here() -> NodeAffinitySchedulingStrategy:
    """On the driver's own node: whichever other node dies, what it places there stays."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Preemption:
    """Whether a node of this training has been told that it will be taken away (a spot machine, a drained node).

    Ray Train asks every worker the same number of times; a failure of the node itself afterwards costs no attempt.
    """

    def __init__(self) -> None:
        self._saved = float("-inf")

    def __call__(self) -> bool:
        info = ray.train.get_preemption_info()
        if info is None or time.monotonic() - self._saved < SAVE_AGAIN_S:
            return False
        self._saved = time.monotonic()
        return True


def worker(config: dict[str, Any]) -> None:
    """What every worker of Ray Train runs."""
    job: Job = config["job"]
    board = config["board"]
    context = ray.train.get_context()
    try:
        _train(
            job,
            board,
            config["handle"],
            config["threads"],
            device=str(get_device()),
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            sync=_judged(job.label, board) if config["judged"] else _report,
            urgent=Preemption(),
        )
    except FacultyError as error:
        # Trying again would end the same way: tell the driver, and with one worker end without a "failure".
        ray.get(board.fail.remote(job.label, error))
        if context.get_world_size() > 1:
            raise


def alone(job: Job, settings: Distill, board: Any, handle: dict[str, Any]) -> None:
    """Train a job that is judged in this process, without Ray Train: it starts at once. Raises what it raises."""
    gpus = settled(settings.gpus_per_worker)

    def sync(metrics: dict[str, float], step: int) -> None:
        if ray.get(board.judge.remote(job.label, step, metrics)):
            raise Stopped

    _train(job, board, handle, threads_of(settings), device="cuda" if gpus else "cpu", sync=sync)


def threads_of(settings: Distill) -> int:
    """Of a worker with a number of CPUs, 0 for torch's own: a trial's driver has taken a tenth out of its share."""
    assert settings.cpus_per_worker != "auto"
    return 0 if settled(settings.gpus_per_worker) else max(1, int(settings.cpus_per_worker + 0.11))


def _train(
    job: Job,
    board: Any,
    handle: dict[str, Any],
    threads: int,
    *,
    sync: Callable[[dict[str, float], int], None],
    device: str,
    rank: int = 0,
    world: int = 1,
    urgent: Callable[[], bool] | None = None,
) -> None:
    """Run a job, its news going to the board and to its record."""
    if threads:
        torch.set_num_threads(threads)
    tracker = resume(handle)

    def log(values: dict[str, float], step: int) -> None:
        tracker.metrics(values, step)
        note = note_of(values)
        board.post.remote(job.label, step, note, note.startswith(HELD_OUT))

    listener = replace(tracked(tracker), log=log, sync=sync, urgent=urgent)
    try:
        job.run(device=device, rank=rank, world=world, listener=listener)
    except Stopped:
        pass  # who judged knows
    finally:
        tracker.close()


def _report(metrics: dict[str, float], step: int) -> None:
    ray.train.report({"step": step, **metrics})


def _judged(label: str, board: Any) -> Callable[[dict[str, float], int], None]:
    """Report, then ask the board (rank 0 does) whether to go on; all workers stop at the same step."""

    def sync(metrics: dict[str, float], step: int) -> None:
        _report(metrics, step)
        context = ray.train.get_context()
        stop = ray.get(board.judge.remote(label, step, metrics)) if context.get_world_rank() == 0 else False
        if context.get_world_size() > 1:
            stop = broadcast_from_rank_zero(stop)
        if stop:
            raise Stopped

    return sync


def run(
    jobs: Sequence[Job],
    settings: Distill,
    lines: Mapping[str, Line],
    handles: Mapping[str, dict[str, Any]],
) -> None:
    """Train all jobs, as many side by side as the recipe says or the machine carries. Raises the first job's
    failure.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    abreast = concurrency(settings, len(jobs), cpus)
    board = Board.options(scheduling_strategy=here()).remote()
    pool = ThreadPoolExecutor(abreast)
    try:
        running = [
            pool.submit(fit, job, settings, board, cpus / abreast, handles.get(job.label, {})) for job in jobs
        ]
        while not all(f.done() for f in running):
            _show(board, lines)
            if any(f.done() and not f.cancelled() and f.exception() for f in running):
                for future in running:
                    future.cancel()
            time.sleep(0.25)
        _show(board, lines)
    finally:
        # After Ctrl-C nobody waits for the threads: leaving Ray ends what they wait for.
        pool.shutdown(wait=False, cancel_futures=True)
    for future in running:
        if not future.cancelled():
            future.result()


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
    job: Job,
    settings: Distill,
    board: Any,
    cpus: float,
    handle: dict[str, Any],
    judged: bool = False,
) -> None:
    """Train one job, its workers sharing `cpus` where the settings leave that open. Raises what a worker raised.

    `judged`: after each evaluation the board's `judge(label, step, metrics)` says whether to stop there.
    """
    most = settings.workers if isinstance(settings.workers, int) else settings.workers[1]
    gpus, share = settled(settings.gpus_per_worker), settings.cpus_per_worker
    if share == "auto":
        share = cpus // most or cpus / most  # whole cores where there are enough
    name = f"{job.label}-{uuid.uuid4().hex[:8]}"
    # Ray's own record of a run; nothing of ours depends on it. Each attempt has a new name, so none is
    # continued by accident.
    with tempfile.TemporaryDirectory(prefix="faculty-train-") as storage:
        trainer = _Trainer(
            worker,
            train_loop_config={
                "job": job,
                "board": board,
                "handle": handle,
                "judged": judged,
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
            _, failures = ray.get(board.read.remote())
            raise failures.get(job.label) or FacultyError(
                f"training {job.label} failed: {cause(error)}"
            ) from error
    _, failures = ray.get(board.read.remote())
    if job.label in failures:
        raise failures[job.label]


def cause(error: BaseException) -> str:
    """The innermost message of a Ray Train failure, in one line."""
    text = str(error).strip().splitlines()
    return text[-1] if text else type(error).__name__
