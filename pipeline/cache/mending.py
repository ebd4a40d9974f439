"""A damaged file that turns up at its use: set aside, and the work planned again, which makes that file anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from pipeline.cache import records
from pipeline.cache.node import Damaged
from pipeline.cache.store import Store

T = TypeVar("T")
TRIES = 3
"""Times that one file may turn up damaged: more often, the disk or the memory is at fault."""


def mended(work: Callable[[], T], stores: Sequence[Store]) -> T:
    """Return `work()`, called again whenever a file of `stores` turned up damaged and was set aside.

    `work` must skip what is there already. Raises Damaged for files that lie elsewhere (the user's own) and for one
    that is damaged again and again.
    """
    for store in stores:
        store.sweep()
    found: dict[str, int] = {}
    while True:
        try:
            return work()
        except Damaged as error:
            found[error.where] = found.get(error.where, 0) + 1
            if found[error.where] > TRIES or not any(put_aside(store, error) for store in stores):
                raise


def mends(method: Callable[..., T]) -> Callable[..., T]:
    """A method that is called again whenever a file of `self.stores` turned up damaged (`mended`)."""

    @wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> T:
        return mended(lambda: method(self, *arguments, **options), self.stores)

    return call


def put_aside(store: Store, error: Damaged) -> bool:
    """Set the file aside that the error names, and its receipt with it; False where it does not lie in `store`."""
    root = store.where("").rstrip("/") + "/"
    if not error.where.startswith(root):
        return False
    rel = error.where[len(root) :]
    if records.set_aside(store, rel, f"expected {error.expected}, found {error.found}") is None:
        records.missing(store, rel)
    store.set_aside(rel + ".json")
    return True
