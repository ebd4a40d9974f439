"""A network's outputs for a split's pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery, ViewBatch, student_pictures


@torch.inference_mode()
def outputs_of(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str, batch: int = 64
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(numbers, outputs) of view 0 of every picture; a gap of 1 is HR."""
    enlarged = recipe.input == "enlarged" and gap > 1
    for begin in range(0, len(gallery), batch):
        numbers = np.arange(begin, min(begin + batch, len(gallery)))
        shown = student_pictures(gallery.hr(numbers), gap, enlarged)
        x = ViewBatch({"lr": shown}, []).to(device)["lr"]
        yield numbers, {name: value.float().cpu() for name, value in model(x).items()}


def answers_of(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str, name: str
) -> np.ndarray:
    """One output of every picture, (n, ...) float32."""
    return np.concatenate([o[name].numpy() for _, o in outputs_of(model, gallery, recipe, gap, device)])
