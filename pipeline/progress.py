"""Progress of long work: what, done / total, rate and time left, on one live line of a terminal; in a log (of a job, of
CI) a plain line now and then, and one for every evaluation.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipeline.errors import InputError, shown

EVERY = 15.0
"""Seconds between two plain lines of one piece of work; the variable FACULTY_LOG_EVERY sets others, 0 none at all."""
STILL = 4
"""How many times as long the pause is while there is nothing new to tell."""
HELD_OUT = "held-out"
"""How notes of an evaluation begin."""


class Line(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1, note: str = "") -> None: ...

    def to(self, done: float, note: str = "", total: float | None = None) -> None: ...


class Reporter(Protocol):
    """Where stages announce what they do."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def line(self, what: str, total: float, unit: str = "") -> AbstractContextManager[Line]: ...


class Quiet:
    """Says nothing; keeps warnings for the report."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        self.warnings.append(shown(text))

    @contextmanager
    def line(self, what: str, total: float, unit: str = "") -> Iterator[Line]:
        yield _Ignored()


class Once:
    """Passes every text on once: what is planned again (a trial, a run that mended a file) is not told again."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._told: set[str] = set()

    def say(self, text: str) -> None:
        """Pass a new text on."""
        if text not in self._told:
            self._told.add(text)
            self._reporter.say(text)

    def warn(self, text: str) -> None:
        """Pass a new warning on."""
        if text not in self._told:
            self._told.add(text)
            self._reporter.warn(text)

    def line(self, what: str, total: float, unit: str = "") -> AbstractContextManager[Line]:
        return self._reporter.line(what, total, unit)


class _Ignored:
    def advance(self, amount: float = 1, note: str = "") -> None:
        """Ignore."""

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        """Ignore."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        unit = task.fields.get("unit", "")
        return Text(f"{speed:.3g} {unit}/s" if speed else "")


class Terminal:
    """Live lines on stderr where it is a terminal. Where it is not: a plain line for each piece of work at most every
    `every` seconds, at each evaluation, and at its end.
    """

    def __init__(self, console: Console | None = None, every: float | None = None) -> None:
        """Raises InputError for a FACULTY_LOG_EVERY that is no number of seconds."""
        self.console = console or Console(stderr=True, highlight=False)
        self.every = seconds_between() if every is None else every
        self.warnings: list[str] = []
        self._progress: Progress | None = None
        self._depth = 0

    def say(self, text: str) -> None:
        self.console.print(shown(text), markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.warnings.append(shown(text))
        self.console.print(f"warning: {shown(text)}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def line(self, what: str, total: float, unit: str = "") -> Iterator[Line]:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                get_time=lambda: time.monotonic(),
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        self._depth += 1
        task = self._progress.add_task(what, total=total, note="", unit=unit)
        line = (
            _Live(self._progress, task) if self.console.is_terminal else self._plain(what, task, total, unit)
        )
        try:
            yield line
        finally:
            self._depth -= 1
            if isinstance(line, _Plain):
                line.end()
            if self._depth == 0:
                self._progress.stop()
                self._progress = None

    def _plain(self, what: str, task: int, total: float, unit: str) -> _Plain:
        assert self._progress is not None
        return _Plain(self._progress, task, lambda text: self.say(f"{what}: {text}"), self.every, total, unit)


class _Live:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task, self.note = progress, task, ""
        self._begun = False

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.note = shown(note) or self.note
        self._progress.update(self._task, advance=amount, note=self.note)  # type: ignore[arg-type]

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        if done == 0 and not self._begun:  # what waited for its turn begins: its time counts from now
            self._progress.reset(self._task)  # type: ignore[arg-type]
        self._begun = True
        if done == 0 and note and shown(note) != self.note:
            self._tell(shown(note))  # how it trains, why it waits: the next note would replace it at once
        self.note = shown(note) or self.note
        self._progress.update(self._task, completed=done, total=total, note=self.note)  # type: ignore[arg-type]

    def _tell(self, text: str) -> None:
        what = self._progress.tasks[self._progress.task_ids.index(self._task)].description  # type: ignore[arg-type]
        self._progress.console.print(f"{what}: {text}", markup=False, soft_wrap=True)


class _Plain(_Live):
    """A piece of work in a log."""

    def __init__(
        self,
        progress: Progress,
        task: int,
        say: Callable[[str], None],
        every: float,
        total: float,
        unit: str,
    ) -> None:
        super().__init__(progress, task)
        self._say, self._every, self._total, self._unit = say, every, total, unit
        self._done = 0.0
        self._since: tuple[float, float] | None = None
        """(time, done) from which the pace is taken: what came before, perhaps in another run, tells none."""
        self._before = 0.0, 0.0
        self._arrived = 0.0
        """When what is done last changed: it is told again and again meanwhile."""
        self._said = time.monotonic()
        self._judged = ""
        self._ended = False

    def end(self) -> None:
        """Say that it is done and how long it took, once."""
        if self._ended:
            return
        self._ended = True
        entry = self._progress.tasks[self._progress.task_ids.index(self._task)]  # type: ignore[arg-type]
        count = f"{entry.completed:g}/{entry.total or 0:g} {self._unit}"
        self._say(f"{count} in {entry.elapsed or 0:.0f} s {self.note}".rstrip())

    def _tell(self, text: str) -> None:
        self._say(text)

    def advance(self, amount: float = 1, note: str = "") -> None:
        super().advance(amount, note)
        self._moved(self._done + amount, note)

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        super().to(done, note, total)
        self._total = total or self._total
        self._moved(done, note)

    def _moved(self, done: float, note: str) -> None:
        now = time.monotonic()
        if done != self._done or self._since is None:
            self._arrived = now
        self._done = done
        if self._since is None and not done:
            return
        if self._since is None:
            self._since = self._before = now, done
        then, before = self._since
        judged = note.startswith(HELD_OUT) and note != self._judged
        self._judged = note if judged else self._judged
        pause = self._every * (1 if done != before else STILL)
        if done >= self._total and note.startswith(HELD_OUT):  # even where it found what the last one did
            self.end()  # others may go on for long
        if not self._every or done >= self._total or not (judged or now - max(then, self._said) >= pause):
            return  # the last one is told at the end
        # What came in the moment since a line is no pace: then it is that since the line before.
        lately = self._arrived - then < self._every
        begun, at = self._before if lately and done != before else self._since
        taken = self._arrived - begun
        rate = (done - at) / taken if taken > 0.5 else 0.0
        words = [f"{done:g}/{self._total:g} {self._unit}".rstrip()]
        if rate > 0:
            words += [
                f"{rate:.3g} {self._unit}/s".replace(" /s", " a second"),
                f"{lasting((self._total - done) / rate)} left",
            ]
        self._say(", ".join([*words, *([self.note] if self.note else [])]))
        self._said = now
        if done != before and now - then >= self._every:
            self._before, self._since = (self._before if lately else self._since), (self._arrived, done)


def lasting(seconds: float) -> str:
    """`40 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_between() -> float:
    """FACULTY_LOG_EVERY, by default `EVERY`. Raises InputError where it is no number of seconds."""
    text = os.environ.get("FACULTY_LOG_EVERY", "")
    try:
        found = float(text) if text else EVERY
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise InputError(
            "FACULTY_LOG_EVERY", "seconds, 0 for no lines between", repr(text), "Unset it for 15."
        )
    return found
