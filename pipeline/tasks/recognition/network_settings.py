"""The networks of a recognition recipe: a backbone trained here, and teachers from wherever they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.recipe.settings import Budget, Gpus, Later, Name, Positive, Section
from pipeline.tasks.recognition.settings import Boundary


class Network(Section):
    """A backbone with an embedding head."""

    name: str = "resnet8"
    """`resnet8`, `resnet14`, `resnet20` (small, for thumbnails), or any name of timm, such as `resnet18`."""
    options: dict[str, Any] = {}
    """Keywords of the backbone: `width` and `norm` of the small ones, timm's own of the others."""
    embedding: Positive = 64
    """Width of the embedding."""

    @property
    def label(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)


class RecognitionTeacher(Later):
    """A network that sees HR."""

    later: ClassVar[tuple[str, ...]] = ("embedder",)

    name: Name | None = None
    """How tables call it where there are several; default: its network's name."""
    network: Network = Network(name="resnet14", options={"width": 32})
    checkpoint: str | None = None
    """A file with its weights (safetensors, or .pth read as tensors alone), an ONNX file, or a CIFAR ResNet's state
    dict, which is built as its tensors say."""
    pretrained: bool = False
    """Start from timm's published weights of the backbone, whose head is trained; of `timm`, take them as they are."""
    timm: str | None = None
    """A whole classifier of timm by name, with its own head (as an embedder without): `pretrained`, or its weights as
    `checkpoint`."""
    factory: str | None = None
    """`package.module:function` that returns a classifier of one's own, one of {"logits": ..., "embedding": ...}, or an
    embedder: one of {"embedding": ...}."""
    options: dict[str, Any] = {}
    """Keywords of the factory."""
    input: Boundary = Boundary()
    """What a classifier made elsewhere is given."""
    classes: tuple[str, ...] = ()
    """Names of its answers in its order, where they are not the data's classes in theirs."""
    outputs: dict[Literal["logits", "embedding"], str] = {}
    """Of an ONNX file: which output is which; by default the first, and what its last product gets; of an embedder the
    first is the embedding."""
    embedder: bool = False
    """It was made elsewhere and has no classes, or others than the data's: its embedding alone is taken. Always so for
    verification and retrieval."""
    train: Budget | None = None
    """Train it on HR, as a phase of the run; needed unless there is a checkpoint."""
    batch: Positive = 64
    """Pictures per forward pass when its outputs are cached."""
    gpus: Gpus = "auto"
    """GPU share of the processes that cache outputs and score; 0 for CPUs, `auto` shares out what there is."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of its training; default: the recipe's."""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        stem = (
            Path(self.checkpoint).stem if self.checkpoint and "network" not in self.model_fields_set else ""
        )
        own = (self.factory or "").rpartition(":")[2] or self.timm or stem
        return re.sub(r"[^A-Za-z0-9._-]", "-", own) if own else self.network.label
