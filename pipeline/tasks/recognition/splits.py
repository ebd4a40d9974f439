"""Training, validation and test pictures: a function of the pictures' bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.errors import InputError
from pipeline.tasks.recognition.layouts import Found, Item
from pipeline.tasks.recognition.settings import RecognitionData


def split(found: Found, data: RecognitionData, identities: bool = False) -> dict[str, list[Item]]:
    """{"train", "val", "test"} -> items sorted by id: a function of the pictures' bytes, whatever their order.

    Verification and retrieval are validated on whole identities, because they need pictures of one person.

    Raises InputError where a class keeps no picture to train on, or nothing is left to test or to compare.
    """
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    own = any(item.role not in ("", "train") for item in found.items)
    by_class = {
        c: sorted((i for i in found.items if i.label == c), key=lambda i: i.id) for c in found.classes
    }
    if own:
        pools = {c: [i for i in items if i.role in ("", "train")] for c, items in by_class.items()}
        parts["test"] = [i for i in found.items if i.role not in ("", "train")]
    elif data.split == "identities":
        aside = _unseen(by_class, data.test, data.fold)
        parts["test"] = [i for c in found.classes if c in aside for i in by_class[c]]
        pools = {c: items for c, items in by_class.items() if c not in aside}
    else:
        pools = {}
        for c, items in by_class.items():
            part = _part(data.fold, len(items)) if data.fold else slice(0, _share(data.test, len(items)))
            parts["test"] += items[part]
            pools[c] = items[: part.start] + items[part.stop :]
    pools = {c: items for c, items in pools.items() if items or data.layout != "market1501"}
    unseen = _unseen(pools, data.holdout) if identities else set()
    for c, items in pools.items():
        count = _share(data.holdout, len(items)) if len(items) > 1 else 0
        if identities:
            count = len(items) if c in unseen else 0
        parts["val"] += items[:count]
        parts["train"] += items[count:]
        if not items[count:] and c not in unseen:
            remedy = (
                "Give it more pictures, or leave it out." if data.fold else "Lower data.test or data.holdout."
            )
            raise InputError("data", f"pictures of class {c!r} to train on", "none", remedy)
    trained = {item.label for item in parts["train"]}
    if identities and len(trained) < 2:
        rule = "two at least are held out, and as many tested on where the data has no test set of its own"
        raise InputError("data", "two identities to train on", f"{len(trained)}", f"Add some: {rule}.")
    for name in ("val", "test"):
        if not parts[name]:
            raise InputError("data", f"pictures for the {name} set", "none")
        if identities:
            _comparable(name, Counter(item.label for item in parts[name]), data)
    return {name: sorted(items, key=lambda i: i.id) for name, items in parts.items()}


def _comparable(name: str, counts: Counter[str], data: RecognitionData) -> None:
    """Refuse a set of identities without two of them, or without two pictures of one. Raises InputError."""
    if len(counts) > 1 and max(counts.values()) > 1:
        return
    folded = data.fold and name == "test"
    raise InputError(
        "data",
        f"for the {name} set two identities, one of them with two pictures",
        f"{len(counts)} of {sum(counts.values())} pictures",
        "Take fewer folds (data.fold)." if folded else "Add identities, or pictures of them.",
    )


def _part(fold: tuple[int, int], count: int) -> slice:
    """The k-th of n parts, as equal as can be; together they are all."""
    k, n = fold
    return slice(count * (k - 1) // n, count * k // n)


def _unseen(classes: Iterable[str], share: float, fold: tuple[int, int] | None = None) -> set[str]:
    """Whole identities to set aside, at least two or a fold, chosen by their names."""
    ranked = sorted(classes, key=lambda c: hashlib.sha256(c.encode()).hexdigest())
    if fold:
        return set(ranked[_part(fold, len(ranked))])
    return set(ranked[: max(2, round(share * len(ranked)))])


def _share(share: float, count: int) -> int:
    """At least one of several, and never all."""
    return min(max(round(share * count), 1), max(count - 1, 0))


def numbered(parts: dict[str, list[Item]], classes: Sequence[str]) -> tuple[dict[str, int], int]:
    """Class -> number, those that are trained on first, and how many these are."""
    trained = {item.label for item in parts["train"]}
    order = [c for c in classes if c in trained] + [c for c in classes if c not in trained]
    return {c: n for n, c in enumerate(order)}, len(trained)
