"""Defect masks: where in the picture something is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.report.table import Metric
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition import drawings, intervals, metrics, networks
from pipeline.tasks.recognition.answers import outputs_of
from pipeline.tasks.recognition.recipe import Network, Recognition, TaskLoss
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.task import RecognitionTask

if TYPE_CHECKING:
    from pipeline.road.run import Run

SMOOTH = 1.0


class Segmentation(RecognitionTask):
    """Background and defect, pixel by pixel."""

    name = "segmentation"
    figures = (Metric("iou", "IoU", 4), Metric("dice", "Dice", 4), Metric("auprc", "AUPRC", 4))
    truth = "mask"
    logits = "(batch, 2, h, w), background and defect"

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], settings: TaskLoss) -> Tensor:
        """Cross-entropy in float32, and the soft Dice loss, on the mask's own grid."""
        logits = outputs["logits"].float()
        logits = F.interpolate(logits, batch["mask"].shape[-2:], mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(logits, batch["mask"], label_smoothing=settings.smoothing)
        if not settings.dice:
            return entropy
        probability, truth = logits.softmax(dim=1)[:, 1], batch["mask"].float()
        overlap = 2 * (probability * truth).sum() + SMOOTH
        return entropy + settings.dice * (1 - overlap / (probability.sum() + truth.sum() + SMOOTH))

    def answers(self, classes: Sequence[str]) -> int:
        return 2

    def build(
        self, network: Network, size: tuple[int, int], classes: int, *, pretrained: bool = False
    ) -> networks.Recogniser:
        return networks.build(network, size, classes, segment=True, pretrained=pretrained)

    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        return metrics.segmentation(*self._found(model, gallery, recipe, gap, device))

    def scores_at_the_end(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        found = self._found(model, gallery, recipe, gap, device)
        values, curves = metrics.segmentation(*found)
        return values | intervals.segmentation(*found), curves

    def _found(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """(probability of a defect, whether there is one) of every pixel, (n, H, W)."""
        parts = []
        for _, outputs in outputs_of(model, gallery, recipe, gap, device):
            logits = F.interpolate(outputs["logits"], recipe.hr_size, mode="bilinear", align_corners=False)
            parts.append(logits.softmax(dim=1)[:, 1].numpy())
        masks = gallery.masks(np.arange(len(gallery)))[..., 0] > 127
        return np.concatenate(parts), masks

    def drawn(self, run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        return {"defects": drawings.overlays(run, outcome)}
