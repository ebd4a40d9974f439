"""What each class is found by: precision, recall and F1, for the run's student and the teachers."""

from __future__ import annotations

import math

import numpy as np

from pipeline.report.extra import Extra
from pipeline.steps.values import Outcome
from pipeline.tasks.recognition import metrics
from pipeline.tasks.recognition.showing import shown_student


def classes_of(outcome: Outcome) -> Extra:
    """A row a class, the worst for the student first; all seeds of a network together."""
    classes, speaks = outcome.prepared.samples.classes, shown_student(outcome)
    helpers = {outputs.label for outputs in outcome.prepared.all}
    matrices: dict[str, list[np.ndarray]] = {}
    for result in outcome.results:
        if "confusion" in result.curves and (result.group == speaks or result.name in helpers):
            matrices.setdefault(result.group, []).append(np.array(result.curves["confusion"]))
    ordered = sorted(matrices, key=lambda name: name != speaks)  # the student's columns first
    found = {name: metrics.by_class(np.sum(matrices[name], axis=0)) for name in ordered}
    head = [
        "class",
        "pictures",
        *(f"{name}: {what}" for name in ordered for what in ("precision", "recall", "F1")),
    ]
    first = found[ordered[0]]
    support = first["support"] // len(matrices[ordered[0]])
    worst = sorted(range(len(classes)), key=lambda c: (np.nan_to_num(first["f1"][c], nan=2.0), c))
    rows = [
        [
            classes[c],
            str(support[c]),
            *(_figure(found[name][what][c]) for name in ordered for what in ("precision", "recall", "f1")),
        ]
        for c in worst
    ]
    seeds = len(matrices[ordered[0]])
    note = f"The classes that {ordered[0]} finds worst come first (by F1)"
    note += f"; its {seeds} seeds count together." if seeds > 1 else "."
    return Extra("Classes", head, rows, [f"{note} A dash: never answered, or no pictures."])


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
