"""Results as a table: one row a method, one group of columns a benchmark set, mean and spread over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pipeline.means import EXACT

Role = Literal["bicubic", "beside", "teacher", "assistant", "fused", "student"]
ROLES: tuple[Role, ...] = ("bicubic", "beside", "teacher", "assistant", "fused", "student")
GROUPS = {
    "bicubic": "baseline",
    "beside": "beside",
    "teacher": "teachers",
    "assistant": "assistant",
    "fused": "fused targets",
    "student": "students",
}

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
BOLD, FAINT, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of merit and how it is printed."""

    key: str
    """Its name in `Row.scores`."""
    label: str
    digits: int
    unit: str = ""
    higher_is_better: bool = True


TESTED = "benchmark"
"""What the tracking store's names of test figures start with, so that no name of a set is taken for a curve's."""
PSNR = Metric("psnr_y", "PSNR", 2, "dB")
SSIM = Metric("ssim_y", "SSIM", 4)
FIDELITY = Metric("fidelity", "fidelity", 2, "dB")
"""PSNR-Y against what the teachers make of the same LR picture."""
CONSISTENCY = Metric("consistency", "consistency", 2, "dB")
"""PSNR of the output, shrunk again, against LR; at most 99."""
SHARPNESS = Metric("sharpness", "sharpness", 3)
"""Gradient energy of luma over that of the teachers' pictures: 1 is as sharp as they are."""


@dataclass(frozen=True, slots=True)
class Row:
    """One method's results."""

    name: str
    role: Role
    scores: Mapping[str, Mapping[str, Sequence[float]]]
    """set -> metric key -> its value for each seed; sets and metrics may be missing."""
    parameters: int | None = None
    multiply_adds: int | None = None
    latency_ms: float | None = None
    """Of one picture, where it was measured."""
    series: str = ""
    """Of a method that was trained at several points (resolution gaps): what its rows share."""
    point: str = ""
    """Which of them this is, in short."""
    steps: int | None = None
    work: float | None = None
    """Multiply-adds of all that its method paid for, where comparisons are not of equal steps."""

    def values(self, name: str, metric: Metric) -> Sequence[float]:
        """The metric's values on set `name`, one a seed; empty where it was not measured."""
        return self.scores.get(name, {}).get(metric.key, ())


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table."""

    text: str
    spread: str = ""
    best: bool = False
    gain: float | None = None
    """Mean minus the baseline's mean."""


@dataclass(frozen=True, slots=True)
class Table:
    """Everything a renderer needs, as text, rows in order of role."""

    columns: tuple[tuple[str, Metric], ...]
    """(set, metric) of each column of figures."""
    rows: tuple[Row, ...]
    cells: tuple[tuple[Cell, ...], ...] = field(default=())


def sets_of(rows: Sequence[Row]) -> list[str]:
    """Names of the sets in the order in which they first occur."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def mean(values: Sequence[float]) -> float:
    """Mean over seeds. Raises ValueError without values."""
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over seeds; None below two, and where a value is infinite."""
    return statistics.stdev(values) if len(values) > 1 and math.isfinite(mean(values)) else None


def gain_over(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Difference of the means; None where one is missing or infinite."""
    gain = mean(ours) - mean(theirs) if ours and theirs else math.nan
    return gain if math.isfinite(gain) else None


def figure(value: float, digits: int) -> str:
    """A figure for people; `exact` for the infinite PSNR of pictures that are all reproduced exactly."""
    return EXACT if value == math.inf else f"{value:.{digits}f}"


Baseline = str | Mapping[str, str] | None
"""The student that gains are measured against; or for each student by name its own."""


def base_of(row: Row, rows: Sequence[Row], baseline: Baseline) -> Row | None:
    """The student that `row`'s gains are measured against; None for a baseline itself."""
    name = baseline.get(row.name) if isinstance(baseline, Mapping) else baseline
    return next((r for r in rows if r.role == "student" and r.name == name and r is not row), None)


def arrange(
    rows: Sequence[Row], metrics: Sequence[Metric] = (PSNR, SSIM), baseline: Baseline = None
) -> Table:
    """The table of `rows`; the best of each role is marked, gains of students are over the student
    `baseline`.
    """
    ordered = tuple(sorted(rows, key=lambda row: ROLES.index(row.role)))
    columns = tuple(
        (name, metric)
        for name in sets_of(rows)
        for metric in metrics
        if any(row.values(name, metric) for row in rows)
    )
    cells = tuple(
        tuple(_cell(row, *column, ordered, base_of(row, ordered, baseline)) for column in columns)
        for row in ordered
    )
    return Table(columns, ordered, cells)


def _cell(row: Row, name: str, metric: Metric, rows: Sequence[Row], base: Row | None) -> Cell:
    values = row.values(name, metric)
    if not values:
        return Cell("-")
    # What is printed alike is equally good.
    peers = [
        round(mean(v), metric.digits) for r in rows if r.role == row.role and (v := r.values(name, metric))
    ]
    value, deviation = mean(values), spread(values)
    gain = None
    if base is not None and row.role == "student" and row is not base:
        gain = gain_over(values, base.values(name, metric))
    return Cell(
        figure(value, metric.digits),
        "" if deviation is None else f"{PLUS_MINUS}{deviation:.{metric.digits}f}",
        len(peers) > 1 and round(value, metric.digits) == (max if metric.higher_is_better else min)(peers),
        gain,
    )


def gains(rows: Sequence[Row], metric: Metric = PSNR, baseline: Baseline = None) -> list[str]:
    """One sentence a student: its gain over `baseline` on each set, and whether that is more than seeds
    differ.
    """
    sentences = []
    for row in rows:
        base = base_of(row, rows, baseline)
        if row.role != "student" or base is None:
            continue
        parts = [
            _gain(name, gain, row.values(name, metric), base.values(name, metric), metric)
            for name in sets_of(rows)
            if (gain := gain_over(row.values(name, metric), base.values(name, metric))) is not None
        ]
        if parts:
            sentences.append(f"{row.name} against {base.name}: {', '.join(parts)}.")
    return sentences


def _gain(name: str, gain: float, ours: Sequence[float], theirs: Sequence[float], metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    text = f"{name} {gain:+.{metric.digits}f}{unit}"
    spreads = [s for s in (spread(ours), spread(theirs)) if s is not None]
    if not spreads:
        return f"{text} (one seed)"
    place = "beyond" if abs(gain) > max(spreads) else "within"
    return f"{text} ({place} the spread of {max(spreads):.{metric.digits}f} between seeds)"


def short(count: int | None) -> str:
    """A count for people: 24.7 k, 1.37 M, 158.8 G; a dash for None."""
    if count is None:
        return "-"
    digits = f"{count:.2e}"  # rounded first, so that 999999 is 1.00 M
    value, power = float(digits), int(digits.partition("e")[2])
    if power < 3:
        return str(count)
    step = min(power // 3, 4)
    return f"{value / 10 ** (3 * step):.{max(0, 2 - (power - 3 * step))}f} {' kMGT'[step]}"


def count(value: int | None) -> str:
    """A number of steps for people; a dash for None."""
    return "-" if value is None else f"{value:,}"


def work(value: float | None) -> str:
    """Multiply-adds of a whole training for people: 158 T, 2.31 P; a dash for None."""
    if value is None:
        return "-"
    return short(round(value)) if value < 1e15 else f"{value / 1e15:.3g} P"


def milliseconds(value: float | None) -> str:
    """A time for people: 0.42, 12.3; a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def render_table(
    rows: Sequence[Row],
    *,
    metrics: Sequence[Metric] = (PSNR, SSIM),
    baseline: Baseline = None,
    colour: bool = False,
) -> str:
    """The table for a terminal, columns aligned; with `colour` the best of each role is bold (for a tty)."""
    table = arrange(rows, metrics, baseline)
    costs = any(row.parameters is not None or row.multiply_adds is not None for row in rows)
    spreads = [
        max((len(cells[i].spread) for cells in table.cells), default=0) for i in range(len(table.columns))
    ]

    def padded(text: str, spread: str, i: int) -> str:
        return f"{text} {spread:<{spreads[i]}}" if spreads[i] else text

    timed = any(row.latency_ms is not None for row in rows)
    paid = any(row.work is not None for row in rows)
    head = ["method", *(["parameters", "mult-adds"] if costs else []), *(["ms"] if timed else [])]
    head += ["steps", "work"] if paid else []
    first = len(head)
    head += [padded(metric.label, "", i) for i, (_, metric) in enumerate(table.columns)]
    body = [
        [f"  {row.name}", *([short(row.parameters), short(row.multiply_adds)] if costs else [])]
        + ([milliseconds(row.latency_ms)] if timed else [])
        + ([count(row.steps), work(row.work)] if paid else [])
        + [padded(cell.text, cell.spread, i) for i, cell in enumerate(cells)]
        for row, cells in zip(table.rows, table.cells)
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = [_sets(table, widths, first), _line(head, widths), "-" * (sum(widths) + 2 * (len(widths) - 1))]
    role = None
    for row, line, cells in zip(table.rows, body, table.cells):
        if row.role != role:
            role = row.role
            lines.append(f"{FAINT}{GROUPS[role]}{PLAIN}" if colour else GROUPS[role])
        marks = [False] * first + [cell.best for cell in cells]
        lines.append(_line(line, widths, marks if colour else None))
    return "\n".join(lines)


def _sets(table: Table, widths: Sequence[int], first: int) -> str:
    """The line of set names, each in the middle of its columns."""
    line = " " * (sum(widths[:first]) + 2 * (first - 1))
    for name in dict.fromkeys(name for name, _ in table.columns):
        own = [w for w, (column, _) in zip(widths[first:], table.columns) if column == name]
        line += "  " + name.center(sum(own) + 2 * (len(own) - 1))
    return line.rstrip()


def _line(cells: Sequence[str], widths: Sequence[int], bold: Sequence[bool] | None = None) -> str:
    padded = [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths))]
    if bold is not None:
        padded = [f"{BOLD}{text}{PLAIN}" if mark else text for text, mark in zip(padded, bold)]
    return "  ".join(padded).rstrip()
