"""Charts of a figure against what it costs: a dot a method; where methods were trained at several points (resolution
gaps), a line a method through them, and what nothing beats in both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.report.canvas import INK, ROLE_COLOURS, as_svg, finite, look, new_axes, plain
from pipeline.report.table import PSNR, Metric, Row, mean, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT = "#f59e0b"
LINE = 10.0
"""Points between names one below the other."""
Of = Callable[[Row], float | None]


def cost(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str | None:
    """A metric against multiply-adds; None where fewer than two methods have both."""
    return _against(rows, name, metric, "cost", "multiply-adds", lambda row: row.multiply_adds)


def latency(rows: Sequence[Row], name: str, metric: Metric = PSNR) -> str | None:
    """A metric against milliseconds a picture; None where fewer than two methods have both."""
    return _against(
        rows, name, metric, "time", "ms a picture (the run's machine)", lambda row: row.latency_ms
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, score) those for which no other costs no more and scores no less, and one of both truly: the Pareto
    front, cheapest first.
    """

    def beaten(cost: float, score: float) -> bool:
        return any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)

    return sorted(point for point in points if not beaten(*point))


def stairs(plot: Any, points: Sequence[tuple[float, float]], **options: Any) -> None:
    """Draw a front: the best score that a cost buys, up to the next cost."""
    plot.step([c for c, _ in points], [s for _, s in points], where="post", color=FRONT, **options)


def _against(rows: Sequence[Row], name: str, metric: Metric, what: str, unit_of_x: str, of: Of) -> str | None:
    """A metric against what `of` says of a method, on a logarithmic axis."""
    known = [row for row in rows if of(row) and finite(row, name, metric)]
    if len({of(row) for row in known}) < 2:
        return None
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    lines: dict[str, list[Row]] = {}
    for row in known:
        if row.series:
            lines.setdefault(row.series, []).append(row)
    figure, axes = new_axes(5.2, 3.9 if lines else 3.1)
    axes.set_xscale("log")
    single = [row for row in known if not row.series]
    for role in ROLE_COLOURS:
        own = [row for row in single if row.role == role]
        if own:
            x, y = [of(row) or 0 for row in own], [mean(row.values(name, metric)) for row in own]
            shape = "D" if lines else "o"
            axes.plot(x, y, shape, color=ROLE_COLOURS[role], markersize=7, markeredgewidth=0, label=role)
    if lines:
        bars = _lines(axes, lines, name, metric, of)
        _stairs(axes, known, name, metric, of)
        axes.margins(x=0.12, y=0.14)
        legend = figure.legend(
            frameon=False, fontsize=8, labelcolor=INK, loc="outside lower center", ncols=3, handlelength=2.4
        )
        if bars:
            legend.set_title("bars: standard deviation over seeds")
            legend.get_title().set(color=INK, fontsize=8)
    else:
        axes.margins(x=0.35, y=0.12)
    _annotate(axes, single, name, metric, of)
    axes.ticklabel_format(axis="y", useOffset=False)
    # One to three labels a decade, as people say them: 20 M, 50 M, 100 M; of milliseconds 0.5, 1, 2.
    costs = [of(row) or 0 for row in known]
    narrow = bool(lines) and max(costs) < 5 * min(costs)
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if narrow else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(EngFormatter(places=0) if what == "cost" else "{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(unit_of_x)
    unit = f" ({metric.unit})" if metric.unit else ""
    axes.set_title(
        f"{plain(name)}: {metric.label}{unit} against {what}", loc="left", fontsize=10.5, color=INK
    )
    return as_svg(figure, f"{what} {name} {metric.key}")


def _lines(axes: Axes, lines: dict[str, list[Row]], name: str, metric: Metric, of: Of) -> bool:
    """A line a method through its points in their order, with the spread of its seeds, and each point's name once, at
    the highest method; whether there is a spread.
    """
    places: dict[str, list[tuple[float, float]]] = {}
    spreads = False
    for number, (series, rows) in enumerate(lines.items()):
        x, y = [of(row) or 0 for row in rows], [mean(row.values(name, metric)) for row in rows]
        bars = [spread(row.values(name, metric)) or 0.0 for row in rows]
        spreads = spreads or any(bars)
        colour, style = look(number)
        axes.errorbar(
            x,
            y,
            yerr=bars if any(bars) else None,
            color=colour,
            linestyle=style,
            marker="o",
            markersize=4.5,
            linewidth=1.6,
            elinewidth=0.9,
            capsize=2,
            label=plain(series),
        )
        for row, place in zip(rows, zip(x, (a + b for a, b in zip(y, bars)))):
            places.setdefault(row.point, []).append(place)
    for point, found in places.items():
        axes.annotate(
            point,
            max(found, key=lambda place: place[1]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )
    return spreads


def _stairs(axes: Axes, rows: Sequence[Row], name: str, metric: Metric, of: Of) -> None:
    sign = 1.0 if metric.higher_is_better else -1.0
    best = front([(float(of(row) or 0), sign * mean(row.values(name, metric))) for row in rows])
    shown = [(x, sign * y) for x, y in best]
    stairs(axes, shown, label="Pareto front", linewidth=5, alpha=0.25, zorder=0.5)


def _annotate(axes: Axes, rows: Sequence[Row], name: str, metric: Metric, of: Of) -> None:
    """Names beside the dots, towards the middle of the axis. Methods at nearly one cost would write over each other, so
    a name moves down until it is free of the one above, and all of a side up where the lowest would leave the chart.
    """
    axes.autoscale_view()
    points = 72 / axes.figure.dpi
    middle, bottom = math.sqrt(math.prod(axes.get_xlim())), axes.bbox.y0 * points + LINE
    for left in (False, True):
        own = [row for row in rows if ((of(row) or 0) > middle) is left]
        own.sort(key=lambda row: -mean(row.values(name, metric)))
        places = [(of(row) or 0, mean(row.values(name, metric))) for row in own]
        heights = [axes.transData.transform(place)[1] * points for place in places]
        free: list[float] = []
        for height in heights:
            free.append(min(height, free[-1] - LINE) if free else height)
        up = max(bottom - free[-1], 0.0) if free else 0.0
        for row, place, height, at in zip(own, places, heights, free, strict=True):
            axes.annotate(
                row.name,
                place,
                xytext=(-7 if left else 7, at + up - height),
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                fontsize=8.5,
                color=INK,
            )
