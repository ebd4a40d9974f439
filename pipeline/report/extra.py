"""A further table of a report, with what is to be said of it: for the page, for markdown, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from pipeline.report.markdown import one_line, plain

LONGEST = 30
"""Rows of a table in markdown; the page has all."""


@dataclass(frozen=True, slots=True)
class Extra:
    """Its first column is text, the others are figures."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str] = ()
    """What is to be known to read it."""
    remark: bool = False
    """The last column is text too."""

    @staticmethod
    def read(value: Mapping[str, Any]) -> Extra:
        """From a record's content. Raises KeyError for what is none."""
        return Extra(value["title"], value["head"], value["rows"], value["sentences"], value["remark"])

    def text(self) -> str:
        """For a terminal."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        shown = [
            "  ".join(
                cell.ljust(w) if self._is_text(i) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, shown))
        return "\n".join([shown[0], rule, *shown[1:], *self.sentences])

    def markdown(self) -> str:
        """With its heading; of a long table the first rows."""
        marks = [":--" if self._is_text(i) else "--:" for i in range(len(self.head))]
        cells = [[plain(cell) for cell in line] for line in (self.head, *self.rows[:LONGEST])]
        cells.insert(1, marks)
        parts = [f"## {self.title}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]
        if (cut := len(self.rows) - LONGEST) > 0:
            parts.append(f"{cut} more are in report.html.")
        parts += (
            ["\n".join(f"- {one_line(sentence)}" for sentence in self.sentences)] if self.sentences else []
        )
        return "\n\n".join(parts)

    def html(self) -> str:
        """Without its heading."""

        def line(cells: Sequence[str], tag: str) -> str:
            marks = [' style="text-align:left"' if self._is_text(i) else "" for i in range(len(cells))]
            return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks))

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        return (
            f'<div class="card scroll tall"><table><thead><tr>{line(self.head, "th")}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><ul class="plain">{said}</ul>'
        )

    def _is_text(self, column: int) -> bool:
        return column == 0 or (self.remark and column == len(self.head) - 1)
