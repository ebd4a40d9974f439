"""What runs in the processes that train: one training or several, their news, who stops them, and who warns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
import ray.train
import torch
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import get_device

from pipeline.engine.shares import settled
from pipeline.engine.together import train_all
from pipeline.engine.tracking import resume
from pipeline.errors import FacultyError
from pipeline.progress import HELD_OUT
from pipeline.recipe.recipe import Distill
from pipeline.steps.engines import note_of, tracked
from pipeline.steps.job import Job, Stopped

SAVE_AGAIN_S = 20.0
"""Between two checkpoints of a machine that is about to go: grace periods are 30 s to 2 minutes."""


class Preemption:
    """Whether a node of this training has been told that it will be taken away (a spot machine, a drained node).

    Ray Train asks every worker the same number of times; a failure of the node itself afterwards costs no attempt.
    """

    def __init__(self) -> None:
        self.told = float("-inf")
        """When, last; again after `SAVE_AGAIN_S`."""

    def __call__(self) -> bool:
        info = ray.train.get_preemption_info()
        if info is None or time.monotonic() - self.told < SAVE_AGAIN_S:
            return False
        self.told = time.monotonic()
        return True

    def for_one(self) -> Callable[[], bool]:
        """What one of several trainings in this process asks; this process itself asks Ray."""
        known = self.told

        def urgent() -> bool:
            nonlocal known
            new, known = self.told > known, self.told
            return new

        return urgent


def worker(config: dict[str, Any]) -> None:
    """What every worker of Ray Train runs."""
    jobs: Sequence[Job] = config["jobs"]
    board, handles, context = config["board"], config["handles"], ray.train.get_context()
    device, warned, process = str(get_device()), Preemption(), config["process"]
    alone = len(jobs) == 1 or process is not None

    def one(job: Job) -> None:
        if not alone:
            sync: Callable[[dict[str, float], int], None] = _nobody
        else:
            sync = _judged(job.label, board) if config["judged"] else _report
        _train(
            job,
            board,
            handles.get(job.label, {}),
            config["threads"],
            device=device,
            rank=context.get_world_rank(),
            world=context.get_world_size(),
            sync=sync,
            urgent=warned if alone else warned.for_one(),
        )

    def waits(job: Job) -> None:
        board.post.remote(job.label, 0, "waits: no room on the GPU beside the others")

    def told(job: Job, error: FacultyError) -> None:
        # Trying again would end the same way: tell the driver, and with one worker end without a "failure".
        ray.get(board.fail.remote(job.label, error))
        if context.get_world_size() > 1:
            raise error

    if alone:
        for job in jobs:
            if process is not None and not ray.get(board.claim.remote(job.label, process)):
                continue
            try:
                one(job)
            except FacultyError as error:
                told(job, error)
            else:
                board.finish.remote(job.label)
    else:
        train_all(jobs, one, device, config["abreast"], warned, waits, told)


def _nobody(metrics: dict[str, float], step: int) -> None:
    """Nobody waits for an evaluation."""


def alone(job: Job, settings: Distill, board: Any, handle: dict[str, Any], device: str | None = None) -> None:
    """Train a job that is judged in this process, without Ray Train: it starts at once. Raises what it raises."""
    device = device or ("cuda" if settled(settings.gpus_per_worker) else "cpu")

    def sync(metrics: dict[str, float], step: int) -> None:
        if ray.get(board.judge.remote(job.label, step, metrics)):
            raise Stopped

    _train(job, board, handle, threads_of(settings), device=device, sync=sync)


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

    def say(text: str) -> None:
        board.post.remote(job.label, 0, text, True)

    board.post.remote(job.label, 0, "")
    listener = replace(tracked(tracker), log=log, sync=sync, urgent=urgent, say=say)
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
