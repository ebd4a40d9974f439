"""Pairs of pictures: of one person, or of two; people who were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from pipeline.report.table import Metric
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition import drawings, intervals, metrics
from pipeline.tasks.recognition.answers import answers_of
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.task import RecognitionTask

if TYPE_CHECKING:
    from pipeline.road.run import Run


class Verification(RecognitionTask):
    """Whether two pictures show the same."""

    name = "verification"
    asks = "embedding"
    figures = (
        Metric("tar@far=0.01", "TAR@FAR 1%", 4),
        Metric("auc", "AUC", 4),
        Metric("rank1", "rank-1", 4),
    )

    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        embeddings = answers_of(model, gallery, recipe, gap, device, "embedding")
        return metrics.verification(embeddings, gallery.labels)

    def scores_at_the_end(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        embeddings = answers_of(model, gallery, recipe, gap, device, "embedding")
        values, curves = metrics.verification(embeddings, gallery.labels)
        ranges, band = intervals.verification(*metrics.pairs_of(embeddings, gallery.labels), gallery.labels)
        return values | ranges, {**curves, "band": band}

    def drawn(self, run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        lines = {name: found["roc"] for name, found in curves.items()}
        bands = {name: found["band"] for name, found in curves.items() if found["band"]}
        words = ("ROC: pairs of test pictures", "false accept rate", "true accept rate")
        caption, picture = drawings.curve(lines, *words, logarithmic=True, bands=bands)
        said = "; bands: 95 % of bootstrap rounds at each false accept rate" if bands else ""
        return {"roc": (f"{caption}{said}", picture)}
