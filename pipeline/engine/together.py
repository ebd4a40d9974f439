"""Several trainings in one process on one GPU, each in a thread, with a stream and a CUDA graph of its own.

Processes on one GPU take turns; graphs on streams of one process run at the same time, which small students need to
fill a GPU. Each training is the one that it would be alone: its samples, random numbers, checkpoints and records are
its own, and one that ends or stops leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Any

import torch

from pipeline.recipe.recipe import Distill
from pipeline.steps.job import DoesNotFit, Job

ABREAST = 12
"""Trainings at a time on one GPU."""
LOOK_S = 1.0
"""Between two looks at what the surroundings say."""


def bundles(jobs: Sequence[Job], settings: Distill, gpus: float) -> list[Sequence[Job]]:
    """Which jobs share a process: as many bundles as GPUs where the recipe leaves a GPU's share open and a training has
    one worker; otherwise each job is a bundle.
    """
    if settings.gpus_per_worker != "auto" or settings.workers != 1 or gpus < 1:
        return [[job] for job in jobs]
    count = min(int(gpus), len(jobs))
    if settings.side_by_side != "auto":
        count = min(count, settings.side_by_side)
    return [jobs[first::count] for first in range(count)]


def abreast(settings: Distill, bundles: int) -> int:
    """How many of a bundle train at a time."""
    if settings.side_by_side == "auto":
        return ABREAST
    return max(1, settings.side_by_side // bundles)


def train_all(
    jobs: Sequence[Job],
    train: Callable[[Job], None],
    device: str,
    most: int,
    look: Callable[[], object] = lambda: None,
    waits: Callable[[Job], object] = lambda job: None,
) -> None:
    """`train` every job in a thread, `most` at a time; those that do not fit beside others go on alone after them.

    `look` is called in this thread once a `LOOK_S`, `waits` for each job that did not fit. Raises the first failure of
    all, when none is under way.
    """
    again: list[Job] = []
    failed: list[BaseException] = []
    with ThreadPoolExecutor(most) as pool:
        running: dict[Any, Job] = {pool.submit(_beside, job, train, device): job for job in jobs}
        while running:
            done, _ = wait(running, LOOK_S, FIRST_COMPLETED)
            look()
            for future in done:
                job, error = running.pop(future), future.exception()
                if isinstance(error, DoesNotFit) and most > 1 and len(jobs) > 1:
                    waits(job)
                    again.append(job)
                elif error is not None:
                    failed.append(error)
    if again:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            train_all(again, train, device, 1, look)
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _beside(job: Job, train: Callable[[Job], None], device: str) -> None:
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    with torch.cuda.stream(torch.cuda.Stream(device)) if cuda else nullcontext():
        train(job)
