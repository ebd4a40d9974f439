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
        self.begun: dict[str, list[int]] = {}
        """Which processes of a queue began a training, each as often as it did."""
        self.done: set[str] = set()

    def post(self, label: str, step: int, note: str, evaluated: bool = False) -> None:
        self.latest[label] = (step, note)
        if evaluated:
            self.judged.append((label, step, note))

    def fail(self, label: str, error: Exception) -> None:
        self.failures[label] = error

    def claim(self, label: str, process: int) -> bool:
        """Whether a process of a queue is to train this now: nobody else has it, and none has failed. What the process
        itself began and did not end is taken again: it died then.
        """
        if self.failures or label in self.done or set(self.begun.get(label, ())) - {process}:
            return False
        self.begun.setdefault(label, []).append(process)
        return True

    def finish(self, label: str) -> None:
        """A training of a queue came to its end."""
        self.done.add(label)

    def under_way(self, process: int) -> tuple[str, int]:
        """(what a process of a queue was at, how often it began that); "" and 0 where it was at nothing."""
        own = [
            (label, len(by)) for label, by in self.begun.items() if process in by and label not in self.done
        ]
        return own[-1] if own else ("", 0)

    def read(self) -> tuple[dict[str, tuple[int, str]], dict[str, Exception]]:
        return self.latest, self.failures

    def evaluations(self) -> list[tuple[str, int, str]]:
        """(label, step, note) of those since the last call."""
        found, self.judged = self.judged, []
        return found


Board = ray.remote(num_cpus=0)(Progress)
