"""Checkpoints that are complete or absent.

A checkpoint is `step-<n>.pt` (tensors and plain values only, read back with weights_only=True) and, written after it,
`step-<n>.json` with its size and sha256. Without a matching record a file is not a checkpoint. A flipped bit is found
by the sha256: torch.load alone returns wrong values silently.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from typing import Any

import torch

from pipeline.cache import records
from pipeline.cache.store import Store

log = logging.getLogger(__name__)
_RECORD = re.compile(r"step-\d{9}\.json")


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
    records.save(store, record, facts)
    for old in steps(store)[:-keep]:
        for name in reversed(_names(old)):
            store.delete(name)


def steps(store: Store) -> list[int]:
    """Steps of the complete checkpoints, rising. A `.pt` without its record is left over from a kill and is ignored."""
    present = {name for name, _ in store.list()}
    return sorted(int(n[5:14]) for n in present if _RECORD.fullmatch(n))


def load_latest(store: Store, *, fingerprint: str) -> tuple[int, dict[str, Any]] | None:
    """The newest intact checkpoint of training `fingerprint` as (step, state), or None: the training starts anew.

    Damaged checkpoints, and those of another training, are named in a warning and set aside.
    """
    found = steps(store)
    for step in reversed(found):
        if (data := _intact(store, step, fingerprint)) is not None:
            return step, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if found:
        log.warning("%s: no checkpoint is left; this training starts anew", store.where(""))
    return None


def flaw(store: Store, rel: str) -> str:
    """What is wrong with the checkpoint file `rel`, in words; empty where it is intact or has no record."""
    try:
        record = rel.removesuffix(".pt") + ".json"
        wanted = records.parse(record, store.read_bytes(record))["sha256"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return ""
    found = store.sha256(rel)
    return "" if found == wanted else f"expected sha256 {wanted}, found {found}"


def _intact(store: Store, step: int, fingerprint: str) -> bytes | None:
    """A checkpoint's bytes; None where it is damaged, which sets it aside."""
    weights, record = _names(step)

    def own(facts: dict[str, Any]) -> str:
        if facts["fingerprint"] != fingerprint or facts["step"] != step:
            raise ValueError(
                f"expected a checkpoint of training {fingerprint}, found one of {facts['fingerprint']}"
            )
        return str(facts["sha256"])

    sha256 = records.load(store, record, own)
    try:
        data = store.read_bytes(weights)
    except FileNotFoundError:
        records.missing(store, weights)
        data = None
    if sha256 is not None and data is not None:
        if (digest := hashlib.sha256(data).hexdigest()) == sha256:
            return data
        records.set_aside(store, weights, f"expected sha256 {sha256}, found {digest}")
    for name in (record, weights):  # each is nothing without the other
        store.set_aside(name)
    return None
