"""The look of `report.html`: one page without scripts and without anything from outside, light or dark as
the reader's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from pipeline.report.extra import Extra
from pipeline.report.table import GROUPS, Cell, Metric, Table, count, milliseconds, short, work

STYLE = """
:root { --bg:#fbfbfc; --card:#fff; --ink:#1c2128; --soft:#5b6472; --line:#e3e6eb; --good:#0b8457; --bad:#b4372b;
  --accent:#2f6feb; --warn-bg:#fff7e6; --warn:#8a5a00; --code:#f3f4f7; color-scheme:light dark }
@media (prefers-color-scheme: dark) {
  :root { --bg:#0f1115; --card:#171a21; --ink:#e8eaee; --soft:#98a1b0; --line:#2a2f3a; --good:#4fd39a; --bad:#ff8b7e;
    --accent:#7aa7ff; --warn-bg:#2a2211; --warn:#f1c46b; --code:#1e222b }
}
* { box-sizing:border-box }
body { margin:0; background:var(--bg); color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1180px; margin:0 auto; padding:40px 24px 64px }
h1 { font-size:28px; line-height:1.2; letter-spacing:-.02em; margin:0 0 8px }
h2, summary { font-size:17px; font-weight:600; letter-spacing:-.01em; margin:44px 0 14px }
p.lead { color:var(--soft); font-size:16px; margin:0 0 8px; max-width:80ch }
a { color:var(--accent); text-decoration:none } a:hover { text-decoration:underline }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(170px,1fr)); gap:12px; margin:26px 0 0 }
.cards .card { padding:16px 18px }
.cards b { display:block; font-size:26px; line-height:1.15; letter-spacing:-.02em }
.cards b, table { font-variant-numeric:tabular-nums }
.cards span { display:block; margin-top:4px }
.cards small { color:var(--soft) }
.warning { background:var(--warn-bg); color:var(--warn); border-radius:10px; padding:11px 16px; margin:14px 0 0 }
.scroll { overflow-x:auto; padding:8px 18px 14px }
.tall { max-height:560px; overflow-y:auto }
table { border-collapse:collapse; width:100% }
th, td { padding:7px 12px; text-align:right; white-space:nowrap }
th:first-child, td:first-child { text-align:left; padding-left:4px }
thead th { color:var(--soft); font-weight:500; font-size:13px }
thead th.set { color:var(--ink); font-weight:600; font-size:14px; text-align:center; padding-bottom:0 }
tbody tr:not(.group) td { border-top:1px solid var(--line) }
tr.group td { padding:16px 4px 4px; color:var(--soft); font-size:12px; text-transform:uppercase;
  letter-spacing:.06em }
.edge { border-left:1px solid var(--line) }
.side { text-align:left; padding-left:0; font-size:12px; color:var(--soft) }
.gain { color:var(--good) }
.worse { color:var(--bad) }
ul.plain { list-style:none; padding:0; margin:14px 0 0; color:var(--soft) }
.grid { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr)); gap:14px }
.grid .card { padding:14px 16px 10px }
svg { width:100%; height:auto; display:block }
figure { margin:0 0 18px; overflow:hidden }
figure img { display:block; max-width:100%; height:auto; margin:auto; cursor:zoom-in }
figure input { display:none }
figure input:checked + img { position:fixed; inset:0; width:100vw; height:100vh; object-fit:contain;
  background:#000d; cursor:zoom-out; z-index:9 }
figcaption { padding:11px 16px; color:var(--soft); font-size:14px }
dl { display:grid; grid-template-columns:max-content 1fr; gap:6px 22px; margin:0; padding:16px 18px }
dt { color:var(--soft) }
dd { margin:0; overflow-wrap:anywhere }
pre, code { font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace }
pre { background:var(--code); border-radius:10px; padding:14px 16px; margin:0; overflow-x:auto }
summary { cursor:pointer }
@media print { main { max-width:none } .tall { max-height:none } .card { break-inside:avoid } }
"""


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows, from top to bottom; texts are plain, charts and figures are markup."""

    title: str
    summary: str
    facts: Mapping[str, str]
    warnings: Sequence[str]
    cards: Sequence[tuple[str, str, str]]
    table: Table
    gains: Sequence[str]
    extras: Sequence[Extra]
    standings: Sequence[str]
    curves: Sequence[str]
    pictures: Sequence[str]
    files: Sequence[tuple[str, str, str]]
    """(label, place, size)."""
    mlflow: str
    recipe: str


def page(content: Page) -> str:
    """The whole document."""
    title = escape(content.title)
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{escape(content.summary)}</p>' if content.summary else "",
        *(f'<div class="warning">{escape(text)}</div>' for text in content.warnings),
        _cards(content.cards),
        _section("Results", f'<div class="card scroll">{_table(content.table)}</div>{_list(content.gains)}'),
        *(_section(escape(extra.title), extra.html()) for extra in content.extras),
        _section("Pictures", "".join(content.pictures)),
        _section("Where each method stands", _grid(content.standings)),
        _section("Training", _grid(content.curves)),
        _section("The run", _facts(content.facts)),
        _section("Files", _files(content.files)),
        _section("MLflow", f"<pre>{escape(content.mlflow)}</pre>" if content.mlflow else ""),
        f"<details><summary>Recipe</summary><pre>{escape(content.recipe)}</pre></details>"
        if content.recipe
        else "",
    ]
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def figure(caption: str, source: str) -> str:
    """A picture that a click enlarges."""
    text = escape(caption)
    return (
        f'<figure class="card"><label><input type="checkbox"><img src="{source}" alt="{text}"></label>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _cards(cards: Sequence[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(remark)}</small></div>'
        for value, what, remark in cards
    )
    return f'<div class="cards">{items}</div>' if items else ""


def _table(table: Table) -> str:
    columns = [
        _Column(*column, [cells[i] for cells in table.cells]) for i, column in enumerate(table.columns)
    ]
    names = list(dict.fromkeys(column.set_name for column in columns))
    firsts = [next(i for i, column in enumerate(columns) if column.set_name == name) for name in names]
    sets = ""
    for name in names:
        span = sum(column.span for column in columns if column.set_name == name)
        sets += f'<th class="edge set" colspan="{span}">{escape(name)}</th>'
    labels = "".join(column.label(i in firsts) for i, column in enumerate(columns))
    lines, role = [], None
    timed = any(row.latency_ms is not None for row in table.rows)
    paid = any(row.work is not None for row in table.rows)
    for row, cells in zip(table.rows, table.cells):
        if row.role != role:
            role = row.role
            lines.append(f'<tr class="group"><td colspan="{3 + timed + 2 * paid}">{GROUPS[role]}</td>')
            lines += [
                f'<td class="edge" colspan="{sum(c.span for c in columns if c.set_name == n)}"></td>'
                for n in names
            ]
            lines.append("</tr>")
        figures = "".join(columns[i].cells(cell, i in firsts) for i, cell in enumerate(cells))
        cost = f"<td>{short(row.parameters)}</td><td>{short(row.multiply_adds)}</td>"
        cost += f"<td>{milliseconds(row.latency_ms)}</td>" if timed else ""
        cost += f"<td>{count(row.steps)}</td><td>{work(row.work)}</td>" if paid else ""
        lines.append(f"<tr><td>{escape(row.name)}</td>{cost}{figures}</tr>")
    names_of_costs = ["parameters", "multiply-adds", *(["ms a picture"] if timed else [])]
    names_of_costs += ["steps", "work"] if paid else []
    costs = "".join(f"<th>{name}</th>" for name in names_of_costs)
    return (
        f"<table><thead><tr><th></th>{'<th></th>' * len(names_of_costs)}{sets}</tr>"
        f"<tr><th>method</th>{costs}{labels}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


class _Column:
    """One metric of one set: a column for the means and, where there are any, one for spreads and one for
    gains.
    """

    def __init__(self, set_name: str, metric: Metric, cells: Sequence[Cell]) -> None:
        self.set_name, self.metric = set_name, metric
        self.spreads = any(cell.spread for cell in cells)
        self.gains = any(cell.gain is not None for cell in cells)
        self.span = 1 + self.spreads + self.gains

    def label(self, first: bool) -> str:
        unit = f", {self.metric.unit}" if self.metric.unit else ""
        blank = f'<th class="side" colspan="{self.span - 1}"></th>' if self.span > 1 else ""
        return f"<th{_edge(first)}>{escape(self.metric.label)}{unit}</th>{blank}"

    def cells(self, cell: Cell, first: bool) -> str:
        text = f"<td{_edge(first)}>{f'<b>{cell.text}</b>' if cell.best else cell.text}</td>"
        if self.spreads:
            text += f'<td class="side">{cell.spread}</td>'
        if self.gains:
            gain = cell.gain
            worse = (
                gain is not None
                and (gain < 0) == self.metric.higher_is_better
                and round(gain, self.metric.digits) != 0
            )
            shown = "" if gain is None else f"{gain:+.{self.metric.digits}f}"
            text += f'<td class="side {"worse" if worse else "gain"}">{shown}</td>'
        return text


def _edge(first: bool) -> str:
    return ' class="edge"' if first else ""


def _list(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="plain">{items}</ul>' if items else ""


def _grid(charts: Sequence[str]) -> str:
    items = "".join(f'<div class="card">{svg}</div>' for svg in charts)
    return f'<div class="grid">{items}</div>' if items else ""


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    return f'<dl class="card">{items}</dl>' if items else ""


def link(place: str) -> str:
    """A path or an address as a link's target: a path with every sign escaped that an address reads otherwise."""
    return place if "://" in place else quote(os.fsencode(place))


def _files(files: Sequence[tuple[str, str, str]]) -> str:
    items = "".join(
        f'<dt>{escape(label)}</dt><dd><a href="{escape(link(place))}"><code>{escape(place)}</code></a> '
        f"{escape(size)}</dd>"
        for label, place, size in files
    )
    return f'<dl class="card">{items}</dl>' if items else ""
