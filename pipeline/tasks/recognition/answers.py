"""A network's outputs for a split's pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.tasks.recognition.degradations import noise_name, student_pictures
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery, ViewBatch


def given(gallery: Gallery, numbers: np.ndarray, recipe: Recognition, gap: int) -> np.ndarray:
    """What a network gets of these pictures, (n, h, w, 3) uint8: view 0 under the recipe's first degradation."""
    hr = gallery.hr(numbers)
    if gap == 1:
        return hr
    names = [noise_name(recipe.data.views, gallery.ids[n], 0) for n in numbers]
    return student_pictures(hr, gap, recipe.input == "enlarged", recipe.degradations[0], names)


@torch.inference_mode()
def outputs_of(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str, batch: int = 64
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(numbers, outputs) of view 0 of every picture, under the recipe's first degradation; a gap of 1 is HR."""
    for begin in range(0, len(gallery), batch):
        numbers = np.arange(begin, min(begin + batch, len(gallery)))
        shown = given(gallery, numbers, recipe, gap)
        x = ViewBatch({"lr": shown}, []).to(device)["lr"]
        yield numbers, {name: value.float().cpu() for name, value in model(x).items()}


def answers_of(
    model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str, name: str
) -> np.ndarray:
    """One output of every picture, (n, ...) float32."""
    return np.concatenate([o[name].numpy() for _, o in outputs_of(model, gallery, recipe, gap, device)])
