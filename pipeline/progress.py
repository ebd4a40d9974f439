"""Progress of long work: what, done / total, rate and time left, on one live line; nothing where nobody watches."""

from __future__ import annotations

from collections.abc import Iterator
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

from pipeline.errors import shown


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
    """Live lines on stderr where it is a terminal, one plain line per finished piece of work where it is not."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
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
                disable=not self.console.is_terminal,
            )
            self._progress.start()
        self._depth += 1
        task = self._progress.add_task(what, total=total, note="", unit=unit)
        line = _Live(self._progress, task)
        try:
            yield line
        finally:
            self._depth -= 1
            if not self.console.is_terminal:
                entry = self._progress.tasks[self._progress.task_ids.index(task)]
                count = f"{entry.completed:g}/{entry.total or 0:g} {unit}"
                self.say(f"{what}: {count} in {entry.elapsed or 0:.0f} s {line.note}".rstrip())
            if self._depth == 0:
                self._progress.stop()
                self._progress = None


class _Live:
    def __init__(self, progress: Progress, task: int) -> None:
        self._progress, self._task, self.note = progress, task, ""

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.note = shown(note) or self.note
        self._progress.update(self._task, advance=amount, note=self.note)  # type: ignore[arg-type]

    def to(self, done: float, note: str = "", total: float | None = None) -> None:
        self.note = shown(note) or self.note
        self._progress.update(self._task, completed=done, total=total, note=self.note)  # type: ignore[arg-type]
