"""A further table of a report, with what is to be said of it: for the page, for markdown, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True, slots=True)
class Extra:
    """Its first column is text, the others are figures but the last, which is a remark."""

    title: str
    sentences: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @staticmethod
    def read(value: Mapping[str, Any]) -> Extra:
        """From a record's content. Raises KeyError for what is none."""
        return Extra(value["title"], value["sentences"], value["head"], value["rows"])

    def text(self) -> str:
        """For a terminal."""
        lines = [list(self.head), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        last = len(widths) - 1
        shown = [
            "  ".join(
                cell.ljust(w) if i in (0, last) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        ]
        rule = "-" * max(map(len, shown))
        return "\n".join([shown[0], rule, *shown[1:], *self.sentences])

    def markdown(self) -> str:
        """With its heading."""
        last = len(self.head) - 1
        marks = [":--" if i in (0, last) else "--:" for i in range(len(self.head))]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, marks, *self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        said = "\n".join(f"- {sentence}" for sentence in self.sentences)
        return f"## {self.title}\n\n{table}\n\n{said}"

    def html(self) -> str:
        """Without its heading."""
        last = len(self.head) - 1

        def line(cells: Sequence[str], tag: str) -> str:
            marks = ["" if i not in (0, last) else ' style="text-align:left"' for i in range(len(cells))]
            return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks))

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self.rows)
        said = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.sentences)
        return (
            f'<div class="card scroll"><table><thead><tr>{line(self.head, "th")}</tr></thead>'
            f'<tbody>{body}</tbody></table></div><ul class="plain">{said}</ul>'
        )
