"""Charts as SVG text: curves over steps, where each method stands, and which of them a run's results allow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.report.canvas import INK, LINE, ROLE_COLOURS, as_svg, finite, look, new_axes, plain
from pipeline.report.pareto import cost, latency
from pipeline.report.table import PSNR, Metric, Row, mean, sets_of

Points = Sequence[tuple[int, float]]

MANY = 6
"""More lines than this have their names below the chart, where they cover none of them."""
STEM_LENGTH = 60
"""Characters of a name in a file's name: systems take 255 bytes, and a character may have four."""
POINTS = 300
"""More points a curve than this are averaged in bins: they would not be told apart, only slow the page
down.
"""


def curves(label: str, methods: Mapping[str, Points]) -> str:
    """A metric over steps, one line a method; losses that span decades get a logarithmic axis."""
    many = len(methods) > MANY
    figure, axes = new_axes(5.2, 2.9 + 0.19 * (len(methods) + 1) // 2 * many)
    values = [value for points in methods.values() for _, value in points if np.isfinite(value)]
    for i, (name, points) in enumerate(methods.items()):
        steps, means = binned(points)
        colour, style = look(i)
        marker = "o" if len(steps) < 15 else None
        axes.plot(
            steps,
            means,
            color=colour,
            linestyle=style,
            linewidth=1.8,
            marker=marker,
            markersize=3,
            label=name,
        )
    if values and min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel("step")
    axes.set_title(label, loc="left", fontsize=10.5, color=INK)
    if many:
        figure.legend(frameon=False, fontsize=8, labelcolor=INK, loc="outside lower center", ncols=2)
    elif len(methods) > 1 or next(iter(methods), "") != label:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return as_svg(figure, f"curves {label}")


def ladder(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str:
    """Where each method stands on set `name`: a dot for each seed, a bar at the mean, weakest at the bottom.

    Bicubic is named below instead where it is so far off that the others would be one dot.
    """
    measured = sorted(
        (row for row in rows if finite(row, name, metric)),
        key=lambda row: mean(row.values(name, metric)),
        reverse=not metric.higher_is_better,
    )
    exact = [row.name for row in rows if row.values(name, metric) and not finite(row, name, metric)]
    note = f"{', '.join(exact)}: exact" if exact else ""
    others = [mean(row.values(name, metric)) for row in measured if row.role != "bicubic"]
    for row in [row for row in measured if row.role == "bicubic" and len(others) > 1]:
        value = mean(row.values(name, metric))
        if min(abs(value - other) for other in others) > 0.5 * (max(others) - min(others)):
            measured.remove(row)
            note = f"{row.name}: {value:.{metric.digits}f}, off this scale"
    figure, axes = new_axes(5.2, 0.75 + 0.27 * len(measured))
    for y, row in enumerate(measured):
        values = list(row.values(name, metric))
        colour = ROLE_COLOURS[row.role]
        axes.plot([mean(values)] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot(values, [y] * len(values), "o", color=colour, markersize=4.5, alpha=0.65, markeredgewidth=0)
    axes.set_yticks(range(len(measured)), [row.name for row in measured])
    axes.set_ylim(-0.7, len(measured) - 0.3)
    axes.grid(True, axis="both", color=LINE, linewidth=0.7)
    axes.margins(x=0.06)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.set_xlabel(note, loc="left")
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_title(f"{plain(name)}: {metric.label}{unit}", loc="left", fontsize=10.5, color=INK)
    return as_svg(figure, f"ladder {name} {metric.key}")


def all_charts(
    rows: Sequence[Row], metric: Metric, lines: Mapping[str, Mapping[str, Points]]
) -> dict[str, str]:
    """Every chart that the results allow: file stem -> SVG. A stem is short, and no two are one file anywhere."""
    charts: dict[str, str] = {}

    def add(kind: str, name: str, svg: str) -> None:
        stem = first = f"{kind}_" + re.sub(r"[^\w-]+", "_", name)[:STEM_LENGTH]
        number = 1
        while stem.casefold() in {known.casefold() for known in charts}:
            stem = f"{first}-{(number := number + 1)}"
        charts[stem] = svg

    for name in sets_of(rows):
        add("ladder", name, ladder(rows, name, metric))
    for name in sets_of(rows)[:1]:
        for kind, draw in (("cost", cost), ("latency", latency)):
            if svg := draw(rows, name, metric):
                add(kind, name, svg)
    for label, methods in lines.items():
        if any(methods.values()):
            add("curve", label, curves(label, methods))
    return charts


def binned(points: Points, count: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) in order of step, averaged in at most `count` bins of equal numbers of points."""
    ordered = np.array(sorted(points), dtype=np.float64).reshape(-1, 2)
    if len(ordered) > count:
        ordered = np.array([part.mean(axis=0) for part in np.array_split(ordered, count)])
    return ordered[:, 0], ordered[:, 1]
