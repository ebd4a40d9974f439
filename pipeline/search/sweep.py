"""A sweep: its trials, what is known of them, which values come next and which trials stop early.

Everything that happens is in the sweep's folder at once, one small JSON file a trial, so that a killed sweep goes on
with the same trials: finished ones stay, running ones go on from their checkpoints, pending ones follow. The searcher
(Optuna's TPE) and the halving are functions of these files and the seed; neither keeps a state of its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any, Literal

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.search.halving import Halving, Values, fronts, rungs
from pipeline.search.space import Space, own_value, with_values
from pipeline.search.trial import Status, Trial
from pipeline.tasks.base import Task
from pipeline.tasks.registry import task_of

Objective = Literal["accuracy", "pareto"]
VERSION = 1
_TRIAL = re.compile(r"trials/\d+\.json")
REDUCTION = 3
EVALUATIONS = 9
"""Evaluations of a trial over its budget: often enough to meet both rungs."""
RANDOM_TRIALS = 4
"""Trials drawn at random before the searcher has a model; 1/3 of all where that is more, but at most 10."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep is; two sweeps of one plan share their trials."""

    recipe: Any
    space: Space
    budget: int
    objective: Objective = "accuracy"
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the sweep's folder."""
        dump = self.recipe.model_dump(mode="json")
        known = {
            k: v for k, v in dump.items() if k not in ("output", "tracking", "teach", "distill", "compare")
        }
        what = [VERSION, known, self.space.dump(), self.budget, self.objective, self.seed]
        return f"{self.space.name}-{fingerprint(what)}"

    @property
    def task(self) -> Task:
        """What knows the recipe."""
        return task_of(self.recipe)

    def trial_recipe(self, trial: Trial) -> Any:
        """The recipe with the trial's values, for the budget. Raises InputError for values that clash."""
        recipe = self.task.single(with_values(self.recipe, trial.values, trial.label))
        every = max(self.budget // EVALUATIONS, 1)
        train = recipe.train.model_copy(update={"steps": self.budget, "evaluate_every": every})
        return recipe.model_copy(update={"train": train})


class Sweep:
    """The trials of one plan, in a folder."""

    def __init__(self, plan: Plan, store: Store, trials: int) -> None:
        self.plan, self.store, self.wanted = plan, store, trials
        self.trials: dict[int, Trial] = {}
        self.halving = Halving(rungs(plan.budget, REDUCTION), REDUCTION)
        self.record: dict[str, Any] = {}
        """Handle of the sweep's tracking run."""
        self.condemned: set[int] = set()
        """Trials that a kill left running between the evaluation they should stop at and their end."""
        self.abreast = 1
        """Trials at a time."""
        self._waiting: list[int] = []

    def begin(self, resume: bool) -> None:
        """Read what an earlier run of this sweep left.

        Raises InputError where there is one and `resume` is off, and where `resume` is on and there is none.
        """
        there = self.store.exists("sweep.json")
        if resume and not there:
            raise InputError("--resume", "an earlier sweep of this recipe, space, budget and seed", "none")
        if there and not resume:
            remedy = "--resume goes on with it; another --seed begins another; or delete that folder."
            raise InputError(self.store.where(""), "no earlier sweep", "one", remedy)
        for name, _ in self.store.list("trials"):
            trial = (
                records.load(self.store, name, lambda value: Trial(**value))
                if _TRIAL.fullmatch(name)
                else None
            )
            if trial is not None:
                self.trials[trial.number] = trial
        # Running ones last: they are judged beside all that is over. After every evaluation but its last a trial was
        # let on, so only the last one's verdict can be open.
        for trial in sorted(self.trials.values(), key=lambda t: (t.status == "running", t.number)):
            stop = False
            for step, value in trial.curve:
                stop = self.halving.report(trial.number, int(step), self.objectives(trial, value))
            if stop and trial.status == "running":
                self.condemned.add(trial.number)
        self._waiting = [n for n, t in sorted(self.trials.items()) if t.status == "running"]
        if there:
            known = records.load(self.store, "sweep.json", lambda value: dict(value["record"]))
            self.record = known or {}
            if known is None:
                self.save()

    def save(self) -> None:
        """Write what the sweep is."""
        plan = self.plan
        facts = {
            "version": VERSION,
            "space": plan.space.dump(),
            "budget": plan.budget,
            "objective": plan.objective,
            "seed": plan.seed,
            "recipe": plan.recipe.model_dump(mode="json"),
            "record": self.record,
        }
        records.save(self.store, "sweep.json", facts)

    def keep(self, trial: Trial) -> None:
        """Write what is known of a trial."""
        records.save(self.store, f"trials/{trial.number:05d}.json", asdict(trial))

    @property
    def exhausted(self) -> bool:
        """Whether every trial has been handed out."""
        return not self._waiting and len(self.trials) >= self.wanted

    @property
    def waits(self) -> bool:
        """Whether `ask` has no trial now, but may have one when those under way are over."""
        return False

    def recipe_of(self, trial: Trial) -> Any:
        """What a trial trains. Raises InputError for values that clash."""
        return self.plan.trial_recipe(trial)

    def seed_of(self, trial: Trial) -> int:
        """Of its student's training."""
        return self.plan.recipe.seed

    def ask(self) -> Trial | None:
        """The next trial to run: first those that an earlier run left unfinished, then new ones; None at the end."""
        if self._waiting:
            return self.trials[self._waiting.pop(0)]
        if self.exhausted:
            return None
        number = next(n for n in count() if n not in self.trials)  # also one whose record was damaged
        trial = self.trials[number] = Trial(number, self._own() if number == 0 else self._suggest(number))
        self.keep(trial)
        return trial

    def report(self, trial: Trial, step: int, accuracy: float, clock: Sequence[float] = ()) -> bool:
        """Record an evaluation; True where the trial should stop now. A step that is known already changes nothing."""
        if not self.note(trial, step, accuracy, clock):
            return False
        return self.halving.report(trial.number, step, self.objectives(trial, accuracy))

    def note(self, trial: Trial, step: int, accuracy: float, clock: Sequence[float] = ()) -> bool:
        """Record an evaluation without judging it; False where the step is known already.

        `clock`: how long it trained, and how long it was looked at.
        """
        if trial.curve and step <= trial.curve[-1][0]:
            return False
        trial.times += [[step, *clock]] if clock else []
        trial.curve.append([step, accuracy])
        self.keep(trial)
        return True

    def finish(self, trial: Trial, status: Status, cause: str = "") -> None:
        """Record a trial's end."""
        trial.status, trial.cause = status, cause
        self.keep(trial)

    def objectives(self, trial: Trial, accuracy: float) -> Values:
        """What is maximised: the accuracy, and in Pareto mode the negative multiply-adds."""
        return (accuracy,) if self.plan.objective == "accuracy" else (accuracy, -float(trial.multiply_adds))

    def best(self) -> Trial | None:
        """The finished trial with the highest accuracy."""
        done = [t for t in self.trials.values() if t.status == "finished" and t.curve]
        return max(done, key=lambda t: t.accuracy, default=None)

    def front(self) -> list[Trial]:
        """The finished trials that no other beats in accuracy and multiply-adds at once, cheapest first."""
        done = [t for t in self.trials.values() if t.status == "finished" and t.curve]
        ranks = fronts([(t.accuracy, -float(t.multiply_adds)) for t in done])
        front = [t for t, rank in zip(done, ranks, strict=True) if rank == 0]
        return sorted(front, key=lambda t: t.multiply_adds)

    def _own(self) -> dict[str, Any]:
        """The first trial: the recipe's own values where they lie in the space, else the middle of it."""
        return {a.path: own_value(self.plan.recipe, a) for a in self.plan.space.axes}

    def _suggest(self, number: int) -> dict[str, Any]:
        """New values: a function of the seed, the number and what the trials so far came to."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        axes = self.plan.space.axes
        distributions = {a.path: _distribution(a.kind, a.arguments) for a in axes}
        many = self.plan.objective == "pareto"
        sampler = optuna.samplers.TPESampler(
            seed=(self.plan.seed * 1_000_003 + number) % 2**32,
            n_startup_trials=max(RANDOM_TRIALS, min(self.wanted // 3, 10)),
            constant_liar=True,
        )
        study = optuna.create_study(directions=["maximize"] * (2 if many else 1), sampler=sampler)
        for _, trial in sorted(self.trials.items()):
            study.add_trial(self._told(trial, distributions, many))
        asked = study.ask(distributions)
        return {a.path: _plain(a.kind, a.arguments, asked.params[a.path]) for a in axes}

    def _told(self, trial: Trial, distributions: dict[str, Any], many: bool) -> Any:
        from optuna.trial import TrialState, create_trial

        params = {}
        for axis in self.plan.space.axes:
            value = trial.values[axis.path]
            params[axis.path] = axis.arguments.index(value) if axis.kind == "choice" else value
        state = {
            "running": TrialState.RUNNING,
            "failed": TrialState.FAIL,
            "finished": TrialState.COMPLETE,
            "stopped": TrialState.COMPLETE if many else TrialState.PRUNED,
        }[trial.status]
        if state in (TrialState.COMPLETE, TrialState.PRUNED) and not trial.curve:
            state = TrialState.FAIL
        values: Sequence[float] | None = None
        if state is TrialState.COMPLETE:
            values = self.objectives(trial, trial.accuracy)
        steps = {} if many else {int(step): value for step, value in trial.curve}
        return create_trial(
            state=state, values=values, params=params, distributions=distributions, intermediate_values=steps
        )


def _distribution(kind: str, arguments: tuple[Any, ...]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if kind == "choice":
        return CategoricalDistribution(range(len(arguments)))
    low, high = arguments
    if kind == "randint":
        return IntDistribution(low, high - 1)
    return FloatDistribution(low, high, log=kind == "loguniform")


def _plain(kind: str, arguments: tuple[Any, ...], found: Any) -> Any:
    return arguments[found] if kind == "choice" else found
