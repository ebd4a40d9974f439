"""Pictures of a run for report and tracking: confusion matrices, ROC and CMC curves, defect overlays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from pipeline.report.canvas import look, plain
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition.answers import given
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.sampler import Gallery, ViewBatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipeline.road.run import Run

SHOWN = 6
MOST_COLUMNS = 4
"""Panels beside each other."""


def confusion(matrices: Mapping[str, Any], classes: tuple[str, ...]) -> Drawing:
    """One matrix a network: rows are true classes, shares of each row."""
    columns, lines = grid(len(matrices))
    figure = _figure(3.2 * columns, 3.7 * lines)
    for i, (name, curves) in enumerate(matrices.items()):
        axes = figure.add_subplot(lines, columns, i + 1)
        matrix = np.array(curves["confusion"], float)
        matrix /= np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("answer, per cent of the row", fontsize=7)
        if i % columns == 0:
            axes.set_ylabel("true class", fontsize=7)
        if len(classes) <= 20:
            names = [plain(name) for name in classes]
            axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=7)
            axes.set_yticks(range(len(classes)), names, fontsize=7)
        if len(classes) <= 12:
            for (y, x), value in np.ndenumerate(matrix):
                if value >= 0.005:
                    axes.text(
                        x,
                        y,
                        f"{100 * value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=6,
                        color="white" if value > 0.5 else "black",
                    )
    return "Confusion on the test set: true class by row, per cent of it by column", _pixels(figure)


def grid(panels: int) -> tuple[int, int]:
    """(columns, rows) of so many panels."""
    columns = min(panels, MOST_COLUMNS)
    return columns, -(-panels // columns)


def reliability(bins: Mapping[str, Any], errors: Mapping[str, float]) -> Drawing:
    """One diagram a network (Guo et al., ICML 2017): how often it is right of those answers that it is so sure of, the
    distance to what it should be (the calibration error's summands), and below how many such answers there are.
    """
    columns, lines = grid(len(bins))
    figure = _figure(2.7 * columns, 3.3 * lines)
    panels = figure.subplots(
        2 * lines, columns, squeeze=False, sharex=True, gridspec_kw={"height_ratios": [3, 1] * lines}
    )
    most = max(max(found[0]) / max(sum(found[0]), 1) for found in bins.values())
    for i, (name, found) in enumerate(bins.items()):
        row, column = 2 * (i // columns), i % columns
        above, below = panels[row, column], panels[row + 1, column]
        count, sure, right = (np.array(x, float) for x in found)
        edges = np.linspace(0, 1, len(count) + 1)
        some, width = count > 0, 1 / len(count)
        above.bar(edges[:-1][some], right[some], width, align="edge", color="#93c5fd", label="right")
        low, high = np.minimum(sure, right), np.maximum(sure, right)
        above.bar(
            edges[:-1][some],
            (high - low)[some],
            width,
            bottom=low[some],
            align="edge",
            facecolor="#ef444455",
            edgecolor="#ef4444",
            hatch="///",
            linewidth=0.6,
            label="off by",
        )
        above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="as it should be")
        above.set_title(plain(name), fontsize=9)
        above.text(0.04, 0.93, f"ECE {errors[name]:.3f}", transform=above.transAxes, fontsize=8, va="top")
        above.set_xlim(0, 1)
        above.set_ylim(0, 1)
        below.bar(edges[:-1], count / max(count.sum(), 1), width, align="edge", color="#8b929e")
        below.set_ylim(0, 1.1 * most)
        for axes in (above, below):
            axes.tick_params(labelsize=7)
        below.set_xlabel("certainty", fontsize=8)
        if column == 0:
            above.set_ylabel("share that is right", fontsize=8)
            below.set_ylabel("answers", fontsize=8)
    for empty in panels[-2:, len(bins) - columns * (lines - 1) :].flat:
        empty.set_axis_off()
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    return "Reliability on the test set: how often answers of a certainty are right", _pixels(figure)


def curve(
    lines: Mapping[str, Any],
    title: str,
    x: str,
    y: str,
    logarithmic: bool,
    bands: Mapping[str, Any] | None = None,
) -> Drawing:
    """One line a network; an axis that is not logarithmic counts. `bands`: [xs, low, high] of some of them."""
    from matplotlib.ticker import MaxNLocator

    figure = _figure(8.0, 4.0)
    axes = figure.add_subplot()
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        xs, ys = np.array(xs, float), np.array(ys, float)
        seen = xs > 0 if logarithmic else np.ones(len(xs), bool)
        colour, style = look(i)
        axes.plot(xs[seen], ys[seen], color=colour, linestyle=style, label=name, linewidth=1.8)
        if bands and name in bands:
            at, low, high = (np.array(values, float) for values in bands[name])
            inside = at >= xs[seen].min()
            axes.fill_between(at[inside], low[inside], high[inside], color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, alpha=0.3)
    if logarithmic:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(frameon=False, fontsize=9, loc="outside right upper")
    axes.set_title(title, loc="left", fontsize=11)
    return title, _pixels(figure)


@torch.inference_mode()
def overlays(run: Run, outcome: Outcome) -> Drawing:
    """Test pictures with the largest defects: the picture, the truth, and what each network finds (red)."""
    recipe = outcome.recipe
    store = run.planner.store
    gallery = Gallery(store, outcome.prepared.samples.manifests["test"])
    everything = np.arange(len(gallery))
    masks = gallery.masks(everything)[..., 0] > 127
    order = np.argsort(-masks.mean(axis=(1, 2)), kind="stable")
    with_defect = order[: max(int(masks.any(axis=(1, 2)).sum()), 1)]
    spread = np.linspace(0, len(with_defect) - 1, min(SHOWN, len(with_defect))).astype(int)
    numbers = with_defect[spread]
    hr = gallery.hr(numbers)
    columns = {"picture": hr, "truth": _painted(hr, masks[numbers])}
    networks = [(teacher.network, store, 1, teacher.label) for teacher in outcome.prepared.all]
    seen = set()
    for job in outcome.jobs:
        name = job.group
        if name not in seen:
            seen.add(name)
            assert isinstance(job, RecognitionJob)
            networks.append((job.source(), run.output, job.gap, name))
    for source, place, gap, name in networks:
        pictures = given(gallery, numbers, recipe, gap)
        logits = source.load(place)(ViewBatch({"lr": pictures}, []).to("cpu")["lr"])["logits"]
        logits = F.interpolate(logits.float(), recipe.hr_size, mode="bilinear", align_corners=False)
        columns[name] = _painted(hr, logits.softmax(dim=1)[:, 1].numpy() > 0.5)
    figure = _figure(1.6 * len(columns), 1.7 * len(numbers))
    for c, (name, pictures) in enumerate(columns.items()):
        for r, picture in enumerate(pictures):
            axes = figure.add_subplot(len(numbers), len(columns), r * len(columns) + c + 1)
            axes.imshow(picture)
            axes.set_axis_off()
            if r == 0:
                axes.set_title(name, fontsize=8)
    return "Defects on test pictures: the truth, and what each network finds", _pixels(figure)


def _painted(pictures: np.ndarray, masks: np.ndarray) -> np.ndarray:
    red = np.array([255, 40, 40], np.float32)
    mixed = 0.45 * pictures + 0.55 * red
    return np.where(masks[..., None], mixed, pictures).astype(np.uint8)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
