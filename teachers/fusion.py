"""Fixed fusions of several teachers' pictures into one target (the learned one is teachers/aggregation.py).

A fusion takes the teachers' outputs for a batch of tiles, a sequence of (N, H, W, 3) uint8 arrays in one
fixed teacher order, and returns one (N, H, W, 3) uint8 array. Sums are kept exact or in float32 and rounded
once, a half upwards.

    mean      every teacher alike
    median    per value; the mean of the middle two for an even number of teachers
    best      per tile, the teacher with the smallest squared error against HR
    weighted  given weights, or weights fitted to HR by least squares over training tiles (`WeightFit`)
    bands     the low wavelet band of one teacher, the details of another
    mask      per pixel, by how well each teacher agrees with LR there (teachers/agreement.py)
    regions   weights fitted for flat, edge and texture pixels and for bands of detail (teachers/regional.py)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import InputError
from teachers.agreement import fuse_mask
from teachers.regional import fuse_regions

Outputs = Sequence[np.ndarray]


def fuse_mean(outputs: Outputs, hr: np.ndarray | None = None) -> np.ndarray:
    """The average of the teachers."""
    _check(outputs)
    count = len(outputs)
    total = np.zeros(outputs[0].shape, np.uint16)  # whole numbers: a half is a half, and rounds up
    for output in outputs:
        total += output
    return ((2 * total.astype(np.uint32) + count) // (2 * count)).astype(np.uint8)


def fuse_median(outputs: Outputs, hr: np.ndarray | None = None) -> np.ndarray:
    """The middle value of the teachers at each place: one teacher's blunder leaves no trace."""
    _check(outputs)
    count = len(outputs)
    ordered = np.sort(np.stack(outputs), axis=0)
    lower, upper = ordered[(count - 1) // 2], ordered[count // 2]
    return _quantise((lower.astype(np.float32) + upper) / 2.0)


def fuse_best(outputs: Outputs, hr: np.ndarray | None = None) -> np.ndarray:
    """For each tile the teacher nearest to HR (N, H, W, 3) uint8 in squared error, the first of equals.

    Raises InputError without HR: LR-only pictures have no best teacher.
    """
    _check(outputs)
    if hr is None:
        raise InputError("fusion best", "tiles with HR", "tiles without", "Take mean, median or weighted.")
    choice = np.argmin([_squared_errors(output, hr) for output in outputs], axis=0)
    fused = np.empty_like(outputs[0])
    for teacher, output in enumerate(outputs):
        fused[choice == teacher] = output[choice == teacher]
    return fused


def fuse_weighted(outputs: Outputs, hr: np.ndarray | None = None, *, weights: Weights) -> np.ndarray:
    """sum of `weights.values[k]` x teacher k, plus `weights.offset` grey levels.

    Raises InputError where the number of weights is not the number of teachers.
    """
    _check(outputs)
    if len(weights.values) != len(outputs):
        raise InputError(
            "fusion weights",
            f"{len(outputs)} weights, one a teacher in their order",
            str(len(weights.values)),
        )
    return _weighted_sum(outputs, np.array(weights.values), weights.offset)


@dataclass(frozen=True, slots=True)
class Bands:
    """Which teacher gives which wavelet band."""

    low: int
    """Position of the teacher whose colours and large structures count."""
    details: int
    """Position of the one whose details count."""
    wavelet: str
    shares: tuple[float, ...]
    """What its details count, from the finest level to the coarsest; the rest is the other's."""


def fuse_bands(outputs: Outputs, hr: np.ndarray | None = None, *, weights: Bands) -> np.ndarray:
    """The low band of one teacher and the details of another: decomposed, exchanged, put together.

        details_k = shares_k D_k(details) + (1 - shares_k) D_k(low),   low band = L_K(low)

    Raises InputError where there are fewer teachers than it names.
    """
    _check(outputs)
    if max(weights.low, weights.details) >= len(outputs):
        raise InputError("fusion bands", f"teachers {weights.low} and {weights.details}", f"{len(outputs)}")
    import pywt

    levels = len(weights.shares)
    one, other = (
        pywt.wavedec2(outputs[i].astype(np.float64), weights.wavelet, "symmetric", levels, axes=(1, 2))
        for i in (weights.low, weights.details)
    )
    mixed = [one[0]]
    for share, mine, theirs in zip(reversed(weights.shares), one[1:], other[1:], strict=True):
        mixed.append(tuple(share * t + (1 - share) * m for m, t in zip(mine, theirs, strict=True)))
    _, height, width, _ = outputs[0].shape
    whole = pywt.waverec2(mixed, weights.wavelet, "symmetric", axes=(1, 2))[:, :height, :width]
    return np.clip(np.rint(whole), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Weights:
    """What each teacher counts, in teacher order, and a constant in grey levels."""

    values: tuple[float, ...]
    offset: float = 0.0


@dataclass(slots=True)
class WeightFit:
    """Least-squares fusion weights from a stream of training tiles.

    Holds the sums of the normal equations alone, (teachers + 2)^2 numbers: `add` any number of batches, in
    any order, `merge` sums made elsewhere, then `solve`.
    """

    teachers: int
    moments: np.ndarray = field(init=False)
    """(teachers + 2, teachers + 2) sums of products of (outputs, 1, HR), in levels from `MIDDLE`."""

    def __post_init__(self) -> None:
        self.moments = np.zeros((self.teachers + 2, self.teachers + 2))

    def add(self, outputs: Outputs, hr: np.ndarray) -> None:
        """Counts a batch: teachers' outputs and HR, (N, H, W, 3) uint8 each."""
        _check([*outputs, hr])
        if len(outputs) != self.teachers:
            raise InputError("fusion weights", f"{self.teachers} teachers", str(len(outputs)))
        n = self.teachers
        for tile in range(len(hr)):  # one at a time: float64 copies of a whole shard would be large
            values = np.ones((n + 2, hr[tile].size))
            for row, x in zip((*range(n), n + 1), (*outputs, hr)):
                np.subtract(x[tile].reshape(-1), MIDDLE, out=values[row])
            self.moments += values @ values.T

    def merge(self, other: WeightFit) -> None:
        """Counts what `other` has counted."""
        self.moments += other.moments

    def solve(self, *, convex: bool = False) -> Weights:
        """The weights of least squared error: any real numbers with an offset, or a convex combination.

        Convex weights are non-negative and sum to 1, so the target never leaves the teachers' range; free
        ones are at least as good on the tiles counted. Teachers that are equal share their weight. Raises
        InputError before any tile was counted.
        """
        n = self.teachers
        if not self.moments[n, n]:
            raise InputError("fusion weights", "training tiles with HR to fit them on", "none")
        gram, cross = self.moments / self.moments[n, n], self.moments[:, n + 1] / self.moments[n, n]
        if convex:
            return Weights(tuple(map(float, _simplex_least_squares(gram[:n, :n], cross[:n]))))
        # lstsq, not solve: equal teachers make the equations singular, and the shortest solution is then the
        # fair one.
        solution = np.linalg.lstsq(gram[: n + 1, : n + 1], cross[: n + 1], rcond=1e-9)[0]
        *values, offset = map(float, solution)
        # The sums were taken around the middle grey; move the offset back to zero.
        return Weights(tuple(values), offset + MIDDLE * (1.0 - sum(values)))


MIDDLE = 127.5
"""Sums are taken around the middle grey level, which keeps the equations well conditioned."""

Fusion = Callable[..., np.ndarray]

FUSIONS: dict[str, Fusion] = {
    "mean": fuse_mean,
    "median": fuse_median,
    "best": fuse_best,
    "weighted": fuse_weighted,
    "bands": fuse_bands,
    "mask": fuse_mask,
    "regions": fuse_regions,
}


def fusion(name: str) -> Fusion:
    """The fusion of that name. Raises InputError listing the known ones."""
    if name not in FUSIONS:
        raise InputError("fusion", "one of " + ", ".join(FUSIONS), repr(name))
    return FUSIONS[name]


def _check(arrays: Outputs) -> None:
    if not arrays:
        raise InputError("fusion", "at least one teacher's output", "none")
    shapes = {x.shape for x in arrays}
    if len(shapes) > 1 or any(x.dtype != np.uint8 for x in arrays):
        found = ", ".join(f"{x.dtype} {x.shape}" for x in arrays)
        raise InputError("fusion", "uint8 arrays of one shape (tiles, height, width, 3)", found)


def _weighted_sum(outputs: Outputs, weights: np.ndarray, offset: float = 0.0) -> np.ndarray:
    total = np.full(outputs[0].shape, offset, np.float32)
    for output, weight in zip(outputs, weights):
        total += np.multiply(output, np.float32(weight), dtype=np.float32)
    return _quantise(total)


def _quantise(x: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(x + 0.5), 0.0, 255.0).astype(np.uint8)


def _squared_errors(output: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """(N,) sums over each tile."""
    return np.array([np.square(a.astype(np.int32) - b).sum(dtype=np.int64) for a, b in zip(output, hr)])


def _simplex_least_squares(gram: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """argmin of w gram w / 2 - cross w over w >= 0, sum w = 1, by trying every set of teachers.

    On the right set the equality-constrained minimum is non-negative; a handful of teachers makes a handful
    of sets.
    """
    n = len(gram)
    best, best_value = np.full(n, 1.0 / n), np.inf
    # Large sets first, and only a better one replaces: equal teachers then share their weight.
    sets = [active for size in range(n, 0, -1) for active in itertools.combinations(range(n), size)]
    for active in map(list, sets):
        size = len(active)
        system = np.ones((size + 1, size + 1))
        system[:size, :size] = gram[np.ix_(active, active)]
        system[size, size] = 0.0
        solution = np.linalg.lstsq(system, np.append(cross[active], 1.0), rcond=1e-9)[0][:size]
        if solution.min() < -1e-9:
            continue
        weights = np.zeros(n)
        weights[active] = np.maximum(solution, 0.0)
        weights /= weights.sum()
        value = weights @ gram @ weights / 2.0 - cross @ weights
        if value < best_value - 1e-9 * abs(value):
            best, best_value = weights, value
    return best
