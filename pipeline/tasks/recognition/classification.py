"""Known classes: accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.report.extra import Extra
from pipeline.report.table import Metric
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition import drawings, intervals, metrics
from pipeline.tasks.recognition.answers import answers_of
from pipeline.tasks.recognition.classes import classes_of
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.showing import metrics_of
from pipeline.tasks.recognition.task import RecognitionTask

if TYPE_CHECKING:
    from pipeline.road.run import Run


class Classification(RecognitionTask):
    """Which of the known classes a picture shows."""

    name = "classification"
    figures = (
        Metric("accuracy", "accuracy", 4),
        Metric("balanced_accuracy", "balanced", 4),
        Metric("ece", "ECE", 4, higher_is_better=False),
    )

    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        logits = answers_of(model, gallery, recipe, gap, device, "logits")
        return metrics.classification(logits, gallery.labels)

    def scores_at_the_end(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        logits = answers_of(model, gallery, recipe, gap, device, "logits")
        values, curves = metrics.classification(logits, gallery.labels)
        return values | intervals.classification(logits, gallery.labels), curves

    def drawn(self, run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        curves = {
            name: found for name, found in curves.items() if found.keys() & {"confusion"}
        }  # no embedders
        found = [(r.group, metrics_of(outcome, r)) for r in reversed(outcome.results)]
        errors = {group: values["ece"] for group, values in found if "ece" in values}
        return {
            "confusion": drawings.confusion(curves, outcome.prepared.samples.classes),
            "reliability": drawings.reliability({n: c["reliability"] for n, c in curves.items()}, errors),
        }

    def tables(self, outcome: Outcome) -> list[Extra]:
        """Also what each class is found by."""
        return [*super().tables(outcome), classes_of(outcome)]
