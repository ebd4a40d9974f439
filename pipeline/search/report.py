"""What a sweep came to: a table, the best recipe as a file, two pictures."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import yaml

from pipeline.report.pareto import stairs
from pipeline.report.table import Metric
from pipeline.search.space import text, with_values
from pipeline.search.sweep import Sweep
from pipeline.search.trial import Trial


def rows(sweep: Sweep) -> list[dict[str, Any]]:
    """One row a trial, by number."""
    front = {t.number for t in sweep.front()}
    return [
        {
            "trial": t.number,
            "status": t.status,
            "values": t.values,
            "accuracy": t.accuracy,
            "multiply_adds": t.multiply_adds,
            "steps": t.steps,
            "cause": t.cause,
            "pareto": t.number in front,
        }
        for _, t in sorted(sweep.trials.items())
    ]


def summary(sweep: Sweep, files: dict[str, str]) -> dict[str, Any]:
    """The command's JSON: {trials, best, steps, steps_without_stopping, files}."""
    best = sweep.best()
    return {
        "trials": rows(sweep),
        "best": rows(sweep)[best.number] if best else None,
        "steps": sum(t.steps for t in sweep.trials.values()),
        "steps_without_stopping": sweep.plan.budget * len(sweep.trials),
        "files": files,
    }


def table(sweep: Sweep) -> str:
    """The trials, best first; `*` marks the Pareto front."""
    paths = [a.path for a in sweep.plan.space.axes]
    name, digits = metric(sweep).label, metric(sweep).digits
    head = ["trial", *(p.removeprefix("method.") for p in paths), name, "mult-adds", "steps", "status"]
    front = {t.number for t in sweep.front()}
    lines = [head]
    for t in ordered(sweep):
        mark = "*" if t.number in front and sweep.plan.objective == "pareto" else ""
        shown = "-" if math.isnan(t.accuracy) else f"{t.accuracy:.{digits}f}"
        cells = [f"{t.number}{mark}", *(text(t.values[p]) for p in paths), shown]
        lines.append([*cells, f"{t.multiply_adds / 1e6:.3g} M", str(t.steps), t.status])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    shown_lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths)).rstrip() for line in lines]
    taken, whole = sum(t.steps for t in sweep.trials.values()), sweep.plan.budget * len(sweep.trials)
    saved = f"{taken} of {whole} steps taken" + (f": {1 - taken / whole:.0%} saved" if taken < whole else "")
    causes = [f"{t.label} failed: {t.cause}" for t in ordered(sweep) if t.status == "failed"]
    return "\n".join([shown_lines[0], "-" * len(shown_lines[0]), *shown_lines[1:], saved, *causes])


def metric(sweep: Sweep) -> Metric:
    """What the trials are compared by."""
    return sweep.plan.task.metric(sweep.plan.recipe)


def ordered(sweep: Sweep) -> list[Trial]:
    """Finished trials by accuracy, then stopped ones by how far they came, then the rest."""
    rank = {"finished": 0, "stopped": 1, "running": 2, "failed": 3}

    def key(t: Trial) -> tuple[int, int, float]:
        return rank[t.status], -t.steps if t.status != "finished" else 0, -t.accuracy if t.curve else 0.0

    return sorted(sweep.trials.values(), key=key)


def write(sweep: Sweep) -> dict[str, str]:
    """Leave trials.json, best.yaml and the pictures in the sweep's folder; returns where."""
    made: dict[str, str] = {}

    def put(name: str, data: bytes) -> None:
        sweep.store.write_bytes(name, data)
        made[name] = sweep.store.where(name)

    if (best := sweep.best()) is not None:
        put("best.yaml", best_recipe(sweep, best).encode())
    measured = [t for _, t in sorted(sweep.trials.items()) if t.curve]
    if measured:
        put("parallel.png", parallel_picture(sweep, measured))
        put("pareto.png", pareto_picture(sweep, measured))
    put("trials.json", json.dumps(_finite(rows(sweep)), indent=1).encode())
    return made


def best_recipe(sweep: Sweep, best: Trial) -> str:
    """The recipe with the best trial's values and its own full length, ready to run."""
    plan = sweep.plan
    recipe = with_values(plan.recipe, best.values, best.label)
    head = (
        f"# The best of {len(sweep.trials)} trials of {plan.budget} steps over {plan.space.name}: trial {best.number}, "
        f"{metric(sweep).label} {best.accuracy:.{metric(sweep).digits}f} on the held-out pictures.\n# "
        + ", ".join(f"{path}: {text(value)}" for path, value in best.values.items())
        + "\n"
    )
    return head + yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=110)


def parallel_picture(sweep: Sweep, trials: list[Trial]) -> bytes:
    """PNG: one vertical axis a recipe path and one for the accuracy, one line a trial, coloured by accuracy."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    axes_ = sweep.plan.space.axes
    columns: list[tuple[str, list[float], list[tuple[float, str]]]] = []
    for axis in axes_:
        if axis.kind == "choice":
            places = [float(axis.arguments.index(t.values[axis.path])) for t in trials]
            ticks = [(float(i), text(v)) for i, v in enumerate(axis.arguments)]
        else:
            log = axis.kind == "loguniform"
            places = [math.log10(t.values[axis.path]) if log else float(t.values[axis.path]) for t in trials]
            low, high = axis.ends()[0], axis.ends()[-1]
            spots = np.geomspace(low, high, 5) if log else np.linspace(low, high, 5)
            ticks = [(math.log10(s) if log else float(s), f"{s:.3g}") for s in spots]
        columns.append((axis.path, places, ticks))
    scores = [t.accuracy for t in trials]
    span = (max(scores) - min(scores)) or 1.0
    digits = max(2, 1 - math.floor(math.log10(span / 4)))  # ticks that can be told apart
    spots = np.linspace(min(scores), max(scores), 5)
    columns.append((metric(sweep).label, scores, [(float(s), f"{s:.{digits}f}") for s in spots]))
    figure = Figure(figsize=(2.0 + 1.9 * len(columns), 4.2), layout="constrained")
    plot = figure.add_subplot()
    lines = []
    for _, places, ticks in columns:
        low, high = min(t for t, _ in ticks), max(t for t, _ in ticks)
        lines.append([(p - low) / ((high - low) or 1.0) for p in places])
    for number in sorted(range(len(trials)), key=lambda i: scores[i]):
        shade = colormaps["viridis"](
            0.85 * (1 - (scores[number] - min(scores)) / span)
        )  # the best is darkest
        whole = trials[number].status == "finished"
        plot.plot(
            range(len(columns)),
            [line[number] for line in lines],
            color=shade,
            linewidth=2.0 if whole else 1.0,
            linestyle="-" if whole else ":",
        )
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
    for x, (_, _, ticks) in enumerate(columns):
        plot.axvline(x, color="#8b929e", linewidth=0.8)
        low, high = min(t for t, _ in ticks), max(t for t, _ in ticks)
        for place, label in ticks:
            plot.text(
                x + 0.03, (place - low) / ((high - low) or 1.0), label, fontsize=8, va="center", bbox=box
            )
    plot.set_xticks(range(len(columns)), [name for name, _, _ in columns])
    plot.set_yticks([])
    plot.set_xlim(-0.35, len(columns) - 0.6)
    plot.set_title(f"{len(trials)} trials; dotted: stopped early", loc="left", fontsize=10)
    for side in plot.spines.values():
        side.set_visible(False)
    return _png(figure)


def pareto_picture(sweep: Sweep, trials: list[Trial]) -> bytes:
    """PNG: accuracy against multiply-adds, the front as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    plot = figure.add_subplot()
    for status, colour, marker in (
        ("finished", "#3b82f6", "o"),
        ("stopped", "#b9c0cb", "x"),
        ("running", "#b9c0cb", "+"),
    ):
        some = [t for t in trials if t.status == status]
        if some:
            costs, scores = [t.multiply_adds / 1e6 for t in some], [t.accuracy for t in some]
            plot.scatter(costs, scores, c=colour, marker=marker, label=status, zorder=2)
    front = sweep.front()
    if front:
        stairs(plot, [(t.multiply_adds / 1e6, t.accuracy) for t in front], label="Pareto front", zorder=1)
        for t in front:
            plot.annotate(
                str(t.number),
                (t.multiply_adds / 1e6, t.accuracy),
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=8,
            )
    plot.set_xlabel("multiply-adds (millions)")
    plot.set_ylabel(f"{metric(sweep).label} on the held-out pictures")
    plot.ticklabel_format(axis="y", useOffset=False)
    plot.legend(frameon=False, fontsize=9)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _finite(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{key: plain(value) for key, value in row.items()} for row in found]
