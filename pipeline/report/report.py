"""The report of a run: `report.md` and `report.html` with the table, the curves, the pictures and where
things are.

The HTML page holds everything in itself, so it can be mailed; the markdown one keeps its pictures in
`report/`.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.means import EXACT
from pipeline.report.charts import Points, all_charts
from pipeline.report.extra import Extra
from pipeline.report.html import Page, figure, link, page
from pipeline.report.markdown import one_line, plain
from pipeline.report.table import (
    PSNR,
    SSIM,
    Baseline,
    Metric,
    Row,
    arrange,
    base_of,
    count,
    gain_over,
    gains,
    mean,
    milliseconds,
    render_table,
    sets_of,
    short,
    spread,
    work,
)
from pipeline.report.table import figure as show

__all__ = ["PSNR", "SSIM", "File", "Metric", "Report", "Row", "render_table", "write_report"]

PICTURES = "report"


@dataclass(frozen=True, slots=True)
class File:
    """Something that the run has made."""

    label: str
    path: str
    """A path, shown relative to the report, or a URI."""
    note: str = ""
    """What is to be said of it."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run has found. Everything but title and rows may be left out."""

    title: str
    rows: Sequence[Row]
    summary: str = ""
    """A sentence or two under the title."""
    metrics: Sequence[Metric] = (PSNR, SSIM)
    """Columns of the table for each set; the first is the one that charts and gains speak of."""
    baseline: Baseline = None
    """The student that gains are measured against, or of each student its own."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """The recipe in short: scale, data, teachers, budget, protocol, ..."""
    recipe: str = ""
    """The recipe in full, as YAML."""
    warnings: Sequence[str] = ()
    extras: Sequence[Extra] = ()
    curves: Mapping[str, Mapping[str, Points]] = field(default_factory=dict)
    """metric -> method -> (step, value) in any order."""
    pictures: Sequence[tuple[str, np.ndarray]] = ()
    """(caption, (H, W, 3) uint8)."""
    files: Sequence[File] = ()
    home: str = ""
    """The folder where the report will lie, where that is another one than it is written to."""
    mlflow: str = ""
    """The command that opens the MLflow page, or its address."""


def write_report(folder: str | Path, report: Report) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` into `folder`; returns their paths. Each file appears whole or
    not at all.
    """
    root, home = Path(folder), Path(report.home or folder)
    (root / PICTURES).mkdir(parents=True, exist_ok=True)
    charts = all_charts(report.rows, report.metrics[0], report.curves)
    pictures = [(caption, _png(picture)) for caption, picture in report.pictures]
    for stem, svg in charts.items():
        _write(root / PICTURES / f"{stem}.svg", svg.encode())
    for i, (_, data) in enumerate(pictures):
        _write(root / PICTURES / f"picture_{i + 1}.png", data)
    markdown, web = root / "report.md", root / "report.html"
    _write(markdown, _markdown(report, home, list(charts)).encode())
    _write(web, _html(report, home, charts, pictures).encode())
    return markdown, web


def _markdown(report: Report, root: Path, charts: Sequence[str]) -> str:
    parts = [f"# {report.title}", report.summary]
    parts += [f"> **Warning:** {one_line(warning)}" for warning in report.warnings]
    parts += [_markdown_table(report)]
    parts += ["\n".join(f"- {sentence}" for sentence in _gains(report))]
    parts += [extra.markdown() for extra in report.extras]
    if report.pictures:
        parts.append("## Pictures")
        for i, (caption, _) in enumerate(report.pictures):
            parts.append(f"{one_line(caption)}\n\n![{plain(caption)}]({PICTURES}/picture_{i + 1}.png)")
    if charts:
        parts.append("## Charts")
        parts.append("\n".join(f"![{stem}]({PICTURES}/{stem}.svg)" for stem in charts))
    if report.facts:
        parts += [
            "## The run",
            "\n".join(f"- {key}: {one_line(value)}" for key, value in report.facts.items()),
        ]
    if report.files:
        parts.append("## Files")
        parts.append(
            "\n".join(
                f"- {plain(f.label)}: [{plain(_place(f, root))}](<{link(_place(f, root))}>){_beside(f, root)}"
                for f in report.files
            )
        )
    if report.mlflow:
        parts += ["## MLflow", f"```\n{report.mlflow}\n```"]
    if report.recipe:
        parts += ["## Recipe", f"```yaml\n{report.recipe.rstrip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(report: Report) -> str:
    table = arrange(report.rows, report.metrics, report.baseline)
    timed = any(row.latency_ms is not None for row in table.rows)
    paid = any(row.work is not None for row in table.rows)
    head = [
        "method",
        "parameters",
        "multiply-adds",
        *(["ms a picture"] if timed else []),
        *(["steps", "work"] if paid else []),
        *(f"{plain(name)} {metric.label}" for name, metric in table.columns),
    ]
    lines = [head, [":--", *["--:"] * (len(head) - 1)]]
    for row, cells in zip(table.rows, table.cells):
        figures = [f"{cell.text} {cell.spread}".rstrip() for cell in cells]
        figures = [f"**{text}**" if cell.best else text for text, cell in zip(figures, cells)]
        cost = [short(row.parameters), short(row.multiply_adds)]
        cost += [milliseconds(row.latency_ms)] if timed else []
        cost += [count(row.steps), work(row.work)] if paid else []
        lines.append([plain(row.name), *cost, *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html(
    report: Report, root: Path, charts: Mapping[str, str], pictures: Sequence[tuple[str, bytes]]
) -> str:
    drawn = [
        figure(caption, f"data:image/png;base64,{base64.b64encode(d).decode()}") for caption, d in pictures
    ]
    return page(
        Page(
            title=report.title,
            summary=report.summary,
            facts=report.facts,
            warnings=report.warnings,
            cards=_cards(report),
            table=arrange(report.rows, report.metrics, report.baseline),
            gains=_gains(report),
            extras=report.extras,
            standings=[svg for stem, svg in charts.items() if not stem.startswith("curve_")],
            curves=[svg for stem, svg in charts.items() if stem.startswith("curve_")],
            pictures=drawn,
            files=[(f.label, _place(f, root), _remark(f, root)) for f in report.files],
            mlflow=report.mlflow,
            recipe=report.recipe,
        )
    )


def _gains(report: Report) -> list[str]:
    return gains(report.rows, report.metrics[0], report.baseline)


def _cards(report: Report) -> list[tuple[str, str, str]]:
    """(figure, what it is, remark) of what one wants to know first: the best student on the first set, and
    its size.
    """
    metric, names = report.metrics[0], sets_of(report.rows)
    students = [row for row in report.rows if row.role == "student"]
    if not names or not any(row.values(names[0], metric) for row in students):
        return []
    scored = [(mean(row.values(names[0], metric)), row) for row in students if row.values(names[0], metric)]
    better = max if metric.higher_is_better else min
    value, best = better(scored, key=lambda pair: pair[0])
    unit = f" {metric.unit}" if metric.unit else ""
    deviation = spread(best.values(names[0], metric))
    seeds = (
        f"{len(best.values(names[0], metric))} seeds, spread {deviation:.{metric.digits}f}"
        if deviation is not None
        else ""
    )
    shown = show(value, metric.digits)
    cards = [(shown + unit * (shown != EXACT), f"{best.name} on {names[0]}", seeds)]
    bicubic = next((r for r in report.rows if r.role == "bicubic"), None)
    for row in (base_of(best, report.rows, report.baseline), bicubic):
        theirs = row.values(names[0], metric) if row is not None else ()
        if row is not None and (gain := gain_over(best.values(names[0], metric), theirs)) is not None:
            cards.append((f"{gain:+.{metric.digits}f}{unit}", f"over {row.name}", names[0]))
    teachers = [row for row in report.rows if row.role == "teacher"]
    costs = [row.multiply_adds for row in teachers if row.multiply_adds]
    if costs and best.multiply_adds:
        ratio = sum(costs) / best.multiply_adds
        what = "fewer multiply-adds" if len(costs) > 1 else "fewer multiply-adds than its teacher"
        together = f"than its {len(costs)} teachers together" if len(costs) > 1 else ""
        cards.append((f"{ratio:,.0f}x", what, together))
    if best.parameters is not None:
        cards.append((short(best.parameters), "parameters", best.name))
    return cards


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _place(file: File, root: Path) -> str:
    if "://" in file.path:
        return file.path
    return Path(os.path.relpath(file.path, root)).as_posix()


_PATH = re.compile(r"(?:file://)?(?<![\w.:/~])/[^\s:;,'\"`()<>]+")


def portable(value: Any) -> Any:
    """JSON values with the absolute paths in their texts relative to the working folder: what leaves this machine."""
    if isinstance(value, str):
        text = value.replace(f"{Path.cwd().as_uri()}/", "").replace(f"{Path.cwd()}/", "")
        return _PATH.sub(lambda found: os.path.relpath(found[0].removeprefix("file://")), text)
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _size(file: File, root: Path) -> str:
    path = Path(file.path)
    return f"{short(path.stat().st_size)}B" if "://" not in file.path and path.is_file() else ""


def _remark(file: File, root: Path) -> str:
    """Its size and what is to be said of it."""
    return ", ".join(part for part in (_size(file, root), file.note) if part)


def _beside(file: File, root: Path) -> str:
    return f" ({plain(remark)})" if (remark := _remark(file, root)) else ""


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
