"""What a set of output files was made from, and the sha256 of each: intact outputs are left alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.cache import records
from pipeline.cache.store import Store


def intact(store: Store, stamp: str, identity: Any) -> bool:
    """Say whether the files of `stamp` were made from `identity` and are as they were written.

    Damaged ones are set aside and named, missing ones named. A stamp of before, without checksums, is no proof.
    """
    known = records.load(store, stamp)
    if not isinstance(known, dict) or "files" not in known or known.get("identity") != _plain(identity):
        return False
    whole = True
    for rel, sha256 in known["files"].items():
        if not store.exists(rel):
            records.missing(store, rel)
            whole = False
        elif (found := store.sha256(rel)) != sha256:
            records.set_aside(store, rel, f"expected sha256 {sha256}, found {found}")
            whole = False
    return whole


def put(store: Store, stamp: str, identity: Any, files: Sequence[str]) -> None:
    """Write the stamp of these files, which are written already."""
    digests = {rel: hashlib.sha256(store.read_bytes(rel)).hexdigest() for rel in sorted(files)}
    records.save(store, stamp, {"identity": _plain(identity), "files": digests})


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
