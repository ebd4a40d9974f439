"""A sweep over Ray Tune: one driver function a trial, which runs Ray Train; values and stops come from the sweep.

Tune starts, watches and ends the trials. What to try and what is known lies in `pipeline.search.sweep`, whose
files outlive a killed driver; Tune's own state is not used to resume. A trial's driver takes a tenth of a CPU out of
its workers' share, so that each trial under way fits whole, whatever the others do: nothing can wait for ever.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from pipeline.engine import distill, session, together, workers
from pipeline.engine.board import Progress
from pipeline.engine.shares import resources_of, trials_at_once
from pipeline.errors import FacultyError
from pipeline.progress import Line
from pipeline.recipe.recipe import Distill
from pipeline.search.halving import Halving
from pipeline.search.run import Conductor, Order, accuracy, clock
from pipeline.search.trial import Trial

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C reaches the command, which says what is kept
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's own state is not read
    "RAY_AIR_NEW_OUTPUT": "0",
}
SHOW_EVERY = 0.5
Event = tuple[int, int, float, bool, tuple[float, ...]]
"""(trial, step, accuracy, whether it stops there, its clock)"""


def drive(config: dict[str, Any], board: Any) -> None:
    """A trial: its job in this process, or as Ray Train's where it has several workers, and this is their driver.

    A driver ends by itself, also where it is stopped early: Ray Train's workers and placement group end with it. Those
    of a driver that Tune kills are left to a helper of Ray's, which on a busy machine misses some.
    """
    number = config["number"]
    order, settings, hall = ray.get(board.order.remote(number))
    cause = ""
    try:
        with order.job.output().lock(
            "training.lock"
        ):  # a trial with the same values waits, then goes on from there
            if hall is not None:
                ray.get(hall.train.remote(partial(workers.alone, order.job, settings, board, order.handle)))
            elif settings.workers == 1:
                workers.alone(order.job, settings, board, order.handle)
            else:
                handles = {order.job.label: order.handle}
                distill.fit([order.job], settings, board, 1.0, handles, judged=True)
    except FacultyError as error:
        # What came from another process has its trace in its text.
        cause = str(getattr(error, "cause", error))
    except Exception as error:  # trying again would end the same way; Tune retries what died without a word
        cause = f"{type(error).__name__}: {error}"
    ray.get(board.over.remote(number, cause))


@ray.remote(num_cpus=0)
class Desk(Progress):
    """The board of all trials: what to train, what was measured, who stops."""

    def __init__(self, halving: Halving, pareto: bool) -> None:
        super().__init__()
        self.halving, self.pareto = halving, pareto
        self.orders: dict[int, tuple[Order, Distill, Any]] = {}
        self.events: list[Event] = []
        self.causes: dict[int, str] = {}

    def put(self, number: int, order: Order, settings: Distill, hall: Any) -> None:
        self.orders[number] = (order, settings, hall)

    def order(self, number: int) -> tuple[Order, Distill, Any]:
        """(what to train, its share, the process that it trains in where that is not the trial's own)."""
        return self.orders[number]

    def judge(self, label: str, step: int, metrics: dict[str, float]) -> bool:
        """Take an evaluation in; True where the trial should stop."""
        order = next(order for order, *_ in self.orders.values() if order.job.label == label)
        trial = order.trial
        if (found := accuracy(metrics, order.metric)) is None:
            return False
        values = (found, -float(trial.multiply_adds)) if self.pareto else (found,)
        stop = self.halving.report(trial.number, step, values)
        self.events.append((trial.number, step, found, stop, clock(metrics)))
        return stop

    def over(self, number: int, cause: str) -> None:
        self.causes[number] = cause

    def news(self, since: int) -> tuple[dict[str, tuple[int, str]], list[Event], dict[int, str]]:
        """(progress by label, evaluations from number `since` on, causes by trial that is over)."""
        return self.latest, self.events[since:], self.causes


def run(conductor: Conductor, address: str | None, concurrency: int | None) -> None:
    """Carry out what is left of the sweep. Raises InputError where not one trial fits this machine."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # It misses the progress files that we turn off above.
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    session.start(address, dashboard=True)
    sweep = conductor.sweep
    halls = together.halls(sweep.plan.recipe.distill)
    abreast, settings = trials_at_once(
        sweep.plan.recipe.distill, concurrency, ray.cluster_resources(), len(halls) * together.ABREAST
    )
    sweep.abreast = abreast
    conductor.distill = settings  # what a trial needs trained first fits where the trial will fit
    desk = Desk.options(scheduling_strategy=distill.here()).remote(
        sweep.halving, sweep.plan.objective == "pareto"
    )
    with tempfile.TemporaryDirectory(prefix="faculty-tune-") as storage, ExitStack() as stack:
        trials = _Trials(conductor, desk, settings, halls, stack)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(drive, board=desk), resources_of(settings, bool(halls))),
            tune_config=tune.TuneConfig(
                search_alg=_Values(trials),
                num_samples=sweep.wanted,
                max_concurrent_trials=abreast,
                reuse_actors=True,  # a process has imported torch once for all its trials
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=storage,
                callbacks=[_News(trials)],
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                verbose=0,
            ),
        )
        tuner.fit()
    trials.settle()


class _Trials:
    """What the searcher, the scheduler and the callback share."""

    def __init__(
        self, conductor: Conductor, desk: Any, settings: Distill, halls: list[Any], stack: ExitStack
    ) -> None:
        self.conductor, self.desk, self.settings, self.halls = conductor, desk, settings, halls
        self.numbers: dict[str, int] = {}
        """Tune's trial id -> number."""
        self.lines: dict[int, tuple[Line, ExitStack]] = {}
        self._stack = stack
        self._ready: Order | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._shown = 0.0
        self._seen = 0

    def next(self, wait: float) -> Order | str | None:
        """The next trial that can start; None while one is being prepared, "end" when there is none left."""
        if self._thread is None:
            trial = self.conductor.sweep.ask()
            if trial is None and self.conductor.sweep.waits:
                time.sleep(wait)
                return None
            if trial is None:
                return "end"
            self._thread = threading.Thread(
                target=self._prepare, args=(trial,), daemon=True, name=trial.label
            )
            self._thread.start()
        self._thread.join(wait)
        if self._thread.is_alive():
            return None
        self._thread = None
        if self._error is not None:
            raise self._error
        order, self._ready = self._ready, None
        return order

    def _prepare(self, trial: Trial) -> None:
        try:
            self._ready = self.conductor.prepare(trial)
        except BaseException as error:
            self._error = error

    def start(self, trial_id: str, order: Order) -> None:
        number = order.trial.number
        self.numbers[trial_id] = number
        hall = self.halls[number % len(self.halls)] if self.halls else None
        ray.get(self.desk.put.remote(number, order, self.settings, hall))
        if number not in self.lines:
            stack = self._stack.enter_context(ExitStack())
            line = self.conductor.reporter.line(order.trial.label, order.job.steps, "steps")
            self.lines[number] = stack.enter_context(line), stack

    def end(self, number: int) -> None:
        """A trial's driver has ended: by itself, and then the desk knows of it, or by dying."""
        causes = self.show(now=True)
        _, stack = self.lines.pop(number, (None, ExitStack()))
        stack.close()
        trial = self.conductor.sweep.trials[number]
        if trial.status == "running":
            cause = causes.get(number, "its driver died or could not start")
            self.conductor.end(trial, "failed" if cause else "finished", cause)

    def show(self, now: bool = False) -> dict[int, str]:
        """Record what is new and move the progress lines. Returns the causes of trials that are over."""
        if not self.lines or not (now or time.monotonic() - self._shown > SHOW_EVERY):
            return {}
        self._shown = time.monotonic()
        latest, events, causes = ray.get(self.desk.news.remote(self._seen))
        self._seen += len(events)
        for number, step, found, stop, at in events:
            trial = self.conductor.sweep.trials[number]
            if trial.status == "running" and self.conductor.sweep.note(trial, step, found, at) and stop:
                self.conductor.stop(trial, step)
        for number, (line, _) in self.lines.items():
            if (shown := latest.get(self.conductor.sweep.trials[number].label)) is not None:
                line.to(*shown)
        return causes

    def settle(self) -> None:
        """Trials that Tune gave up without a word are failures."""
        for number in list(self.lines):
            self.end(number)


class _Own:
    """Tune pickles its parts to resume from them; ours hold threads, and are not resumed from."""

    def __reduce__(self) -> Any:
        return object, ()

    def __deepcopy__(self, memo: Any) -> Any:
        return self


class _Values(_Own, Searcher):
    """Tune's searcher: asks the sweep."""

    def __init__(self, trials: _Trials) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self.trials = trials

    def suggest(self, trial_id: str) -> Any:
        found = self.trials.next(0.2)
        if found == "end":
            return Searcher.FINISHED
        if not isinstance(found, Order):
            return None
        self.trials.start(trial_id, found)
        return {"number": found.trial.number}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.trials.end(self.trials.numbers[trial_id])

    def save(self, checkpoint_path: str) -> None:
        open(checkpoint_path, "w").close()  # Tune renames it

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's own files are what a killed sweep goes on from."""


class _News(_Own, TrialProgressCallback):
    """Keeps the progress lines moving, in the place of Tune's own lines."""

    def __init__(self, trials: _Trials) -> None:
        super().__init__()
        self.trials = trials

    def log_result(self, trial: Any, result: dict, error: bool = False) -> None:
        """Nothing: what is worth a line is on ours."""

    def _print(self, msg: str) -> None:
        """Nothing either."""

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.trials.show()
