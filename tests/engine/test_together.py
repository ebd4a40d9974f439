"""Trainings in threads of one process: who shares one, and what happens where they do not fit."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from pipeline.engine.together import ABREAST, abreast, bundles, train_all
from pipeline.errors import FacultyError
from pipeline.recipe.recipe import Distill
from pipeline.steps.job import DoesNotFit


@dataclass(frozen=True)
class Job:
    label: str


JOBS = [Job(name) for name in "abcdefg"]


def labels(found: list) -> list[str]:
    return ["".join(job.label for job in each) for each in found]


def test_trainings_share_a_gpu_where_its_share_is_left_open() -> None:
    assert labels(bundles(JOBS, Distill(), 1)) == ["abcdefg"]
    assert labels(bundles(JOBS, Distill(), 2)) == ["aceg", "bdf"]
    assert labels(bundles(JOBS[:2], Distill(), 8)) == ["a", "b"]
    assert labels(bundles(JOBS, Distill(side_by_side=1), 2)) == ["abcdefg"]


@pytest.mark.parametrize(
    "alone", [Distill(gpus_per_worker=0.5), Distill(workers=2), Distill(gpus_per_worker=0)]
)
def test_others_have_a_process_each(alone: Distill) -> None:
    assert labels(bundles(JOBS, alone, 2)) == list("abcdefg")
    assert labels(bundles(JOBS, Distill(), 0)) == list("abcdefg")


def test_as_many_at_a_time_as_the_recipe_says() -> None:
    assert abreast(Distill(), 1) == ABREAST
    assert [abreast(Distill(side_by_side=n), 2) for n in (1, 2, 5, 8)] == [1, 1, 2, 4]


def test_who_does_not_fit_beside_others_goes_on_when_there_is_room() -> None:
    tried: list[str] = []
    waited: list[str] = []
    done: list[str] = []
    together, most, lock = 0, 0, threading.Lock()
    all_there, others_are_done = threading.Barrier(len(JOBS)), threading.Event()

    def train(job: Job) -> None:
        nonlocal together, most
        with lock:
            first = job.label not in tried
            tried.append(job.label)
            together += 1
            most = max(most, together) if not first else most
        try:
            if first:
                all_there.wait(20)
                if job.label in "be":
                    others_are_done.wait(20)  # it was beside them all the same
                    raise DoesNotFit("full")
            done.append(job.label)
            if len(done) == 5:
                others_are_done.set()
        finally:
            with lock:
                together -= 1

    train_all(JOBS, train, "cpu", 7, waits=lambda job: waited.append(job.label))
    assert sorted(done) == list("abcdefg") and sorted(waited) == ["b", "e"] and most <= 6


def test_a_failure_lets_the_others_end_and_one_alone_that_does_not_fit_is_one() -> None:
    done = []

    def train(job: Job) -> None:
        if job.label == "b":
            raise FacultyError("not finite")
        if job.label == "c":
            raise DoesNotFit("full")
        done.append(job.label)

    with pytest.raises(FacultyError, match="not finite"):
        train_all(JOBS, train, "cpu", 3)
    assert sorted(done) == list("adefg")
    with pytest.raises(DoesNotFit):
        train_all([Job("c")], train, "cpu", 1)


def test_one_alone_is_tried_again_because_others_may_have_left_memory_behind() -> None:
    tried: list[str] = []

    def train(job: Job) -> None:
        tried.append(job.label)
        if len(tried) == 1:
            raise DoesNotFit("full")

    train_all([Job("c")], train, "cpu", 1)
    assert tried == ["c", "c"]
