"""Asynchronous successive halving: which trials are worth more steps.

ASHA, its stopping form (Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, algorithm 2):
rungs lie at budget / reduction^k steps; a trial that reaches a rung goes on if at most 1 / reduction of all trials that
were seen there are better. Nothing waits for anything. With several objectives "better" counts the trials on Pareto
fronts before its own, so a cheap trial is not stopped for being less accurate than an expensive one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Values = tuple[float, ...]
"""One number an objective, each to be maximised."""


def rungs(budget: int, reduction: int, count: int = 2) -> tuple[int, ...]:
    """Steps at which trials are compared, rising and below the budget: `count` of them where the budget has room."""
    found = {budget // reduction**k for k in range(1, count + 1)}
    return tuple(sorted(step for step in found if 0 < step < budget))


def dominates(a: Values, b: Values) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def fronts(points: Sequence[Values]) -> list[int]:
    """The Pareto front of each point: 0 for those that nothing dominates, 1 once these are taken away, and so on."""
    result = [-1] * len(points)
    left = set(range(len(points)))
    number = 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            result[i] = number
        left -= front
        number += 1
    return result


@dataclass(slots=True)
class Halving:
    """What was seen at each rung, and the decision at the next."""

    rungs: tuple[int, ...]
    reduction: int
    seen: dict[int, dict[int, Values]] = field(default_factory=dict)
    """{rung: {trial: values}}"""

    def report(self, trial: int, step: int, values: Values) -> bool:
        """Record a trial's values at a step; True where it should stop. The first report at or after a rung counts."""
        stop = False
        for rung in self.rungs:
            at = self.seen.setdefault(rung, {})
            if step < rung or trial in at:
                continue
            at[trial] = values
            mine = fronts(list(at.values()))[-1]
            better = sum(front < mine for front in fronts(list(at.values())))
            stop = stop or better >= -(-len(at) // self.reduction)
        return stop
