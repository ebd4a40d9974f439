"""What another draw of as many test pictures would make of a figure: 95 % bootstrap intervals, and the ROC's band.

What is drawn again is the unit that answers come from: pictures of known classes; for verification and retrieval
identities, since pictures of one person are no independent witnesses (pictures, where there are fewer than
LEAST_IDENTITIES to draw). Pairs get the weights of what they are made of, the vertex bootstrap (Snijders, Borgatti,
Connections 22(2), 1999; recommended for 1:1 matching by Fogliato, Patil, Perona, IJCV 2024): with w_u the times that
unit u is drawn,

    pair (i, j): w_u(i) w_u(j) where they are of two units, w_u(i) where of one

Ends are percentiles (Efron, Tibshirani, 1993, section 13.3). To the calibration error drawing again adds, so its rounds
are moved by as much as their mean is above the figure. All are the same each time. They say nothing of how trainings
differ: that is the spread over seeds, beside them in the report.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.tasks.recognition.metrics import FARS, Pairs, binned

ROUNDS = 1000
SHARE = 0.95
LEAST_IDENTITIES = 10
MOST = 200_000
"""Pairs of a kind that rounds look at; of more, every so many-th in order of similarity."""
GRID = np.geomspace(1e-4, 1.0, 81)
"""False accept rates at which the ROC's band is taken: vertical averaging (Fawcett, 2006, section 8)."""
LEVELS = 256
"""Of probabilities, for the area under precision-recall."""


def ends(rounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The central 95 % of (rounds, ...) figures."""
    low, high = np.nanquantile(rounds, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
    return low, high


def named(rounds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{figure: its (rounds,)} -> {`figure_low`, `figure_high`}."""
    found: dict[str, float] = {}
    for key, values in rounds.items():
        low, high = ends(values)
        found |= {f"{key}_low": float(low), f"{key}_high": float(high)}
    return found


def units_of(labels: np.ndarray) -> np.ndarray:
    """(n,) what pictures are drawn with: their identity, or each by itself where there are few of these."""
    names, units = np.unique(labels, return_inverse=True)
    return units if len(names) >= LEAST_IDENTITIES else np.arange(len(labels))


def draws(count: int, rounds: int = ROUNDS) -> np.ndarray:
    """(rounds, count) how often each of `count` units is drawn, `count` times with replacement."""
    generator = np.random.default_rng(0)
    return np.stack(
        [np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(rounds)]
    ).astype(np.float32)


def of_means(columns: Mapping[str, np.ndarray], units: np.ndarray, rounds: int = ROUNDS) -> dict[str, float]:
    """Of the mean of each (n,) column; `units` (n,) are numbers of what is drawn."""
    times = draws(int(units.max()) + 1, rounds)
    size = times @ np.bincount(units)
    found = {key: (times @ np.bincount(units, weights=values)) / size for key, values in columns.items()}
    return named(found)


def classification(logits: np.ndarray, labels: np.ndarray, rounds: int = ROUNDS) -> dict[str, float]:
    """Of balanced accuracy and calibration error of (n, K) logits and (n,) labels."""
    generator, number = np.random.default_rng(0), len(labels)
    sure, right, bins = binned(logits, labels)
    classes, off = logits.shape[1], right - sure
    balanced, errors = np.empty(rounds), np.empty(rounds)
    for i in range(rounds):
        drawn = generator.integers(0, number, number)
        support = np.bincount(labels[drawn], minlength=classes)
        hits = np.bincount(labels[drawn], weights=right[drawn], minlength=classes)
        balanced[i] = (hits[support > 0] / support[support > 0]).mean()
        errors[i] = np.abs(np.bincount(bins[drawn], weights=off[drawn])).sum() / number
    error = np.abs(np.bincount(bins, weights=off)).sum() / number
    centred = np.maximum(errors - errors.mean() + error, 0.0)
    return named({"balanced_accuracy": balanced, "ece": centred})


def verification(
    pairs: Pairs, nearest: np.ndarray, labels: np.ndarray, rounds: int = ROUNDS
) -> tuple[dict[str, float], list[list[float]]]:
    """(intervals of TAR at FAR, AUC and rank-1; band of the ROC: [false accept rates, low, high]) of pairs of pictures
    of `labels` (n,); `nearest` (n,) says whether a picture's nearest other one is of its identity.

    Empty where hardly any round has pairs of both kinds.
    """
    units = units_of(labels)
    scores, genuine, first, second = _thinned(pairs)
    one, two = units[first], units[second]
    grid = np.unique(np.concatenate([GRID, FARS]))
    tars, areas = [], []
    for times in draws(int(units.max()) + 1, rounds):
        weights = np.where(one == two, times[one], times[one] * times[two]).astype(np.float64)
        true, false = np.cumsum(weights * genuine), np.cumsum(weights * ~genuine)
        if not true[-1] or not false[-1]:
            continue
        last = np.append(scores[1:] != scores[:-1], True)  # equal similarities are accepted together
        true, false = true[last] / true[-1], false[last] / false[-1]
        place = np.searchsorted(false, grid + 1e-12, side="right")
        tars.append(np.append(0.0, true)[place])
        areas.append(np.trapezoid(np.append(0.0, true), np.append(0.0, false)))
    if 2 * len(tars) < rounds:
        return {}, []
    table = np.stack(tars)
    found = {f"tar@far={f:g}": table[:, np.searchsorted(grid, f)] for f in FARS}
    values = named({**found, "auc": np.array(areas)})
    values |= of_means({"rank1": nearest.astype(float)}, units, rounds)
    low, high = ends(table)
    return values, [grid.tolist(), low.tolist(), high.tolist()]


def _thinned(pairs: Pairs) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(similarities, whether genuine, first, second) from the most alike on, at most MOST of either kind."""
    order = np.argsort(-pairs.scores, kind="stable")
    kept = []
    for kind in (True, False):
        own = order[pairs.genuine[order] == kind]
        kept.append(own[:: max(-(-len(own) // MOST), 1)])
    chosen = np.concatenate(kept)
    chosen = chosen[np.argsort(-pairs.scores[chosen], kind="stable")]
    return pairs.scores[chosen], pairs.genuine[chosen], pairs.first[chosen], pairs.second[chosen]


def segmentation(probabilities: np.ndarray, masks: np.ndarray, rounds: int = ROUNDS) -> dict[str, float]:
    """Of IoU, Dice and AUPRC over all pixels of (n, H, W) pictures that are drawn again; the last on LEVELS levels."""
    number, truth = len(masks), masks.reshape(len(masks), -1).astype(bool)
    flat = probabilities.reshape(number, -1)
    found = flat > 0.5
    both, either = (found & truth).sum(axis=1), (found | truth).sum(axis=1)
    total = found.sum(axis=1) + truth.sum(axis=1)
    level = np.minimum((flat * LEVELS).astype(int), LEVELS - 1)
    right = np.stack([np.bincount(a[t], minlength=LEVELS) for a, t in zip(level, truth)])[:, ::-1]
    every = np.stack([np.bincount(a, minlength=LEVELS) for a in level])[:, ::-1]
    times = draws(number, rounds).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        hits, seen = np.cumsum(times @ right, axis=1), np.cumsum(times @ every, axis=1)
        precision = np.where(seen > 0, hits / seen, 0.0)
        recall = np.diff(hits, axis=1, prepend=0.0) / hits[:, -1:]
        figures = {
            "iou": (times @ both) / (times @ either),
            "dice": 2 * (times @ both) / (times @ total),
            "auprc": (precision * recall).sum(axis=1),
        }
    return named({key: values for key, values in figures.items() if np.isfinite(values).mean() > 0.5})
