"""The four tasks: how each is learned, and how a network is scored on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.recipe.recognition import Recognition, TaskLoss
from pipeline.report.table import Metric
from pipeline.tasks.recognition import metrics
from pipeline.tasks.recognition.sampler import Gallery, ViewBatch, student_pictures

METRICS: dict[str, tuple[Metric, ...]] = {
    "classification": (Metric("accuracy", "accuracy", 4), Metric("balanced_accuracy", "balanced", 4)),
    "verification": (
        Metric("tar@far=0.01", "TAR@FAR 1%", 4),
        Metric("auc", "AUC", 4),
        Metric("rank1", "rank-1", 4),
    ),
    "retrieval": (Metric("map", "mAP", 4), Metric("rank1", "rank-1", 4), Metric("rank5", "rank-5", 4)),
    "segmentation": (Metric("iou", "IoU", 4), Metric("dice", "Dice", 4), Metric("auprc", "AUPRC", 4)),
}
"""What the table shows of each task; the first is the one that charts and gains speak of."""
SMOOTH = 1.0


def task_loss(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], loss: TaskLoss) -> Tensor:
    """Cross-entropy in float32; for logits that are maps also the soft Dice loss, on the mask's own grid."""
    logits = outputs["logits"].float()
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch["label"], label_smoothing=loss.smoothing)
    logits = F.interpolate(logits, batch["mask"].shape[-2:], mode="bilinear", align_corners=False)
    entropy = F.cross_entropy(logits, batch["mask"], label_smoothing=loss.smoothing)
    if not loss.dice:
        return entropy
    probability, truth = logits.softmax(dim=1)[:, 1], batch["mask"].float()
    overlap = 2 * (probability * truth).sum() + SMOOTH
    return entropy + loss.dice * (1 - overlap / (probability.sum() + truth.sum() + SMOOTH))


@torch.inference_mode()
def outputs_of(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str, batch: int = 64
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(numbers, outputs) of view 0 of every picture; a gap of 1 is HR."""
    enlarged = recipe.input == "enlarged" and gap > 1
    for begin in range(0, len(gallery), batch):
        numbers = np.arange(begin, min(begin + batch, len(gallery)))
        pictures = student_pictures(gallery.hr(numbers), gap, enlarged)
        x = ViewBatch({"lr": pictures}, []).to(device)["lr"]
        yield numbers, {name: value.float().cpu() for name, value in model(x).items()}


def score(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, curves) of a network in eval mode on a split."""
    if recipe.task == "segmentation":
        return _score_maps(model, gallery, recipe, gap, device)
    found: dict[str, list[np.ndarray]] = {"logits": [], "embedding": []}
    for _, outputs in outputs_of(model, gallery, recipe, gap, device):
        for name, parts in found.items():
            parts.append(outputs[name].numpy())
    if recipe.task == "classification":
        return metrics.classification(np.concatenate(found["logits"]), gallery.labels)
    embeddings = np.concatenate(found["embedding"])
    if recipe.task == "verification":
        return metrics.verification(embeddings, gallery.labels)
    return _retrieve(embeddings, gallery)


def _retrieve(embeddings: np.ndarray, gallery: Gallery) -> tuple[dict[str, float], dict[str, Any]]:
    """With queries of its own where the layout names them; else every picture asks for the others."""
    everything = np.arange(len(gallery))
    cameras = gallery.rows.take("camera", everything)
    roles = gallery.rows.take("role", everything)
    asks, answers = everything[roles == 1], everything[roles == 2]
    same = None
    if not len(asks):
        asks = answers = same = everything
        if len(np.unique(cameras)) == 1:  # no cameras known: only the picture itself is left out
            cameras = everything
    return metrics.retrieval(
        embeddings[asks],
        embeddings[answers],
        gallery.labels[asks],
        gallery.labels[answers],
        cameras[asks],
        cameras[answers],
        same,
    )


def _score_maps(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
) -> tuple[dict[str, float], dict[str, Any]]:
    parts = []
    for _, outputs in outputs_of(model, gallery, recipe, gap, device):
        logits = F.interpolate(outputs["logits"], recipe.hr_size, mode="bilinear", align_corners=False)
        parts.append(logits.softmax(dim=1)[:, 1].numpy())
    masks = gallery.masks(np.arange(len(gallery)))[..., 0] > 127
    return metrics.segmentation(np.concatenate(parts), masks)
