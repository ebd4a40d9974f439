"""What reports and tables say of a recognition run beside its figures."""

from __future__ import annotations

from typing import Any

from pipeline.steps.values import Outcome, Outputs, Result
from pipeline.tasks.recognition.recipe import Recognition


def sentence(outcome: Outcome) -> str:
    """The run in one sentence."""
    recipe: Recognition = outcome.recipe
    *most, last = map(str, recipe.trained_gaps)
    gaps = f"{', '.join(most)} and {last}" if most else last
    teachers = ", ".join(teacher.network.name for teacher in recipe.seen_by)
    height, width = recipe.hr_size
    return (
        f"{recipe.student.name} at a resolution gap of {gaps}, teacher {teachers} at "
        f"{height} x {width}; {recipe.train.steps:,} steps per student."
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
        "degradation": "bicubic (MATLAB), of the same view",
        "views": f"{views.count} a picture, shift {views.shift}, {'' if views.flip else 'not '}flipped, "
        f"zoom {views.zoom}, light {views.light}",
        "budget": f"{recipe.train.steps:,} steps of {recipe.train.batch} pictures",
        "cost": "multiply-adds and milliseconds of one picture at the network's own input size, one CPU thread",
        **{outputs.label: _identity(outputs) for outputs in prepared.all},
    }
    if seconds := sum(outputs.seconds for outputs in prepared.all):
        facts["teacher outputs"] = f"{seconds:.1f} s for all views, cached"
    if intervals := _intervals(outcome):
        facts["95 % intervals over the test pictures"] = "; ".join(intervals)
    if dropped := max((r.curves.get("dropped", 0) for r in outcome.results), default=0):
        facts["stem"] = f"{dropped} stride(s) dropped so that small pictures keep a map of at least 2 x 2"
    return facts


def _identity(outputs: Outputs) -> str:
    """Of a teacher; of one made elsewhere also where its embedding is."""
    layer = outputs.network.network.get("layer")
    return f"{outputs.network.identity}{f', its embedding is what {layer} gets' if layer else ''}"


def _intervals(outcome: Outcome) -> list[str]:
    """Of each network's accuracy: what another draw of as many test pictures would make of it (bootstrap)."""
    (name,) = outcome.sets
    scored = {r.name: r.sets[name] for r in outcome.results}
    return [
        f"{label} {values['accuracy_low']:.4f} to {values['accuracy_high']:.4f}"
        for label, values in scored.items()
        if "accuracy_low" in values
    ]


def costs(result: Result) -> dict[str, Any]:
    """What a network costs."""
    return {
        "parameters": result.parameters,
        "multiply_adds": result.multiply_adds,
        "latency_ms": result.latency_ms,
    }
