"""Carrying out a sweep: what a trial needs is made, it is trained, it ends for a reason. Here, or by Ray (engine/tune).

Trials share the recipe's cache. Before a trial trains, whatever it needs there is made by the same road as for a run,
under the cache's lock: usually nothing, a fusion or a teacher's outputs where the values ask for others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import FacultyError
from pipeline.progress import Once, Reporter
from pipeline.recipe.recipe import Distill
from pipeline.road.run import Run
from pipeline.search.space import text
from pipeline.search.sweep import Sweep
from pipeline.search.trial import Status, Trial
from pipeline.steps.engines import Engine, tracked, with_line
from pipeline.steps.job import Job, Stopped
from pipeline.tracking import NullTracker, RunTracker
from pipeline.tracking import Status as RunStatus

HELD_OUT = "held_out/"


@dataclass(frozen=True, slots=True)
class Order:
    """A trial that can be trained."""

    trial: Trial
    job: Job
    metric: str
    """What the reports of its training call its score."""
    handle: dict[str, Any]


class Conductor:
    """Prepares and ends the trials of a sweep."""

    def __init__(
        self,
        sweep: Sweep,
        engine: Engine,
        reporter: Reporter,
        parent: RunTracker | None = None,
        reopen: Callable[[Mapping[str, Any]], RunTracker] | None = None,
    ) -> None:
        """`parent`: the sweep's tracking run; `reopen`: makes a tracker of a trial's earlier record."""
        self.sweep, self.engine, self.reporter = sweep, engine, Once(reporter)
        self.parent = parent or NullTracker()
        self._reopen = reopen or (lambda handle: NullTracker())
        self._records: dict[int, RunTracker] = {}
        self._results: dict[int, Callable[[], dict[str, Any] | None]] = {}
        self.metric = HELD_OUT + sweep.plan.task.metric(sweep.plan.recipe).key
        self.distill: Distill | None = None
        """What one trial may take of the machine, where the recipe's own settings are not meant for several."""
        self._begun: dict[int, float] = {}
        self._compared = False

    def prepare(self, trial: Trial) -> Order | None:
        """Make what a trial needs. None where it is over already: it was judged, its values clash, or it is trained."""
        if trial.number in self.sweep.condemned:
            self._open(trial)
            self.stop(trial, trial.steps)
            return None
        begun = time.monotonic()
        try:
            plan = self.sweep.plan
            recipe = self.sweep.recipe_of(trial)
            if self.distill is not None:
                recipe = recipe.model_copy(update={"distill": self.distill})
            seed = self.sweep.seed_of(trial)
            job = student_of(recipe, self.engine, self.reporter, lambda: self.parent, seed)
            self._compare(trial, job)
            trial.job = job.fingerprint
            trial.multiply_adds = plan.task.cost(job)
        except FacultyError as error:
            self._open(trial)
            self.end(trial, "failed", str(error))
            return None
        handle = self._open(trial).handle()
        trial.record = storable(handle)
        self.sweep.keep(trial)
        self._results[trial.number] = job.result
        self._begun[trial.number] = time.monotonic()
        trial.prepared = self._begun[trial.number] - begun
        if job.result() is not None:
            self.end(trial, "finished")
            return None
        # Progress of trials is told apart by this label; where the training lies does not depend on it.
        own = replace(job, label=trial.label)
        return Order(trial, own, self.metric, dict(handle))

    def _compare(self, trial: Trial, job: Job) -> None:
        """An earlier run's trials may have seen other pictures or teachers: an unfinished one begins anew, of finished
        ones it is said, once.
        """
        if trial.job not in ("", job.fingerprint):
            trial.curve.clear()
            trial.times.clear()
        if self._compared:
            return
        self._compared = True
        done = next((t for t in self.sweep.trials.values() if t.status == "finished" and t.job), None)
        if done is None or done is trial:
            return
        recipe = self.sweep.recipe_of(done)
        again = student_of(recipe, self.engine, self.reporter, lambda: self.parent, self.sweep.seed_of(done))
        if again.fingerprint != done.job:
            self.reporter.warn(
                "the pictures or the teachers are others than those of the trials that are done: their figures do not "
                "compare with the new ones; another --seed begins another sweep"
            )

    def report(self, trial: Trial, metrics: Mapping[str, Any], step: int) -> bool:
        """Record an evaluation; True where the trial should stop."""
        found = accuracy(metrics, self.metric)
        if found is None or not self.sweep.report(trial, step, found, clock(metrics)):
            return False
        self.stop(trial, step)
        return True

    def stop(self, trial: Trial, step: int) -> None:
        """Record that a trial was judged not to be worth more."""
        self.end(trial, "stopped", f"below the best third of its rung at step {step}")

    def end(self, trial: Trial, status: Status, cause: str = "") -> None:
        """Record a trial's end: in its tracking run first, so that a kill between the two leaves no open record."""
        record = self._records.pop(trial.number, None)
        now = time.monotonic()
        trial.seconds = now - self._begun.pop(trial.number, now)
        result = self._results.pop(trial.number, lambda: None)()
        if status == "finished" and result is not None:
            # It says nothing itself where its training was there already, or another trial with its values made it.
            for step, value in _curve(result, self.metric):
                if step > trial.steps:
                    self.sweep.report(trial, int(step), value)
                    if record is not None:
                        record.metrics({self.metric: value}, int(step))
        if record is not None:
            if trial.curve:
                record.metrics(
                    {"accuracy": trial.accuracy, "multiply_adds": trial.multiply_adds}, trial.steps
                )
            reason = {"finished": "whole budget"}.get(status, cause)
            record.finish(
                "FAILED" if status == "failed" else "FINISHED", {"stop": reason[:500], "status": status}
            )
        self.sweep.finish(trial, status, cause)
        said = f"{trial.accuracy:.3f} after {trial.steps} steps" if trial.curve else "nothing measured"
        self.reporter.say(f"{trial.label}: {status}, {said}{'; ' + cause if cause else ''}")

    def close(self) -> None:
        """Leave the records of trials that are under way open for the next run of this sweep."""
        for record in self._records.values():
            record.close()
        self._records.clear()

    def _open(self, trial: Trial) -> RunTracker:
        if trial.number not in self._records:
            values = trial.values
            params = {p: text(v) if isinstance(v, (dict, list)) else v for p, v in values.items()}
            params.setdefault("budget", self.sweep.plan.budget)
            if trial.record:
                record = self._reopen(trial.record)
                record.params(params)  # a kill may have been faster than the first of them
            else:
                title = " ".join(f"{p.rpartition('.')[2]}={text(v)}" for p, v in values.items())
                tags = {"faculty.kind": "trial", "trial": str(trial.number)}
                name = trial.name or f"{trial.number:03d} {title}"
                record = self.parent.child(name[:200], tags, params)
            self._records[trial.number] = record
        return self._records[trial.number]


def storable(handle: Mapping[str, Any]) -> dict[str, Any]:
    """A tracking run's handle as it may lie in a file: without the store's address, which may hold a password."""
    return {key: value for key, value in handle.items() if key != "uri"}


def accuracy(metrics: Mapping[str, Any], metric: str) -> float | None:
    """The score among a report's metrics; None where it is undefined or the training is not at its last phase."""
    found = metrics.get(metric)
    if not metrics.get("last_phase", 1.0) or found is None or math.isnan(found):
        return None
    return float(found)


def clock(metrics: Mapping[str, Any]) -> tuple[float, ...]:
    """(seconds that a training took so far in its process, those of its evaluations), where its report says so."""
    return (metrics["at"], metrics["looked"]) if "at" in metrics else ()


def checker(engine: Engine, reporter: Reporter) -> Callable[[Any], None]:
    """What refuses a recipe for its teachers or its student, before anything is started."""

    def check(recipe: Any) -> None:
        if getattr(recipe.compare, "beside", ()):  # in no trial, and of one scale
            recipe = recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"beside": ()})})
        Run(recipe, engine, reporter).check([recipe.method.name])

    return check


def student_of(
    recipe: Any, engine: Engine, reporter: Reporter, open_run: Callable[[], RunTracker], seed: int
) -> Job:
    """The recipe's own training; what it needs is made where it is missing. Raises InputError."""
    run, method = Run(recipe, engine, reporter, open_run), recipe.method.name
    made: RunStatus = "FAILED"
    try:
        prepared = run.prepare([method])
        made = "FINISHED"
    finally:  # the records of what is trained on the way: an aggregation network, a teacher, an assistant
        for record in run.tracked.trainings.values():
            record.finish(made)
    run.task.comparable(recipe, prepared.samples)
    return run.student(prepared, method, run.task.gaps(recipe)[0], seed)


def run_inline(conductor: Conductor, device: str, resume: Callable[[Mapping[str, Any]], RunTracker]) -> None:
    """One trial after the other, in this process."""
    sweep = conductor.sweep
    while (trial := sweep.ask()) is not None:
        if (order := conductor.prepare(trial)) is None:
            continue
        _train(conductor, order, device, resume(order.handle))


def _train(conductor: Conductor, order: Order, device: str, tracker: RunTracker) -> None:
    trial = order.trial

    def sync(metrics: dict[str, float], step: int) -> None:
        if conductor.report(trial, metrics, step):
            raise Stopped

    with conductor.reporter.line(trial.label, order.job.steps, "steps") as line:
        listener = replace(with_line(tracked(tracker), line), sync=sync)
        try:
            with order.job.output().lock("training.lock"):
                order.job.run(device=device, listener=listener)
        except Stopped:
            pass  # its end is recorded
        except FacultyError as error:
            conductor.end(trial, "failed", str(error))
        else:
            conductor.end(trial, "finished")
        finally:
            tracker.close()


def _curve(result: Mapping[str, Any], metric: str) -> list[list[float]]:
    """[[step, accuracy], ...] of a finished training's last phase."""
    phase = list(result["curves"].values())[-1]
    return [[step, value] for step, value in phase.get(metric, []) if not math.isnan(value)]
