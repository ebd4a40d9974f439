"""Trainings that wait for a process: which takes the next, what is begun again, and when nothing is."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from pipeline.engine import distill
from pipeline.engine.board import Progress
from pipeline.errors import FacultyError
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Distill

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Noted:
    """A job that notes where it ran, and kills its process as often as it is told."""

    label: str
    folder: str
    deaths: int = 0

    def run(self, **surroundings: Any) -> None:
        before = len(list(Path(self.folder).glob(f"{self.label} *")))
        Path(self.folder, f"{self.label} {os.getpid()} {time.time_ns()}").touch()
        if before < self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)


def begun(folder: Path) -> list[tuple[str, str]]:
    """(label, process) of what was begun, in this order."""
    names = sorted((path.name.split() for path in folder.iterdir()), key=lambda name: int(name[2]))
    return [(label, process) for label, process, _ in names]


def train(jobs: list[Noted], **settings: Any) -> None:
    chosen = Distill(side_by_side=1, gpus_per_worker=0, **settings)
    with ExitStack() as lines:
        shown = {job.label: lines.enter_context(Quiet().line(job.label, 1)) for job in jobs}
        distill.run([[job] for job in jobs], chosen, shown, {})


@pytest.mark.ray
def test_one_process_takes_one_after_the_other_and_goes_on_with_what_it_died_of(
    ray_local: None, tmp_path: Path
) -> None:
    train([Noted(name, str(tmp_path), deaths=name == "b") for name in "abc"], max_failures=1)
    seen = begun(tmp_path)
    assert [label for label, _ in seen] == ["a", "b", "b", "c"]
    (a, b, again, c) = [process for _, process in seen]
    assert a == b != again == c


@pytest.mark.ray
@pytest.mark.slow
def test_failures_count_for_each_training(ray_local: None, tmp_path: Path) -> None:
    train([Noted(name, str(tmp_path), deaths=1) for name in "abc"], max_failures=1)
    assert [label for label, _ in begun(tmp_path)] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_that_dies_too_often_is_named_and_nothing_more_is_begun(
    ray_local: None, tmp_path: Path
) -> None:
    jobs = [Noted("a", str(tmp_path)), Noted("b", str(tmp_path), deaths=9), Noted("c", str(tmp_path))]
    with pytest.raises(FacultyError, match="^training b failed: "):
        train(jobs, max_failures=1)
    assert [label for label, _ in begun(tmp_path)] == ["a", "b", "b"]


def test_each_training_is_claimed_once_and_none_after_a_failure() -> None:
    board = Progress()
    assert board.claim("a", 0) and not board.claim("a", 1) and board.claim("b", 1)
    assert board.under_way(0) == ("a", 1) and board.under_way(2) == ("", 0)
    assert board.claim("a", 0) and board.under_way(0) == ("a", 2)  # it died and is there again
    board.finish("a")
    assert not board.claim("a", 0) and board.under_way(0) == ("", 0)
    board.fail("b", ValueError())
    assert not board.claim("c", 0) and not board.claim("b", 1)
