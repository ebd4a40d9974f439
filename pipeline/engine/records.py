"""What a tracker records, as values: made in the caller's thread, sent or spooled in another.

Names and lengths are made legal here (MLflow 3.17 refuses other names and cuts at these lengths), so that
no record is refused later, far from the line that made it. Two names never become one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.engine.names import legal
from pipeline.tracking import DataSet

Kind = Literal["metrics", "params", "tags", "inputs", "image", "artifact", "text", "status"]

PARAM_LENGTH = 6000
TAG_LENGTH = 8000
DATASET_NAME_LENGTH = 500
DIGEST_LENGTH = 36


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to record. `time` (milliseconds) is when it was made, so that sending it twice stores it
    once.
    """

    kind: Kind
    time: int
    name: str = ""
    """image: its name; artifact: folder in the store; text: file in the store; status: the status."""
    step: int = 0
    values: Mapping[str, Any] = field(default_factory=dict)
    payload: np.ndarray | Path | str | None = None
    """image: (H, W, 3) uint8, or the PNG holding it; artifact: its path; text: the text."""


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def metrics(values: Mapping[str, float], step: int) -> Record:
    """Scalars at a global step; NaN and infinities are kept."""
    return Record("metrics", now(), step=int(step), values={legal(k): float(v) for k, v in values.items()})


def params(values: Mapping[str, Any]) -> Record:
    """Settings: nested values get dotted names, text beyond 6000 characters is cut."""
    return Record("params", now(), values={legal(k): _cut(v, PARAM_LENGTH) for k, v in flatten(values)})


def tags(values: Mapping[str, Any]) -> Record:
    """Labels: text beyond 8000 characters is cut."""
    return Record("tags", now(), values={legal(k): _cut(v, TAG_LENGTH) for k, v in values.items()})


def inputs(found: DataSet) -> Record:
    """A data set that the run reads: its name is cut at 500 characters, its digest at 36."""
    values = asdict(found) | {
        "name": _cut(found.name, DATASET_NAME_LENGTH),
        "digest": found.digest[:DIGEST_LENGTH],
    }
    return Record("inputs", now(), name=values["name"], values=values)


def image(name: str, picture: np.ndarray, step: int) -> Record:
    """A copy of a picture (H, W, 3) uint8. Raises ValueError for another shape or type."""
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"image {name}: expected (H, W, 3) uint8, found {picture.shape} {picture.dtype}")
    return Record("image", now(), name=legal(name, ascii_only=True), step=int(step), payload=picture.copy())


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(dotted name, leaf) of nested mappings and lists; lists of plain values stay whole."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, (Mapping, list, tuple)) for v in value):
            yield from flatten({str(i): v for i, v in enumerate(value)}, f"{name}.")
        else:
            yield name, value


def _cut(value: Any, length: int) -> str:
    if isinstance(value, (Mapping, list, tuple)):
        value = json.dumps(value, default=str)
    text = str(value)
    return text if len(text) <= length else text[: length - 3] + "..."
