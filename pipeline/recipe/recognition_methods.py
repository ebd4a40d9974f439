"""The settings of the recognition methods, each documented beside it; `pipeline/methods` carries them out."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Union

from pydantic import Field

from pipeline.recipe.schedule import Weight
from pipeline.recipe.settings import Budget, Later, Positive, Section

MethodName = Literal["scratch", "kd", "rkd", "horkd"]


class SoftLabels(Later):
    """How soft labels are compared."""

    later: ClassVar[tuple[str, ...]] = ("logits", "alpha", "beta")

    logits: Literal["plain", "standardised", "decoupled"] = "plain"
    """As they are; with mean 0 and deviation 1 over the classes (Sun et al., CVPR 2024; of two classes that leaves only
    which one is more likely); or the true class and the others apart (DKD, Zhao et al., CVPR 2022; classification
    alone).
    """
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Of `decoupled`: what the true class against all others counts."""
    beta: Annotated[float, Field(ge=0)] = 8.0
    """Of `decoupled`: what the others among themselves count."""


class Scratch(Section):
    """The LR student alone: the task's loss."""

    name: Literal["scratch"]
    """Always `scratch`."""
    task: Weight = 1.0
    """Weight of the task's loss."""


class KD(SoftLabels):
    """The task's loss and the HR teacher's soft labels (Hinton, Vinyals, Dean, 2015)."""

    name: Literal["kd"]
    """Always `kd`."""
    teacher: str = "fused"
    """Where several teachers are named: whose outputs, or `fused`: all of them together."""
    task: Weight = 1.0
    """Weight of the task's loss."""
    soft: Weight = 1.0
    """Weight of the soft labels."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Their temperature tau."""


class RKD(SoftLabels):
    """Resolution-aware distillation (Feng, Lai, Xie, TIP 2021), reconstructed from its abstract: task + adversarial +
    (soft labels and feature regression, pair-wise constraint, MMD). A weight of 0 leaves its term out.

    The defaults follow from a sweep (docs/recognition_terms.md): contrast, distances and angles, which others make of
    embeddings, stand in for the terms that the abstract names, which brought nothing beside them; those alone are in
    recipes/recognition_ablation.yaml. For segmentation contrast is 0, distances 0.7 and angles 0.3 by default.
    """

    name: Literal["rkd"]
    """Always `rkd`."""
    task: Weight = 1.0
    """Weight of the task's loss."""
    soft: Weight = 0.8
    """Weight of the soft labels."""
    contrast: Weight = 1.0
    """Weight of telling each picture's HR embedding from those of other classes of its batch (CRD, ICLR 2020)."""
    distances: Weight = 2.0
    """Weight of the distances between pictures (Park et al., CVPR 2019)."""
    angles: Weight = 1.0
    """Weight of the angles at pictures (the same)."""
    adversarial: Weight = 0.0
    """Weight of the adversarial term; a schedule lets it begin when the discriminator has learned something."""
    feature: Weight = 0.0
    """Weight of the feature regression."""
    map: Weight = 0.0
    """Weight of the regression of whole feature maps; needs cache.features: map."""
    pairwise: Weight = 0.0
    """Weight of the pair-wise constraint."""
    mmd: Weight = 0.0
    """Weight of the maximum mean discrepancy."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the soft labels."""
    discriminator_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the discriminator's own Adam (0.5, 0.999)."""


class HORKD(SoftLabels):
    """Hybrid-order relational distillation (Ge et al., AAAI 2020), reconstructed from its abstract and captions: an
    assistant of the student's structure learns at HR from the teacher, then the student at LR from both. Weights
    follow from a sweep, as `rkd`'s; for segmentation contrast is 0 and the orders weigh a third.
    """

    name: Literal["horkd"]
    """Always `horkd`."""
    task: Weight = 1.0
    """Weight of the task's loss."""
    soft: Weight = 0.8
    """Weight of the soft labels."""
    order1: Weight = 0.3
    """Weight of each item by itself."""
    order2: Weight = 2.0
    """Weight of pairs (distances)."""
    order3: Weight = 1.0
    """Weight of triplets (angles)."""
    group: Weight = 3.0
    """Weight of the whole batch's structure."""
    contrast: Weight = 1.0
    """Weight of telling each picture's HR embedding from those of other classes of its batch (CRD, ICLR 2020)."""
    gamma: Annotated[float, Field(ge=0)] = 0.5
    """What the teacher counts in the second step, beside the assistant's 1."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """Temperature of the soft labels."""
    assistant: bool = True
    """False: no assistant, the student learns from the teacher alone."""
    union: bool = True
    """"One and more": relations among HR and LR items together, not among LR items alone; where HR's embedding
    is as wide as the student's, as an assistant's is."""
    init: Literal["assistant", "random"] = "assistant"
    """Where the student starts."""
    anchors: Positive = 32
    """Items of a batch at which angles are taken, to bound memory."""
    assistant_train: Budget | None = None
    """The assistant's training; default: the student's `train`."""


Method = Annotated[Union[Scratch, KD, RKD, HORKD], Field(discriminator="name")]
METHODS: dict[str, type[Section]] = {"scratch": Scratch, "kd": KD, "rkd": RKD, "horkd": HORKD}
OF_MASKS: dict[str, dict[str, float]] = {
    "rkd": {"contrast": 0.0, "distances": 0.7, "angles": 0.3},
    "horkd": {"contrast": 0.0, "order1": 0.1, "order2": 0.7, "order3": 0.3, "group": 1.0},
}
"""Defaults of their own where the truth is a mask: such a student answers pixels and need not tell pictures apart, and
its task's loss is a tenth of a classifier's (docs/recognition.md)."""
