"""Counter-based randomness: what sample number n is, as a pure function of (seed, n); reading batches ahead, and what
is said of one that cannot be shared out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from pipeline.errors import InputError

T = TypeVar("T")
_ROUNDS = 4


def uneven(where: str, batch: int, workers: int) -> InputError:
    """The error for a batch that workers cannot share out evenly."""
    remedy = (
        f"Take {batch - batch % workers or workers} or {batch + -batch % workers}, or other distill.workers."
    )
    return InputError(where, f"a multiple of the {workers} workers", str(batch), remedy)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of what is random in a step, such as dropout: another in each step and worker, below 2**64."""
    high, low = divmod(seed, 1 << 24)
    return ((low << 40) + high * 0x9E3779B97F4A7C15 + (step << 10) + rank) % (1 << 64)


def permute(position: np.ndarray, count: int, key: np.ndarray) -> np.ndarray:
    """Return where the pseudo-random permutation of range(count) named by `key` sends each `position`.

    `position` and `key` are uint64 (n,), the result int64. A Feistel network on pairs (a, b), the cells of the smallest
    near-square grid that holds `count`; a result in one of the few cells beyond `count` is sent on until it
    falls below, which keeps it a permutation (cycle walking: Black and Rogaway, "Ciphers with arbitrary
    finite domains", 2002).
    """
    height = math.isqrt(count - 1) + 1
    width = -(-count // height)
    result = position.copy()
    beyond = np.arange(len(result))
    while len(beyond):
        a, b = np.divmod(result[beyond], np.uint64(width))
        keys = key[beyond]
        for _ in range(_ROUNDS):
            keys = mix(keys)
            a = (a + mix(keys ^ b)) % np.uint64(height)
            keys = mix(keys)
            b = (b + mix(keys ^ a)) % np.uint64(width)
        result[beyond] = a * np.uint64(width) + b
        beyond = beyond[result[beyond] >= count]
    return result.astype(np.int64)


def epoch_keys(seed: int, epoch: np.ndarray) -> np.ndarray:
    """Return the permutation key of each epoch number (uint64)."""
    return mix(epoch ^ mix(np.array([seed], np.uint64)))


def words(seed: int, first: int, count: int) -> np.ndarray:
    """Return (4, count) random uint64 words, one Philox counter for each sample numbered from `first`.

    Raw words, since NumPy promises these alone to stay the same from version to version.
    """
    return np.random.Philox(key=seed, counter=first).random_raw(4 * count).reshape(count, 4).T


def below(random: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """Map random uint64 words to integers in [0, limit), limit < 2**31, as int64 (bias below limit / 2**32)."""
    return ((random >> np.uint64(32)) * np.asarray(limit, np.uint64) >> np.uint64(32)).astype(np.int64)


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's step (Steele, Lea, Flood, 2014): each input bit changes half of the output bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def read_ahead(
    batch: Callable[[int, int, int], T], start: int, stop: int, rank: int, world: int
) -> Iterator[tuple[int, T]]:
    """(step, batch(step, rank, world)) for the steps of [start, stop) while one thread prepares the next batch."""
    if start >= stop:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="sampler") as pool:
        ahead = pool.submit(batch, start, rank, world)
        for step in range(start, stop - 1):
            ready, ahead = ahead.result(), pool.submit(batch, step + 1, rank, world)
            yield step, ready
        yield stop - 1, ahead.result()
