"""The board of a training's news. Alone in its file: its process then starts without torch."""

from __future__ import annotations

import ray


class Progress:
    """Where workers pin their news for the driver's progress lines."""

    def __init__(self) -> None:
        self.latest: dict[str, tuple[int, str]] = {}
        self.judged: list[tuple[str, int, str]] = []
        """What evaluations found since the last reading: the latest note may have replaced it before anybody saw it."""
        self.failures: dict[str, Exception] = {}

    def post(self, label: str, step: int, note: str, evaluated: bool = False) -> None:
        self.latest[label] = (step, note)
        if evaluated:
            self.judged.append((label, step, note))

    def fail(self, label: str, error: Exception) -> None:
        self.failures[label] = error

    def read(self) -> tuple[dict[str, tuple[int, str]], dict[str, Exception]]:
        return self.latest, self.failures

    def evaluations(self) -> list[tuple[str, int, str]]:
        """(label, step, note) of those since the last call."""
        found, self.judged = self.judged, []
        return found


Board = ray.remote(num_cpus=0)(Progress)
