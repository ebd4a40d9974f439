"""What every chart is drawn on: SVG text by matplotlib without a display, in the page's own colours.

Colours of text and lines are names of CSS variables with a fallback that is legible on white and on black, so a chart
inside the page follows the reader's light or dark setting and the same chart as a file works too.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report.table import Metric, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
STYLES = ("-", "--", ":", "-.")


def look(number: int) -> tuple[str, str]:
    """(colour, line style) of the line of this number: where the colours are used up, they come again dashed."""
    return PALETTE[number % len(PALETTE)], STYLES[number // len(PALETTE) % len(STYLES)]


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty chart of so many inches."""
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


def as_svg(figure: Figure, salt: str) -> str:
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


def finite(row: Row, name: str, metric: Metric) -> bool:
    """Whether a method has this figure for every seed, as a number."""
    return bool(values := row.values(name, metric)) and bool(np.isfinite(values).all())


def plain(name: str) -> str:
    """Text that matplotlib shows as it is: between two dollars it would read mathematics."""
    return name.replace("$", r"\$")
