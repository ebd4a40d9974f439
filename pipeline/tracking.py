"""What the core may ask of a tracker, and the tracker that records nothing.

The real one lives in `pipeline.engine.tracking`; the training loop takes either and cannot tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Status = Literal["FINISHED", "FAILED", "KILLED"]
ROLE = "role"
"""The tag of a training's record that says what its network is in the table: `student`, `teacher`."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """Samples that a run reads, as its page names them."""

    name: str
    digest: str
    """A fingerprint of its content."""
    source: str
    """Its folder: a path or a URI."""
    context: str
    """What for: `training`, `validation`, `testing`."""
    rows: int
    """Pictures or tiles."""


class RunTracker(Protocol):
    """One run in a tracking store. No call waits for the store, apart from `flush`, `close` and `finish`."""

    @property
    def run_id(self) -> str:
        """The store's id of this run; empty where nothing is recorded."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars at a global step."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings once; nested mappings and lists become dotted names."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set labels; a later value replaces an earlier one."""

    def inputs(self, sets: Sequence[DataSet]) -> None:
        """Record the data sets that the run reads; a set that is recorded already adds nothing."""

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Record a picture (H, W, 3) uint8 at a global step."""

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file or a folder, which must stay in place until `flush`."""

    def text(self, content: str, file: str) -> None:
        """Record a text file."""

    def child(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> RunTracker:
        """A run below this one."""

    def handle(self) -> dict[str, Any]:
        """Plain data from which another process resumes this run."""

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until what was recorded so far has reached the store; False where it has not."""

    def close(self, timeout: float = 30.0) -> None:
        """Flush and stop, leaving the run's status alone."""

    def finish(self, status: Status = "FINISHED", tags: Mapping[str, str] | None = None) -> None:
        """Set the run's last status, flush and stop."""


class NullTracker:
    """Records nothing: for tests, and for `tracking.enabled: false`."""

    run_id = ""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Nothing."""

    def inputs(self, sets: Sequence[DataSet]) -> None:
        """Nothing."""

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Nothing."""

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Nothing."""

    def text(self, content: str, file: str) -> None:
        """Nothing."""

    def child(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> NullTracker:
        """This same tracker."""
        return self

    def handle(self) -> dict[str, Any]:
        """Empty, from which `resume` makes a NullTracker again."""
        return {}

    def flush(self, timeout: float = 30.0) -> bool:
        """Nothing to wait for."""
        return True

    def close(self, timeout: float = 30.0) -> None:
        """Nothing."""

    def finish(self, status: Status = "FINISHED", tags: Mapping[str, str] | None = None) -> None:
        """Nothing."""

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing."""
