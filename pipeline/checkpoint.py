"""Checkpoints that are complete or absent.

A checkpoint is `step-<n>.pt` (tensors and plain values only, read back with weights_only=True) and, written after it,
`step-<n>.json` with its size and sha256. Without a matching record a file is not a checkpoint. A flipped bit
is found by the
sha256: torch.load alone returns wrong values silently.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from typing import Any

import torch

from pipeline.errors import FacultyError, InputError
from pipeline.shards.store import Store

log = logging.getLogger(__name__)


def _names(step: int) -> tuple[str, str]:
    return f"step-{step:09d}.pt", f"step-{step:09d}.json"


def save(store: Store, step: int, state: dict[str, Any], *, fingerprint: str, keep: int) -> None:
    """Write the checkpoint of `step`, then drop all but the newest `keep`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    weights, record = _names(step)
    store.write_bytes(weights, data)
    facts = {
        "step": step,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "fingerprint": fingerprint,
    }
    store.write_bytes(record, json.dumps(facts).encode())
    for old in steps(store)[:-keep]:
        for name in reversed(_names(old)):
            store.delete(name)


def steps(store: Store) -> list[int]:
    """Steps of the complete checkpoints, rising. A `.pt` without its record is left over from a kill and is ignored."""
    present = {name for name, _ in store.list()}
    found = [int(n[5:14]) for n in present if n.startswith("step-") and n.endswith(".json")]
    return sorted(s for s in found if _names(s)[0] in present)


def load_latest(store: Store, *, fingerprint: str) -> tuple[int, dict[str, Any]] | None:
    """The newest intact checkpoint as (step, state), or None.

    A damaged one is named in a warning and the one before it is taken. Raises InputError where the checkpoint
    belongs to another training (its fingerprint differs), FacultyError where every checkpoint is damaged.
    """
    found = steps(store)
    for step in reversed(found):
        weights, record = _names(step)
        facts = json.loads(store.read_bytes(record))
        if facts["fingerprint"] != fingerprint:
            raise InputError(
                f"{store.uri}/{record}",
                f"a checkpoint of training {fingerprint}",
                f"one of {facts['fingerprint']}",
                "Use another output folder, or delete this one.",
            )
        data = store.read_bytes(weights)
        if hashlib.sha256(data).hexdigest() == facts["sha256"]:
            return step, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        log.warning(
            "%s/%s is damaged (sha256 differs from its record); trying the one before", store.uri, weights
        )
    if found:
        raise FacultyError(
            f"{store.uri}: every checkpoint is damaged ({found}). Delete the folder to train anew."
        )
    return None
