"""The board of a training's news. Alone in its file: its process then starts without torch."""

from __future__ import annotations

import ray


class Progress:
    """Where workers pin their news for the driver's progress lines."""

    def __init__(self) -> None:
        self.latest: dict[str, tuple[int, str]] = {}
        self.failures: dict[str, Exception] = {}

    def post(self, label: str, step: int, note: str) -> None:
        self.latest[label] = (step, note)

    def fail(self, label: str, error: Exception) -> None:
        self.failures[label] = error

    def read(self) -> tuple[dict[str, tuple[int, str]], dict[str, Exception]]:
        return self.latest, self.failures


Board = ray.remote(num_cpus=0)(Progress)
