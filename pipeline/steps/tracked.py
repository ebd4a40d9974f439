"""A run's records in MLflow: one for the run, and one below it for each training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.steps.job import Job
from pipeline.tracking import DataSet, NullTracker, RunTracker, Status


class Tracked:
    """The run's record in MLflow, opened when the first thing is computed."""

    def __init__(self, open_run: Callable[[], RunTracker] | None) -> None:
        self._open = open_run
        self.parent: RunTracker | None = None
        self.trainings: dict[str, RunTracker] = {}
        """By label, open until the students' scores are in."""
        self._sets: Sequence[DataSet] = ()

    def begin(self) -> None:
        if self.parent is None:
            self.parent = self._open() if self._open else NullTracker()
            self.parent.inputs(self._sets)

    def reads(self, sets: Sequence[DataSet]) -> None:
        """Name the data sets of the run and of its trainings; a run that computes nothing is not opened for it."""
        self._sets = sets
        if self.parent is not None:
            self.parent.inputs(sets)

    def child(self, name: str, params: dict[str, Any] | None = None) -> RunTracker:
        self.begin()
        assert self.parent is not None
        return self.parent.child(name, params=params)

    def training(self, job: Job) -> RunTracker:
        """A child run for a training, open until the scores are in."""
        if (before := self.trainings.pop(job.label, None)) is not None:  # a damaged file made it begin again
            before.finish("FAILED")
        record = self.child(job.label, job.params())
        record.tags({"fingerprint": job.fingerprint})
        record.inputs([s for s in self._sets if job.scored or s.context != "testing"])
        self.trainings[job.label] = record
        return record

    def end(self, label: str) -> None:
        """Close the record of a training that gets no scores, so that its duration is its own."""
        if (record := self.trainings.pop(label, None)) is not None:
            record.finish()

    def finish(self, status: Status) -> None:
        for record in self.trainings.values():
            record.finish(status)
        if self.parent is not None:
            self.parent.finish(status)
