"""What a finished training leaves: weights.safetensors, and result.json, which knows the weights' sha256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from torch import Tensor, nn

from pipeline.cache import records
from pipeline.cache.node import Damaged, damaged
from pipeline.cache.store import Store
from students.expansion import merged

RESULT, WEIGHTS = "result.json", "weights.safetensors"
_verified: set[tuple[str, str]] = set()
"""(store, sha256) of weights on object stores that this process has seen whole; local ones are hashed each time."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file; the same input gives the same bytes, whatever the process.

    The library writes the metadata's keys in an order that differs from process to process: its head is sorted here.
    """
    from safetensors.torch import save

    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    data = save(plain, metadata=dict(metadata) if metadata else None)
    begin = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:begin])
    if "__metadata__" in head:
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[begin:]


def write(
    store: Store, model: nn.Module, facts: Mapping[str, Any], result: Mapping[str, Any]
) -> dict[str, Any]:
    """Commit a training's end: its weights with `facts` in their head, then its result. Returns the result.

    A network that trained expanded leaves as the plain one: who reads the weights knows nothing of it.
    """
    data = pack(merged(model), {"faculty": json.dumps(facts)})
    store.write_bytes(WEIGHTS, data)
    whole = {**result, **facts, "sha256": hashlib.sha256(data).hexdigest()}
    records.save(store, RESULT, whole)
    return whole


def finished(store: Store, fingerprint: str) -> dict[str, Any] | None:
    """Return the result of a finished training, None where there is none or where it or its weights are damaged.

    What is damaged is set aside: the training then goes on from its newest checkpoint, to the same weights.
    """

    def own(value: Any) -> dict[str, Any]:
        if not isinstance(value["curves"], dict) or value["fingerprint"] != fingerprint:
            raise ValueError(f"it is the result of another training than {fingerprint}")
        return value

    result = records.load(store, RESULT, own)
    if result is None:
        return None
    try:
        if (store.uri, result.get("sha256", "")) not in _verified:
            _bytes(store, WEIGHTS, result)
    except Damaged as error:
        if records.set_aside(store, WEIGHTS, f"expected {error.expected}, found {error.found}") is None:
            records.missing(store, WEIGHTS)
        return None
    return result


def read(store: Store, rel: str) -> bytes:
    """Return a finished training's weights, verified. Raises Damaged."""
    folder = str(PurePosixPath(rel).parent)
    result = records.load(store, RESULT if folder == "." else f"{folder}/{RESULT}")
    return _bytes(store, rel, result if isinstance(result, dict) else {})


def _bytes(store: Store, rel: str, result: Mapping[str, Any]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.torch import load

    where = store.where(rel)
    try:
        data = store.read_bytes(rel)
    except FileNotFoundError:
        raise damaged(where, "a training's weights", "nothing there") from None
    wanted = result.get("sha256")
    if wanted is None:  # of an older version: all that can be asked for is that it opens
        try:
            load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise damaged(where, "a safetensors file", str(error)) from None
    elif (digest := hashlib.sha256(data).hexdigest()) != wanted:
        raise damaged(where, f"sha256 {wanted}", f"sha256 {digest}")
    elif not store.uri.startswith("file:"):
        _verified.add((store.uri, wanted))
    return data
