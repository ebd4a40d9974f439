"""Carrying out a sweep: what a trial needs is made, it is trained, it ends for a reason. Here, or by Ray (engine/tune).

Trials share the recipe's cache. Before a trial trains, whatever it needs there is made by the same road as for a run,
under the cache's lock: usually nothing, a fusion or a teacher's outputs where the values ask for others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.cost import multiply_adds
from pipeline.engines import Engine, tracked, with_line
from pipeline.errors import FacultyError, InputError
from pipeline.jobs import student_job
from pipeline.progress import Reporter
from pipeline.recipe import Recipe
from pipeline.run import Run
from pipeline.space import text
from pipeline.stages.distill import Stopped, TrainJob, run_job
from pipeline.sweep import Status, Sweep, Trial
from pipeline.tracking_null import NullTracker, RunTracker
from students import build

HR_SIDE = 96
"""Multiply-adds are those of an output of this side: at x2 a 48 x 48 input, as everywhere else."""
METRIC = "held_out/"


@dataclass(frozen=True, slots=True)
class Order:
    """A trial that can be trained."""

    trial: Trial
    job: TrainJob
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
        self.sweep, self.engine, self.reporter = sweep, engine, reporter
        self.parent = parent or NullTracker()
        self._reopen = reopen or (lambda handle: NullTracker())
        self._records: dict[int, RunTracker] = {}

    def prepare(self, trial: Trial) -> Order | None:
        """Make what a trial needs. None where it is over already: its values clash, or its training is there."""
        try:
            recipe = self.sweep.plan.trial_recipe(trial)
            job = self._job(recipe)
            trial.multiply_adds = student_cost(recipe)
        except FacultyError as error:
            self._open(trial)
            self.end(trial, "failed", str(error))
            return None
        handle = self._open(trial).handle()
        trial.record = storable(handle)
        self.sweep.keep(trial)
        if (done := job.result()) is not None:
            name, points = _curve(done)
            for step, value in points:
                self.sweep.report(trial, int(step), value)
                self._records[trial.number].metrics({name: value}, int(step))
            self.end(trial, "finished")
            return None
        # Progress of trials is told apart by this label; where the training lies does not depend on it.
        return Order(trial, replace(job, label=trial.label), dict(handle))

    def report(self, trial: Trial, metrics: Mapping[str, Any], step: int) -> bool:
        """Record an evaluation; True where the trial should stop."""
        found = accuracy(metrics)
        if found is None or not self.sweep.report(trial, step, found):
            return False
        self.stop(trial, step)
        return True

    def stop(self, trial: Trial, step: int) -> None:
        """Record that a trial was judged not to be worth more."""
        self.end(trial, "stopped", f"below the best third of its rung at step {step}")

    def end(self, trial: Trial, status: Status, cause: str = "") -> None:
        """Record a trial's end, here and in its tracking run."""
        self.sweep.finish(trial, status, cause)
        record = self._records.pop(trial.number, None)
        if record is not None:
            if trial.curve:
                record.metrics(
                    {"accuracy": trial.accuracy, "multiply_adds": trial.multiply_adds}, trial.steps
                )
            reason = {"finished": "whole budget"}.get(status, cause)
            record.finish(
                "FAILED" if status == "failed" else "FINISHED", {"stop": reason[:500], "status": status}
            )
        said = f"{trial.accuracy:.3f} after {trial.steps} steps" if trial.curve else "nothing measured"
        self.reporter.say(f"{trial.label}: {status}, {said}{'; ' + cause if cause else ''}")

    def close(self) -> None:
        """Leave the records of trials that are under way open for the next run of this sweep."""
        for record in self._records.values():
            record.close()
        self._records.clear()

    def _job(self, recipe: Recipe) -> TrainJob:
        method = recipe.method.name
        run = Run(recipe, self.engine, self.reporter, lambda: self.parent)
        made: Status = "failed"
        try:
            tiles, taught, fused = run.prepare([method])
            made = "finished"
        finally:  # an aggregation network's training has a record of its own
            for record in run.tracked.trainings.values():
                record.finish("FAILED" if made == "failed" else "FINISHED")
        if tiles.held_out is None:
            raise InputError("data.holdout", "held-out pictures, by which trials are compared", "none")
        return student_job(recipe, tiles, taught, fused, method, recipe.seed)

    def _open(self, trial: Trial) -> RunTracker:
        if trial.number not in self._records:
            values = trial.values
            params = {p: text(v) if isinstance(v, (dict, list)) else v for p, v in values.items()}
            params["budget"] = self.sweep.plan.budget
            if trial.record:
                record = self._reopen(trial.record)
                record.params(params)  # a kill may have been faster than the first of them
            else:
                title = " ".join(f"{p.rpartition('.')[2]}={text(v)}" for p, v in values.items())
                tags = {"faculty.kind": "trial", "trial": str(trial.number)}
                record = self.parent.child(f"{trial.number:03d} {title}"[:200], tags, params)
            self._records[trial.number] = record
        return self._records[trial.number]


def storable(handle: Mapping[str, Any]) -> dict[str, Any]:
    """A tracking run's handle as it may lie in a file: without the store's address, which may hold a password."""
    return {key: value for key, value in handle.items() if key != "uri"}


def accuracy(metrics: Mapping[str, Any]) -> float | None:
    """The held-out score among a report's metrics: its first, unless the training is not at its last phase."""
    if not metrics.get("last_phase", 1.0):
        return None
    return next((float(v) for k, v in metrics.items() if k.startswith(METRIC)), None)


def student_cost(recipe: Recipe) -> int:
    """Multiply-adds of the recipe's student for an output of 96 x 96 pixels."""
    student = build(recipe.student.name, recipe.scale, **recipe.student.options).eval()
    side = HR_SIDE // recipe.scale
    return multiply_adds(student, (1, 3, side, side))


def checker(engine: Engine, reporter: Reporter) -> Callable[[Recipe], None]:
    """What refuses a recipe for its teachers or its student, before anything is started."""

    def check(recipe: Recipe) -> None:
        Run(recipe, engine, reporter).check([recipe.method.name])

    return check


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

    with conductor.reporter.line(trial.label, conductor.sweep.plan.budget, "steps") as line:
        listener = replace(with_line(tracked(tracker), line), sync=sync)
        try:
            with order.job.output().lock("training.lock"):
                run_job(order.job, device=device, listener=listener)
        except Stopped:
            pass  # its end is recorded
        except FacultyError as error:
            conductor.end(trial, "failed", str(error))
        else:
            conductor.end(trial, "finished")
        finally:
            tracker.close()


def _curve(result: Mapping[str, Any]) -> tuple[str, list[list[float]]]:
    """Name and [[step, accuracy], ...] of a finished training's last phase."""
    phase = list(result["curves"].values())[-1]
    return next(((name, points) for name, points in phase.items() if name.startswith(METRIC)), ("", []))
