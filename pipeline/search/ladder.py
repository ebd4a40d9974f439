"""The ladder of `faculty run --auto`: candidates on rungs of rising length, within a time budget.

Successive halving in its plain form (Jamieson and Talwalkar, AISTATS 2016): all candidates train for a few steps, the
best third goes up, for three times the steps. On each rung every training begins anew with its whole schedule: a short
cosine run predicts a long one, the first part of a long one, whose rate is still high, does not; and a rung's figures
are then of equal trainings. Scratch goes up every rung, so it is always known what it reaches in the same steps, and so
does the best with the recipe's own method, which stays unless another is ahead by more than chance: what teachers bring
to many pictures comes later than the last rung ends.

The ladder is a sweep whose trials are known beforehand: the same files, the same engines. The first rung is too short
to tell who is better; it measures paces. From them all further lengths are decided once and written down, so a run
that was stopped goes on with the same ladder.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.errors import FacultyError, InputError
from pipeline.search import allotment, choice
from pipeline.search.allotment import Pace
from pipeline.search.halving import Halving
from pipeline.search.ladder_state import Final, State, Step, read_state, too_short
from pipeline.search.space import Space, with_values
from pipeline.search.sweep import REDUCTION, Plan, Sweep
from pipeline.search.trial import Status, Trial

VERSION = 2
SCRATCH = "scratch"
Candidates = Mapping[str, Mapping[str, Any]]
"""{name: {path of the recipe: value}}"""


class Ladder(Sweep):
    """Candidates on rungs, in a folder."""

    def __init__(
        self,
        recipe: Any,
        store: Store,
        paces: Store,
        candidates: Candidates,
        seconds: float,
        first: int,
        since: float,
    ) -> None:
        """`paces`: what is known of trainings' paces, from all ladders of a run; `first`: steps of the first rung;
        `since`: when the command began, by `time.monotonic`."""
        super().__init__(Plan(recipe, Space("auto", ()), recipe.train.steps, seed=recipe.seed), store, 10**6)
        self.candidates, self.seconds, self.first = candidates, seconds, first
        self.halving = Halving((), REDUCTION)  # trials end at their rung's end
        self.paces = paces
        self.own = [n for n, values in candidates.items() if not any(p.startswith("method") for p in values)]
        """Those with the recipe's own method: the best of them goes up every rung, as scratch does."""
        self.failure: FacultyError | None = None
        """Why there is no going on."""
        self.state = records.load(store, "ladder.json", read_state) or State()
        self._before, self._since = self.state.used, since
        self._rung = (self.state.rungs[-1].seconds if self.state.rungs else 0.0), self.clock()

    @staticmethod
    def name(recipe: Any, candidates: Candidates, seconds: float) -> str:
        """Of its folder: the same recipe, candidates and budget go on with the same ladder."""
        plan = Plan(recipe, Space("auto", ()), recipe.train.steps, seed=recipe.seed)
        return fingerprint([VERSION, plan.name, candidates, seconds])

    # --- time

    def clock(self) -> float:
        """Seconds used so far, over all processes."""
        return self._before + time.monotonic() - self._since

    @property
    def left(self) -> float:
        """Seconds until the budget's end, without what is kept for the last scores."""
        return self.seconds - self.state.reserve - self.clock()

    @contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Something that takes time: a second process adds its own."""
        begun = self.clock()
        try:
            yield
        finally:
            self.state.stages[what] = self.state.stages.get(what, 0.0) + self.clock() - begun
            self.write()

    def write(self) -> None:
        """Write what was decided so far, and the time."""
        self.state.used = self.clock()
        if self.state.rungs and not self.state.final:
            seconds, since = self._rung
            self.state.rungs[-1].seconds = seconds + self.clock() - since
        records.save(self.store, "ladder.json", asdict(self.state))

    def forget(self) -> None:
        """Begin anew, with all that is cached and known paces."""
        for name, _ in self.store.list():
            if name.startswith("trials/") or name == "ladder.json":
                self.store.delete(name)
        self.trials, self.state.rungs = {}, []

    def keep(self, trial: Trial) -> None:
        super().keep(trial)
        self.write()

    def place(self, number: int) -> tuple[Step, str, int]:
        """(rung, candidate, number of its seed) of a trial."""
        for rung in self.state.rungs:
            if number < len(rung.trials):
                name, seed = rung.trials[number]
                return rung, name, seed
            number -= len(rung.trials)
        raise KeyError(number)

    def on(self, rung: Step) -> list[Trial]:
        """The trials of a rung, as far as they have begun."""
        before = sum(len(r.trials) for r in self.state.rungs[: self.state.rungs.index(rung)])
        numbers = range(before, before + len(rung.trials))
        return [self.trials[n] for n in numbers if n in self.trials]

    def of(self, name: str) -> list[Trial]:
        """All trials of a candidate."""
        return [t for n, t in self.trials.items() if self.place(n)[1] == name]

    def recipe_for(self, name: str, steps: int, evaluate_every: int) -> Any:
        """A candidate's recipe at a length. Raises InputError where the recipe does not take its values."""
        recipe = with_values(self.plan.recipe, self.candidates[name], name)
        return recipe.model_copy(update={"train": allotment.of_length(recipe.train, steps, evaluate_every)})

    def recipe_of(self, trial: Trial) -> Any:
        rung, name, _ = self.place(trial.number)
        every = -(-rung.steps // allotment.LOOKS)
        return self.plan.task.single(self.recipe_for(name, rung.steps, every))

    def seed_of(self, trial: Trial) -> int:
        return self.plan.recipe.seed + self.place(trial.number)[2]

    @property
    def waits(self) -> bool:
        return any(t.status == "running" for t in self.trials.values())

    def ask(self) -> Trial | None:
        while True:
            if self._waiting:
                return self.trials[self._waiting.pop(0)]
            if (number := self._unborn()) is not None:
                if self.left <= 0:  # slower than it was measured: no further training begins
                    self._give_up()
                    return None
                rung, name, seed = self.place(number)
                values = {"candidate": name, "budget": rung.steps, "seed": seed, **self.candidates[name]}
                label = f"{name}-{rung.steps}-s{self.plan.recipe.seed + seed}"
                trial = self.trials[number] = Trial(number, values, name=label)
                self.keep(trial)
                return trial
            if self.waits or not self._climb():
                return None

    def _give_up(self) -> None:
        """The time is up before all that was planned: what is there decides, if it is enough."""
        if not self.waits and not any(self.standing(rung) for rung in self.state.rungs[1:]):
            self.failure = self._too_short(self.seconds)

    def _unborn(self) -> int | None:
        """The first trial of the rungs so far that has no record."""
        count = sum(len(rung.trials) for rung in self.state.rungs)
        return next((n for n in range(count) if n not in self.trials), None)

    def finish(self, trial: Trial, status: Status, cause: str = "") -> None:
        """Also keep a training's pace beside all ladders: one that finds it trained has none of its own."""
        rel = f"{trial.job}.json"
        if status == "finished" and len(trial.times) > 1:
            records.save(self.paces, rel, [trial.times, trial.prepared, trial.seconds])
        elif status == "finished" and (known := records.load(self.paces, rel, list)) is not None:
            trial.times, trial.prepared, trial.seconds = known
        super().finish(trial, status, cause)

    # --- decisions

    def figures(self, rung: Step) -> dict[str, list[float]]:
        """{candidate: figures of its seeds} of those that came through a rung."""
        found: dict[str, list[Trial]] = {}
        for trial in self.on(rung):
            found.setdefault(self.place(trial.number)[1], []).append(trial)
        return {
            name: [t.accuracy for t in found[name]]
            for name in self.candidates
            if name in found and all(t.status == "finished" and t.curve for t in found[name])
        }

    def standing(self, rung: Step) -> list[str]:
        """Candidates that came through a rung, the best mean first, ties in their order."""
        return choice.ordered(self.figures(rung))

    def pace(self, name: str) -> Pace | None:
        """A candidate's; where none of its trainings was timed, the slowest of the others'.

        What a training takes to start is the same for all, but those that come first wait for their processes too.
        """
        known = {other: p for other in self.candidates if (p := allotment.pace_of(self.of(other)))}
        if not known:
            return None
        own = known.get(name) or max(known.values(), key=lambda p: p.step)
        each = [p for t in self.trials.values() if (p := allotment.pace_of([t]))]
        return replace(own, start=statistics.median(p.start for p in each))

    def _climb(self) -> bool:
        """Decide the next rung and write it down; False where there is none."""
        state = self.state
        if not state.rungs:
            self._open(self.first, [[name, 0] for name in self.candidates])
            return True
        self.write()
        standing = self.standing(state.rungs[-1])
        if not standing:
            causes = "; ".join(f"{t.label}: {t.cause}" for t in self.on(state.rungs[-1]))
            said = f"no candidate came through {state.rungs[-1].steps} steps: {causes}"
            self.failure = FacultyError(f"{said}. The same command tries again.")
            return False
        if len(state.rungs) == 1:
            paces = {name: pace for name in standing if (pace := self.pace(name)) is not None}
            if not paces:  # trained by a ladder whose clock is gone: a step more tells
                self.forget()
                self.first += 1
                return self._climb()
            if not self._decide(paces):
                return False
        at = len(state.rungs) - 1
        if at >= len(state.lengths):
            return False
        self._open(state.lengths[at], self._chosen(standing, at))
        return True

    def _decide(self, paces: Mapping[str, Pace]) -> bool:
        """Fix the lengths of all rungs, by the paces of those that stand, best first; False where the budget is too
        small for them."""
        always = choice.always(list(paces), SCRATCH, self.own)
        rungs = allotment.shape(len(paces.keys() - always))
        share = allotment.SHARE * self.left
        first = allotment.first_steps(rungs, share, paces, always, self.abreast)
        needed = allotment.needed(rungs, paces, always, self.abreast)
        if first < allotment.LEAST_STEPS or needed > self.left:
            self.failure = self._too_short(needed)
            return False
        self.state.lengths = [rung.steps * first for rung in rungs]
        return True

    def _chosen(self, names: Sequence[str], at: int) -> list[list[Any]]:
        """What trains on rung `at` after the first, of the candidates that came through, best first."""
        always = choice.always(names, SCRATCH, self.own)
        others = [name for name in names if name not in always]
        size = len(others) if at == 0 else -(-len(others) // allotment.KEPT)
        seeds = allotment.SEEDS if at == len(self.state.lengths) - 1 else 1
        kept = [name for name in names if name in others[:size] or name in always]
        return [[name, seed] for name in kept for seed in range(seeds)]

    def _open(self, steps: int, trials: list[list[Any]]) -> None:
        self.state.rungs.append(Step(steps, trials))
        self._rung = 0.0, self.clock()
        self.write()

    @property
    def resolution(self) -> float:
        """The last digit that is printed of a figure."""
        return float(10.0 ** -self.plan.task.metric(self.plan.recipe).digits)

    def decided_on(self) -> Step:
        """The last rung on which something came through."""
        return next(rung for rung in reversed(self.state.rungs) if self.standing(rung))

    def decide(self) -> Final:
        """The last training: the best of the last rung, in the time that is left. Decided once."""
        if self.state.final is None:
            last = self.decided_on()
            name = choice.choose(self.figures(last), self.own, self.resolution)
            pace = self.pace(name)
            assert pace is not None
            every = self.plan.recipe.train.evaluate_every
            steps, every = allotment.final_steps(self.left, pace, every)
            if steps < last.steps:  # the time is up: what was trained on the last rung is what there is
                steps, every = last.steps, -(-last.steps // allotment.LOOKS)
            looks = -(-steps // every)
            self.state.final = Final(name, steps, every, pace.seconds(steps, looks))
            self.write()
        return self.state.final

    def _too_short(self, needed: float) -> InputError:
        return too_short(self.clock() + self.state.reserve, needed, self.seconds, list(self.candidates))
