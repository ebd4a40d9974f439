"""Settings of this process that make a step on the CPU faster. They change no value but denormal ones."""

from __future__ import annotations

import ctypes
from functools import cache

import torch

KEPT_BYTES = 256 * 2**20
"""Freed memory that is kept for the next step, before any goes back to the system."""
LARGE_BYTES = 32 * 2**20
"""A block above this always comes from the system: the largest that glibc can be told."""
HEAP_BYTES = 64 * 2**20
"""What a heap grows by: with as much as a thread's heap can hold, one that became empty is kept as well."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def prepare() -> bool:
    """Set both, for the calling thread; True where the C library takes the second (glibc).

    Denormal numbers, into which vanishing attention weights and second moments turn, are many times slower: they
    become 0. And glibc gives the memory of a step's activations back to the system after every step, whose next use
    costs a page fault for every 4 KiB: it keeps them.
    """
    torch.set_flush_denormal(True)
    return _keep_memory()


@cache
def _keep_memory() -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    wanted = {_TRIM_THRESHOLD: KEPT_BYTES, _TOP_PAD: HEAP_BYTES, _MMAP_THRESHOLD: LARGE_BYTES}
    return all([mallopt(parameter, value) for parameter, value in wanted.items()])
