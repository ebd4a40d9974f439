"""Several trainings in one process on one GPU, each in a thread, with a stream and a CUDA graph of its own.

Processes on one GPU take turns; graphs on streams of one process run at the same time, which small students need to
fill a GPU. Each training is the one that it would be alone: its samples, random numbers, checkpoints and records are
its own, and one that ends or stops leaves the others as they are.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import FacultyError
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


class Room:
    """How many trainings a GPU has room for: at most so many, and fewer once one did not fit."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._peaks: dict[object, int] = {}
        """Of each training under way: the most that were, at a time, since it began."""
        self._changed = threading.Condition()

    def train(
        self, train: Callable[[], None], device: str, waits: Callable[[], object] = lambda: None
    ) -> None:
        """Call `train` on a stream of its own as soon as there is room, from its newest checkpoint where it did not
        fit; `waits` is called then. Raises what it raises, DoesNotFit only where it was alone twice: others may have
        left memory behind that nobody needs any more.
        """
        alone = 0
        while True:
            one = object()
            with self._changed:
                self._changed.wait_for(lambda: len(self._peaks) < self.most)
                self._peaks[one] = 0
                self._peaks = {each: max(peak, len(self._peaks)) for each, peak in self._peaks.items()}
            try:
                with _stream(device):
                    return train()
            except DoesNotFit:
                with self._changed:
                    alone += self._peaks[one] == 1
                    if alone > 1:
                        raise
                    self.most = min(self.most, max(self._peaks[one] - 1, 1))
                waits()
            finally:
                with self._changed:
                    del self._peaks[one]
                    self._changed.notify_all()
            gc.collect()  # a graph and its training refer to each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def train_all(
    jobs: Sequence[Job],
    train: Callable[[Job], None],
    device: str,
    most: int,
    look: Callable[[], object] = lambda: None,
    waits: Callable[[Job], object] = lambda job: None,
    failed: Callable[[Job, FacultyError], object] | None = None,
) -> None:
    """`train` every job in a thread, at most `most` at a time, as `Room.train` does.

    `look` is called in this thread once a `LOOK_S`, `failed` for each job that ended with a FacultyError. Raises the
    first other failure (of all, where there is no `failed`) when none is under way.
    """
    room = Room(most)

    def one(job: Job) -> None:
        try:
            room.train(partial(train, job), device, partial(waits, job))
        except FacultyError as error:
            if failed is None:
                raise
            failed(job, error)

    with ThreadPoolExecutor(most) as pool:
        running = [pool.submit(one, job) for job in jobs]
        left: set[Any] = set(running)
        while left:
            _, left = wait(left, LOOK_S, FIRST_COMPLETED)
            look()
    for error in (future.exception() for future in running):
        if error is not None:
            raise error


@contextmanager
def _stream(device: str) -> Iterator[None]:
    place = torch.device(device)
    if place.type != "cuda":
        yield
        return
    if place.index is not None:
        torch.cuda.set_device(place)  # this thread's
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield


@ray.remote(num_cpus=0)
class Hall:
    """A process on a GPU in which trials train that come and go."""

    def __init__(self, device: str) -> None:
        self.device, self.room = device, Room(ABREAST)

    def train(self, train: Callable[[str], None]) -> None:
        """Call `train(device)`. Raises what it raises."""
        self.room.train(partial(train, self.device), self.device)


def halls(settings: Distill) -> list[Any]:
    """One for each GPU of the cluster where the recipe leaves a GPU's share open, beside Ray's count of GPUs: what
    trials need made first asks Ray for its own share, and would wait for ever for one that is kept. A process without a
    share sees its node's GPUs, since a session turns off that Ray hides them (RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO).
    """
    if settings.gpus_per_worker != "auto" or settings.workers != 1:
        return []
    found = []
    for node in ray.nodes():
        for number in range(int(node["Resources"].get("GPU", 0)) if node["Alive"] else 0):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = Hall.options(scheduling_strategy=there, max_concurrency=ABREAST, max_restarts=-1)
            found.append(options.remote(f"cuda:{number}"))
    return found
