"""Who of a rung's candidates goes up, and is worth the last training: arithmetic on figures of equal trainings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

SURE = 2.0
"""Standard errors by which another has to be ahead of the recipe's own method."""
CONSISTENT = 1.4826
"""Standard deviation of a normal distribution over the median of deviations between pairs of its values."""

Values = Mapping[str, Sequence[float]]
"""{candidate: figures of its seeds, higher is better}"""


def ordered(values: Values) -> list[str]:
    """The candidates, the best mean first, ties in their order."""
    return sorted(values, key=lambda name: -statistics.fmean(values[name]))


def always(order: Sequence[str], scratch: str, own: Collection[str]) -> set[str]:
    """Of candidates in `order`, best first, those that go up whatever they reached: scratch and the best of `own`."""
    return {name for name in order if name == scratch} | set([name for name in order if name in own][:1])


def doubt(values: Values, own: str) -> float:
    """How far ahead of the candidate `own` chance alone may bring another; 0 where one seed each cannot tell.

    The median of what seeds differ by, so that one candidate that collapsed widens nothing; not of `own`: one that
    fails by half its seeds is not kept for it.
    """
    deviations = [statistics.stdev(v) for name, v in values.items() if name != own and len(v) > 1]
    if not deviations or len(values[own]) < 2:
        return 0.0
    return SURE * CONSISTENT * statistics.median(deviations) * math.sqrt(2 / len(values[own]))


def choose(values: Values, own: Collection[str], resolution: float) -> str:
    """The best; but the best of `own`, where that is no more behind than chance may bring, or than figures are printed.

    `own`: candidates with the recipe's own method.
    """
    order = ordered(values)
    if not (mine := [name for name in order if name in own]):
        return order[0]
    if undecided(values, resolution):
        return next(name for name in values if name in own)
    behind = statistics.fmean(values[order[0]]) - statistics.fmean(values[mine[0]])
    return mine[0] if behind <= doubt(values, mine[0]) else order[0]


def undecided(values: Values, resolution: float) -> bool:
    """Whether all figures are one as they are printed."""
    means = [statistics.fmean(v) for v in values.values()]
    return len(means) > 1 and max(means) - min(means) < resolution
