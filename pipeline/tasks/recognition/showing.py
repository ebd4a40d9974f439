"""What reports and tables say of a recognition run beside its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.recipe.comparing import equal_steps
from pipeline.report.extra import Extra
from pipeline.report.table import PLUS_MINUS, Metric, mean, spread
from pipeline.steps.job import STUDENT
from pipeline.steps.values import Outcome, Outputs, Result
from pipeline.tasks.recognition.recipe import Recognition

LR = {
    "bicubic": "bicubic (MATLAB)",
    "average": "mean of gap x gap pixels",
    "blur_noise": "Gaussian blur and noise",
}
"""How LR arises, in words."""


def sentence(outcome: Outcome) -> str:
    """The run in one sentence."""
    recipe: Recognition = outcome.recipe
    *most, last = map(str, recipe.trained_gaps)
    gaps = f"{', '.join(most)} and {last}" if most else last
    teachers = ", ".join(teacher.label for teacher in recipe.seen_by)
    height, width = recipe.hr_size
    return (
        f"{recipe.student.name} at a resolution gap of {gaps}, teacher {teachers} at "
        f"{height} x {width}; {equal_steps(recipe.compare, recipe.method.name, recipe.train.steps, 'student')}."
    )


def facts(outcome: Outcome) -> dict[str, str]:
    """How it was made."""
    recipe, prepared = outcome.recipe, outcome.prepared
    views = recipe.data.views
    sizes = ", ".join(f"x{g}: {recipe.lr_size(g)[0]} x {recipe.lr_size(g)[1]}" for g in recipe.trained_gaps)
    facts = {
        "pictures": ", ".join(f"{m.rows:,} {name}" for name, m in prepared.samples.splits()),
        "classes": f"{len(prepared.samples.classes)} to train on",
        "HR": f"{recipe.hr_size[0]} x {recipe.hr_size[1]}",
        "LR": f"{sizes}; {recipe.input}",
        "degradation": f"{', '.join(LR[kind] for kind in recipe.degradations)}; of the same view",
        "views": f"{views.count} a picture, shift {views.shift}, {'' if views.flip else 'not '}flipped, "
        f"zoom {views.zoom}, light {views.light}",
        "budget": f"{recipe.train.steps:,} steps of {recipe.train.batch} pictures",
        **told(recipe),
        "cost": "multiply-adds and milliseconds of one picture at the network's own input size, one CPU thread",
        **{outputs.label: _identity(outputs) for outputs in prepared.all},
    }
    if seconds := sum(outputs.seconds for outputs in prepared.all):
        facts["teacher outputs"] = f"{seconds:.1f} s for all views, cached"
    if dropped := max((r.curves.get("dropped", 0) for r in outcome.results), default=0):
        facts["stem"] = f"{dropped} stride(s) dropped so that small pictures keep a map of at least 2 x 2"
    return facts


def told(recipe: Recognition) -> dict[str, str]:
    """What is not so in every run: mixed pictures, folds."""
    mixing, fold = recipe.mixing, recipe.data.fold
    kinds = [f"{kind} {value:g}" for kind in ("mixup", "cutmix") if (value := getattr(mixing, kind))]
    found = {"mixing": f"{' and '.join(kinds)}, {mixing.share:.0%} of the pictures"} if kinds else {}
    return {**found, "fold": f"{fold[0]} of {fold[1]}"} if fold else found


def _identity(outputs: Outputs) -> str:
    """Of a teacher; of one made elsewhere also where its embedding is."""
    layer = outputs.network.network.get("layer")
    return f"{outputs.network.identity}{f', its embedding is what {layer} gets' if layer else ''}"


def intervals_of(outcome: Outcome, figures: Sequence[Metric]) -> list[Extra]:
    """Each row's figures: mean over its seeds, interval over the test pictures, spread over the seeds."""
    (name,) = outcome.sets
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for result in outcome.results:
        groups.setdefault(result.group, []).append(result.sets[name])
    shown = [m for m in figures if any(f"{m.key}_low" in found for own in groups.values() for found in own)]
    if not shown:
        return []
    note = (
        "In parentheses: what another draw of as many test pictures would make of it (95 %, bootstrap); of several "
        f"seeds the mean of their ends. {PLUS_MINUS}: standard deviation over seeds, what another training would make "
        "of it."
    )
    rows = [[group, *(_interval(own, m) for m in shown)] for group, own in groups.items()]
    return [Extra("How sure these figures are", ["method", *(m.label for m in shown)], rows, [note])]


def _interval(found: Sequence[Mapping[str, Any]], metric: Metric) -> str:
    values, low, high = (
        [f[key] for f in found if key in f] for key in (metric.key, f"{metric.key}_low", f"{metric.key}_high")
    )
    if not values:
        return "-"
    text = f"{mean(values):.{metric.digits}f}"
    if low and high:
        text += f" ({mean(low):.{metric.digits}f} to {mean(high):.{metric.digits}f})"
    deviation = spread(values)
    return text if deviation is None else f"{text} {PLUS_MINUS}{deviation:.{metric.digits}f}"


def metrics_of(outcome: Outcome, result: Result) -> Mapping[str, Any]:
    """A network's figures on the test set."""
    (name,) = outcome.sets
    return result.sets[name]


def shown_student(outcome: Outcome) -> str:
    """The row of the student that speaks for the run: the recipe's method at its own gap, or the last one trained."""
    recipe: Recognition = outcome.recipe
    own = [job.group for job in outcome.jobs if job.method == recipe.method.name and job.gap in recipe.gaps]
    return own[0] if own else outcome.jobs[-1].group if outcome.jobs else ""


def costs(result: Result) -> dict[str, Any]:
    """What a network costs."""
    return {
        "parameters": result.parameters,
        "multiply_adds": result.multiply_adds,
        "latency_ms": result.latency_ms,
    }


def shown_curves(outcome: Outcome) -> dict[str, Any]:
    """What is drawn: of each teacher and one seed of each method at the recipe's own gap, by row."""
    curves: dict[str, Any] = {}
    for result in outcome.results:
        if result.role != STUDENT or result.job is None or result.job.gap in outcome.recipe.gaps:
            curves.setdefault(result.group, result.curves)
    return curves


def summary(outcome: Outcome, rows: list[dict[str, Any]], students: Mapping[str, Any]) -> dict[str, Any]:
    """What `faculty run --json` says."""
    (name,) = outcome.sets
    helpers = {r.name: {**costs(r), **r.sets[name]} for r in outcome.results if r.role != STUDENT}
    files = {label: made["safetensors"] for label, made in students.items()}
    return {"task": outcome.recipe.task, **helpers, "rows": rows, "students": files}
