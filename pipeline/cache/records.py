"""Small JSON files that are verified when they are read, and what is done with a file that is damaged.

A record carries a checksum of its name and value, since a flipped bit in a number is otherwise silent. Records of
before, which have none, are read as long as they parse. A damaged file is named once, set aside as `<name>.damaged`
(never deleted) and made again by whoever needed it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.cache.store import Store

T = TypeVar("T")
CHECKSUM = "checksum"
_log = logging.getLogger(__name__)
_named: set[str] = set()
"""What this process has said to be damaged: what is missing since then is no news."""


def dump(rel: str, value: Any) -> bytes:
    """Return the record of a JSON value: an object of its own keys and its checksum, or `value` and its checksum."""
    value = json.loads(json.dumps(value))
    own = isinstance(value, dict) and CHECKSUM not in value and set(value) != {"value"}
    body = value if own else {"value": value}
    return (json.dumps({**body, CHECKSUM: _checksum(rel, body)}, indent=1) + "\n").encode()


def parse(rel: str, data: bytes) -> Any:
    """Return a record's value. Raises ValueError, which says what is wrong, for a damaged one."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(body, dict):
        return body
    if CHECKSUM not in body:
        for key in body:  # one of before, unless the damage is in that key itself
            if body[key] == _checksum(rel, {k: v for k, v in body.items() if k != key}):
                raise ValueError(f"its checksum is called {key!r}")
        return body
    found = body.pop(CHECKSUM)
    if found != _checksum(rel, body):
        raise ValueError("its checksum is that of another content or name")
    return body["value"] if set(body) == {"value"} else body


def save(store: Store, rel: str, value: Any) -> None:
    """Write a JSON value as a record, atomically."""
    store.write_bytes(rel, dump(rel, value))


def load(store: Store, rel: str, make: Callable[[Any], T] = lambda value: value) -> T | None:
    """Return `make` of a record's value; None where it is absent or damaged, so that the caller makes it again.

    Damaged is also what `make` refuses with KeyError, TypeError or ValueError (InputError included).
    """
    from pipeline.errors import InputError

    try:
        return make(parse(rel, store.read_bytes(rel)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        set_aside(
            store, rel, str(error) if isinstance(error, ValueError) else f"not what belongs here ({error!r})"
        )
    except InputError as error:
        set_aside(store, rel, f"expected {error.expected}, found {error.found}")
    return None


def set_aside(store: Store, rel: str, why: str, then: str = "made again") -> str | None:
    """Rename a damaged file out of the way and say so, and what comes `then`.

    Returns its new name, None where it is gone already.
    """
    where = store.where(rel)
    moved = store.set_aside(rel)
    if moved is not None:
        name = PurePosixPath(moved).name
        _log.warning("%s is damaged (%s). It is set aside as %s and %s.", where, why, name, then)
        _named.add(where)
    return moved


def missing(store: Store, rel: str) -> None:
    """Say once that a file is gone that should be there."""
    where = store.where(rel)
    if where not in _named:
        _log.warning("%s is missing. It is made again.", where)
    _named.add(where)


def _checksum(rel: str, body: Any) -> str:
    name = PurePosixPath(rel).name
    text = json.dumps([name, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
