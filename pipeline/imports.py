"""Imports of large libraries, quicker."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unsearched() -> Iterator[None]:
    """What modules make when they are imported lives to the end: nobody searches it for garbage as they come in, which
    else takes up to a fifth of their time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
