"""Slow formulas of recognition's losses, written down independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from pipeline.losses import relational
from pipeline.losses.feature import feature_regression
from pipeline.losses.mmd import mmd
from pipeline.losses.pairwise import pairwise
from pipeline.losses.soft_labels import soft_labels


def pair(rows: int = 6, width: int = 5, other: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    s = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    t = torch.randn(rows, other or width, generator=generator, dtype=torch.float64)
    return s, t


def dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b))


def length(a: Tensor) -> float:
    return math.sqrt(dot(a, a))


def cosine(a: Tensor, b: Tensor) -> float:
    return dot(a, b) / (length(a) * length(b))


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def slow_soft(s: Tensor, t: Tensor) -> float:
    total = 0.0
    for a, b in zip(s, t):
        p = [math.exp(float(x) / 4) for x in b]
        q = [math.exp(float(x) / 4) for x in a]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        total += sum(x * math.log(x / y) for x, y in zip(p, q))
    return 16 * total / len(s)


def slow_feature(s: Tensor, t: Tensor) -> float:
    return sum(2 - 2 * cosine(a, b) for a, b in zip(s, t)) / len(s)


def slow_pairwise(s: Tensor, t: Tensor) -> float:
    n = len(s)
    return (
        sum(
            (cosine(s[i], s[j]) - cosine(t[i], t[j])) ** 2 + (cosine(s[i], t[j]) - cosine(t[i], t[j])) ** 2
            for i, j in product(range(n), repeat=2)
        )
        / n**2
    )


def slow_mmd(s: Tensor, t: Tensor) -> float:
    both = [*t, *s]
    squares = sorted(length(a - b) ** 2 for i, a in enumerate(both) for j, b in enumerate(both) if i != j)
    median = squares[(len(squares) - 1) // 2]

    def k(a: Tensor, b: Tensor) -> float:
        return sum(math.exp(-(length(a - b) ** 2) / (2 * f * median)) for f in (0.25, 0.5, 1, 2, 4)) / 5

    def mean(u: Tensor, v: Tensor) -> float:
        return sum(k(a, b) for a in u for b in v) / (len(u) * len(v))

    return mean(t, t) + mean(s, s) - 2 * mean(t, s)


def slow_distances(s: Tensor, t: Tensor) -> float:
    n = len(s)
    pairs = [(i, j) for i, j in product(range(n), repeat=2) if i != j]

    def relative(x: Tensor) -> dict[tuple[int, int], float]:
        d = {p: length(x[p[0]] - x[p[1]]) for p in pairs}
        apart = [v for v in d.values() if v > 0]
        return {p: v / (sum(apart) / len(apart)) for p, v in d.items()}

    mine, theirs = relative(s), relative(t)
    return sum(huber(mine[p] - theirs[p]) for p in pairs) / len(pairs)


def slow_angles(s: Tensor, t: Tensor) -> float:
    total, count = 0.0, 0
    for i, j, k in product(range(len(s)), repeat=3):
        if len({i, j, k}) < 3 or min(length(x[a] - x[j]) for x in (s, t) for a in (i, k)) < 1e-6:
            continue
        total += huber(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
        count += 1
    return total / count


def slow_group(s: Tensor, t: Tensor) -> float:
    def gram(x: Tensor) -> list[list[float]]:
        rows = [[dot(a, b) for b in x] for a in x]
        return [[v / math.sqrt(sum(u * u for u in row)) for v in row] for row in rows]

    a, b = gram(s), gram(t)
    n = len(s)
    return sum((a[i][j] - b[i][j]) ** 2 for i, j in product(range(n), repeat=2)) / n**2


LOSSES: list[tuple[Callable, Callable]] = [
    (soft_labels, slow_soft),
    (feature_regression, slow_feature),
    (pairwise, slow_pairwise),
    (mmd, slow_mmd),
    (relational.distances, slow_distances),
    (relational.angles, slow_angles),
    (relational.group, slow_group),
]
