"""Charts as SVG text, drawn by matplotlib without a display.

Colours of text and lines are names of CSS variables with a fallback that is legible on white and on black,
so a chart inside the page follows the reader's light or dark setting and the same chart as a file works
too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.table import PSNR, Metric, Row, mean, sets_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]

PALETTE = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#ec4899", "#84cc16")
ROLE_COLOURS = {
    "bicubic": "#8b929e",
    "teacher": "#8b5cf6",
    "assistant": "#0ea5e9",
    "beside": "#94a3b8",
    "fused": "#f59e0b",
    "student": "#10b981",
}
INK, LINE = "#010203", "#040506"  # stand for the page's colours until the SVG is written
VARIABLES = {INK: "var(--ink, #7d8590)", LINE: "var(--line, #7d859055)"}
STEM_LENGTH = 60
"""Characters of a name in a file's name: systems take 255 bytes, and a character may have four."""
POINTS = 300
"""More points a curve than this are averaged in bins: they would not be told apart, only slow the page
down.
"""


def curves(label: str, methods: Mapping[str, Points]) -> str:
    """A metric over steps, one line a method; losses that span decades get a logarithmic axis."""
    figure, axes = _axes(5.2, 2.9)
    values = [value for points in methods.values() for _, value in points if np.isfinite(value)]
    for i, (name, points) in enumerate(methods.items()):
        steps, means = binned(points)
        marker = "o" if len(steps) < 15 else None
        axes.plot(
            steps,
            means,
            color=PALETTE[i % len(PALETTE)],
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
    if len(methods) > 1 or next(iter(methods), "") != label:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return _svg(figure, f"curves {label}")


def ladder(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str:
    """Where each method stands on set `name`: a dot for each seed, a bar at the mean, weakest at the bottom.

    Bicubic is named below instead where it is so far off that the others would be one dot.
    """
    measured = sorted(
        (row for row in rows if _finite(row, name, metric)),
        key=lambda row: mean(row.values(name, metric)),
        reverse=not metric.higher_is_better,
    )
    exact = [row.name for row in rows if row.values(name, metric) and not _finite(row, name, metric)]
    note = f"{', '.join(exact)}: exact" if exact else ""
    others = [mean(row.values(name, metric)) for row in measured if row.role != "bicubic"]
    for row in [row for row in measured if row.role == "bicubic" and len(others) > 1]:
        value = mean(row.values(name, metric))
        if min(abs(value - other) for other in others) > 0.5 * (max(others) - min(others)):
            measured.remove(row)
            note = f"{row.name}: {value:.{metric.digits}f}, off this scale"
    figure, axes = _axes(5.2, 0.75 + 0.27 * len(measured))
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
    return _svg(figure, f"ladder {name} {metric.key}")


def cost(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str | None:
    """A metric against multiply-adds; None where fewer than two methods have both."""
    return _against(rows, name, metric, "cost", "multiply-adds", lambda row: row.multiply_adds)


def latency(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str | None:
    """A metric against milliseconds a picture; None where fewer than two methods have both."""
    return _against(
        rows, name, metric, "time", "ms a picture (the run's machine)", lambda row: row.latency_ms
    )


def _against(
    rows: Sequence[Row],
    name: str,
    metric: Metric,
    what: str,
    unit_of_x: str,
    of: Callable[[Row], float | None],
) -> str | None:
    """A metric against what `of` says of a method, on a logarithmic axis."""
    known = [row for row in rows if of(row) and _finite(row, name, metric)]
    if len({of(row) for row in known}) < 2:
        return None
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure, axes = _axes(5.2, 3.1)
    axes.set_xscale("log")
    for role in ROLE_COLOURS:
        own = [row for row in known if row.role == role]
        if own:
            x, y = [of(row) or 0 for row in own], [mean(row.values(name, metric)) for row in own]
            axes.plot(x, y, "o", color=ROLE_COLOURS[role], markersize=7, markeredgewidth=0, label=role)
    _annotate(axes, known, name, metric, of)
    axes.margins(x=0.35, y=0.12)
    axes.ticklabel_format(axis="y", useOffset=False)
    # One to three labels a decade, as people say them: 20 M, 50 M, 100 M; of milliseconds 0.5, 1, 2.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(EngFormatter(places=0) if what == "cost" else "{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(unit_of_x)
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_title(
        f"{plain(name)}: {metric.label}{unit} against {what}", loc="left", fontsize=10.5, color=INK
    )
    return _svg(figure, f"{what} {name} {metric.key}")


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


def _annotate(
    axes: Axes, rows: Sequence[Row], name: str, metric: Metric, of: Callable[[Row], float | None]
) -> None:
    """Names beside the dots; methods at one place would write over each other, so they alternate sides."""
    sides: dict[float, int] = {}
    for row in sorted(rows, key=lambda row: -mean(row.values(name, metric))):
        place = of(row) or 0
        turn = sides.get(place, 0)
        sides[place] = turn + 1
        left = turn % 2 == 1
        axes.annotate(
            row.name,
            (place, mean(row.values(name, metric))),
            xytext=(-7 if left else 7, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8.5,
            color=INK,
        )


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.grid(True, color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.xaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(9)
    return figure, axes


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an `<svg>` element: text stays text, ids are unlike other charts', bytes repeat."""
    import matplotlib

    buffer = io.StringIO()
    # matplotlib measures text with its own font; the page's is about as wide.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's has them
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family:[^;\"]*;?", "", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for placeholder, variable in VARIABLES.items():
        text = text.replace(placeholder, variable)
    return text.replace("<svg ", '<svg font-family="system-ui, sans-serif" ', 1).strip()


def _finite(row: Row, name: str, metric: Metric) -> bool:
    return bool(values := row.values(name, metric)) and bool(np.isfinite(values).all())


def plain(name: str) -> str:
    """Text that matplotlib shows as it is: between two dollars it would read mathematics."""
    return name.replace("$", r"\$")
