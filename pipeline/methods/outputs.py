"""A phase of recognition: a network's outputs, its task's loss, and what a method adds. s, t, a: embeddings of student
(LR), teacher and assistant (HR views); t and a come from the cache, or from `fill` where they are made in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.losses.gather import gathered
from pipeline.losses.mixed import SHARE, mixed_decoupled, mixed_logits, partner
from pipeline.losses.soft_labels import decoupled, standardised
from pipeline.methods.base import Adversary, Batch, Modules, Phase
from pipeline.recipe.recognition_methods import SoftLabels
from pipeline.recipe.schedule import Weight
from pipeline.recipe.settings import Budget

Fill = Callable[[MutableMapping[str, Tensor]], None]
"""Adds the teacher's outputs to a batch where they are not cached."""
Terms = Callable[[dict[str, Tensor], Tensor, Any], dict[str, Tensor]]
"""(outputs, adapted embedding, batch) -> the method's own losses."""
MAP = "teacher/map"
STUDENT, ADAPTER, MAP_ADAPTER, DISCRIMINATOR = "student", "adapter", "map_adapter", "discriminator"


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a method gets of its task: nothing here says which task it is."""

    recipe: Any
    """Of the method: its `method` and `train`."""
    loss: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]
    """(outputs, batch) -> the task's loss."""
    imitate: Callable[[Tensor, Tensor, float], Tensor]
    """(student's logits, teacher's logits, temperature) -> how far the student's answers are from the teacher's."""
    truth: str
    """The column of a batch that the loss compares with."""
    width: int = 0
    """Of the teacher's embedding."""
    answers: bool = True
    """Whether the teacher has logits; an embedder has none."""
    fill: Fill | None = None
    channels: int = 0
    """Of the teacher's map, where that is cached."""


def output_phase(
    lesson: Lesson,
    network: nn.Module,
    settings: Budget,
    name: str,
    weights: dict[str, Weight],
    columns: tuple[str, ...],
    terms: Terms,
    *,
    width: int | None = None,
    adversary: Adversary | None = None,
) -> Phase:
    """A phase whose losses are the task's and `terms(outputs, adapted embedding, batch)`."""
    modules = {STUDENT: network}
    online = [c for c in columns if c.startswith("teacher/")] if lesson.fill else []
    fill = lesson.fill if online else None
    own = cast(nn.Linear, network.embed).out_features
    if width is not None and width != own:
        modules[ADAPTER] = nn.Linear(own, width)
    inside = cast(nn.Linear, network.embed).in_features
    if MAP in columns and lesson.channels != inside:
        modules[MAP_ADAPTER] = nn.Conv2d(inside, lesson.channels, 1)

    def losses(live: Modules, batch: Batch) -> dict[str, Tensor]:
        if fill is not None:
            fill(cast(MutableMapping[str, Tensor], batch))
        out = live[STUDENT](batch["lr"])
        s = live[ADAPTER](out["embedding"]) if ADAPTER in live else out["embedding"]
        if MAP_ADAPTER in live:
            out = {**out, "map": live[MAP_ADAPTER](out["map"])}
        return {"task": lesson.loss(out, batch), **terms(out, s, batch)}

    cached = tuple(c for c in columns if c not in online)  # an assistant's are there all the same
    read = ("hr", *cached) if online else columns
    return Phase(
        name=name,
        modules=modules,
        sources=("lr", lesson.truth, *read),
        losses=losses,
        weights=weights,
        settings=settings,
        artefact=STUDENT,
        adversary=adversary,
    )


def soft_term(lesson: Lesson, method: SoftLabels, tau: float, own: Tensor, column: str, batch: Any) -> Tensor:
    """How far the student's soft labels at temperature `tau` are from those of the batch's `column`, as the method
    compares them. Of pictures that are mixed the teacher's soft labels are mixed, after they are standardised.
    """
    theirs, other = batch[column], batch.get(partner(column))
    if method.logits == "standardised":
        own, theirs = standardised(own), standardised(theirs)
        other = None if other is None else standardised(other)
    if other is not None:
        theirs = mixed_logits(theirs, other, batch[SHARE], tau)
    if method.logits != "decoupled":
        return lesson.imitate(own, theirs, tau)
    truth, weigh = batch[lesson.truth], (method.alpha, method.beta)
    if SHARE not in batch:
        return decoupled(own, theirs, truth, tau, *weigh)
    return mixed_decoupled(own, theirs, truth, batch[partner(lesson.truth)], batch[SHARE], tau, *weigh)


def kinds(lesson: Lesson, batch: Any) -> Tensor | None:
    """The class of each picture of the global batch, of a mixed one that of its greater share; None for masks."""
    truth = batch[lesson.truth]
    if truth.dim() != 1:
        return None
    if SHARE in batch:
        truth = torch.where(batch[SHARE] < 0.5, batch[partner(lesson.truth)], truth)
    return gathered(truth)


def active(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Those that are not 0 throughout; the task stays."""
    return {name: w for name, w in weights.items() if name == "task" or w != 0}


def alone(*_: object) -> dict[str, Tensor]:
    """No losses but the task's."""
    return {}
