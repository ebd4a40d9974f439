"""How a time budget is shared out among trainings: arithmetic on measured paces, without a clock of its own.

The same figures give the same answer, so what was decided once and written down can be decided again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.recipe.settings import Budget
from pipeline.search.trial import Trial

SHARE = 0.35
"""Of the time that is left once the teachers are done: what the rungs may take. The rest trains the best."""
KEPT = 3
"""One of so many candidates goes up a rung, and gets so many times the steps there."""
SEEDS = 2
"""Seeds on the last rung: a winner by less than they differ is a winner by chance."""
LOOKS = 2
"""Evaluations of a trial on a rung: the pace is taken between them."""
FINAL_LOOKS = 20
"""Evaluations of the last training at most."""
LEAST_STEPS = 50
"""Of a trial on the first rung that counts: fewer tell no one apart."""
LONGER = 3
"""The last training has at least so many times the steps of the last rung."""
MARGIN = 0.95
"""Of the time that is left, what the last training is planned for."""

Settings = TypeVar("Settings", bound=Budget)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a training is, in seconds."""

    start: float
    """Before and after its steps: what it needs is read, its files are written."""
    step: float
    """A step, with the steps of what it trains before its student."""
    look: float
    """An evaluation."""

    def seconds(self, steps: int, looks: int = LOOKS) -> float:
        """Of a whole training."""
        return self.start + steps * self.step + looks * self.look


@dataclass(frozen=True, slots=True)
class Rung:
    """Trainings of one length side by side."""

    steps: int
    candidates: int
    seeds: int


def pace_of(trials: Sequence[Trial]) -> Pace | None:
    """What trials of one candidate say, the longest ones most; None where none was timed."""
    timed = [t for t in trials if len(t.times) > 1 and t.steps]
    if not timed:
        return None
    longest = max(t.steps for t in timed)
    found = [_pace(t) for t in timed if t.steps == longest]
    return Pace(*(statistics.fmean(values) for values in zip(*found, strict=True)))


def _pace(trial: Trial) -> tuple[float, float, float]:
    """From the last two evaluations that one process made."""
    (s0, at0, looked0), (s1, at1, looked1) = trial.times[-2:]
    look = looked1 / len(trial.times)
    alone = (at1 - looked1) - (at0 - looked0)
    if at1 <= at0 or s1 <= s0:  # it went on in another process
        alone, s0, s1 = at1 - looked1, 0, s1
    step = max(alone, 0.0) / (s1 - s0)
    start = max(trial.seconds, at1) - looked1 - step * s1
    return max(start, 0.0), step + trial.prepared / trial.steps, look


def makespan(durations: Iterable[float], abreast: int) -> float:
    """Seconds until the last of these is done, `abreast` at a time, each begun as soon as there is room."""
    free = [0.0] * max(abreast, 1)
    for duration in durations:
        first = free.index(min(free))
        free[first] += duration
    return max(free)


def shape(candidates: int) -> list[Rung]:
    """The rungs for so many candidates beside those that go up every rung, `steps` counted in those of the first."""
    sizes = [candidates]
    while sizes[-1] > KEPT:
        sizes.append(-(-sizes[-1] // KEPT))
    last = len(sizes) - 1
    return [Rung(KEPT**i, size, SEEDS if i == last else 1) for i, size in enumerate(sizes)]


def duration(
    rungs: Sequence[Rung], steps: int, paces: Mapping[str, Pace], always: Collection[str], abreast: int
) -> float:
    """Seconds of all rungs whose first has so many steps; the slowest candidates are taken to go up beside those that
    `always` do."""
    total = 0.0
    own = [p for name, p in paces.items() if name in always]
    others = [p for name, p in paces.items() if name not in always]
    for rung in rungs:
        n = rung.steps * steps
        slowest = sorted(others, key=lambda p: p.seconds(n), reverse=True)[: rung.candidates]
        total += makespan([p.seconds(n) for p in slowest + own for _ in range(rung.seeds)], abreast)
    return total


def first_steps(
    rungs: Sequence[Rung], seconds: float, paces: Mapping[str, Pace], always: Collection[str], abreast: int
) -> int:
    """The most steps that the first rung may have for all rungs to fit; 0 where not even one fits."""
    low, high = 0, 1
    while duration(rungs, high, paces, always, abreast) <= seconds:
        low, high = high, 2 * high
        if high > 10**9:
            break
    while high - low > 1:
        middle = (low + high) // 2
        if duration(rungs, middle, paces, always, abreast) <= seconds:
            low = middle
        else:
            high = middle
    return round_down(low)


def final_steps(seconds: float, pace: Pace, evaluate_every: int) -> tuple[int, int]:
    """(steps, steps between evaluations) of a training that fits; the recipe's own `evaluate_every` where that is not
    more than `FINAL_LOOKS` evaluations."""
    room = seconds * MARGIN - pace.start
    steps = int((room - pace.look) / pace.step) if pace.step > 0 else 10**9
    for _ in range(4):  # the fewer evaluations, the more steps, the fewer evaluations: it settles at once
        every = max(evaluate_every, -(-steps // FINAL_LOOKS))
        looks = max(1, -(-steps // every))
        steps = int((room - looks * pace.look) / pace.step) if pace.step > 0 else 10**9
    steps = max(round_down(steps), 0)
    return steps, min(max(evaluate_every, -(-steps // FINAL_LOOKS)), max(steps, 1))


def needed(rungs: Sequence[Rung], paces: Mapping[str, Pace], always: Collection[str], abreast: int) -> float:
    """Seconds for the shortest ladder that says something, with the last training."""
    last = rungs[-1].steps * LEAST_STEPS
    final = max(p.seconds(LONGER * last, FINAL_LOOKS) for p in paces.values()) / MARGIN
    least = duration(rungs, LEAST_STEPS, paces, always, abreast)
    return max(least / SHARE, final / (1 - SHARE), least + final)


def of_length(train: Settings, steps: int, evaluate_every: int) -> Settings:
    """The settings of a training of another length; its warm-up has the same steps, up to a quarter of them.

    How long Adam needs until its averages say something is a number of steps, not a part of a training.
    """
    warmup = min(train.warmup, steps // 4)
    return train.model_copy(update={"steps": steps, "evaluate_every": evaluate_every, "warmup": warmup})


def round_down(steps: int) -> int:
    """To three digits."""
    unit = 10 ** max(0, int(math.log10(steps)) - 2) if steps > 0 else 1
    return steps // unit * unit
