"""The networks of a recognition recipe: a backbone trained here, and teachers from wherever they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pipeline.recipe.settings import Budget, Gpus, Later, Name, Positive, Section, Seed
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
    seed: Seed | None = None
    """Seed of its training; default: the recipe's."""

    @property
    def label(self) -> str:
        if self.name:
            return self.name
        untold = self.network == type(self).model_fields["network"].default
        stem = Path(self.checkpoint).stem if self.checkpoint and untold else ""
        own = (self.factory or "").rpartition(":")[2] or self.timm or stem
        return re.sub(r"[^A-Za-z0-9._-]", "-", own) if own else self.network.label

    @property
    def wrong(self) -> str:
        """Which of these settings do not go together; nothing where they do."""
        elsewhere = self.factory or self.timm
        given = elsewhere or self.checkpoint
        if self.checkpoint and self.pretrained:
            return "`checkpoint` or `pretrained`, not both"
        if self.factory and (self.checkpoint or self.timm):
            return "`factory`, or `timm` and `checkpoint`, not both"
        if self.embedder and (self.classes or not given):
            found = "names `classes`" if self.classes else "has no `checkpoint`, `timm` or `factory`"
            return f"an embedder was made elsewhere and has no classes; this one {found}"
        if self.timm and not (self.checkpoint or self.pretrained):
            return f"timm: {self.timm} needs `pretrained: true` or a `checkpoint`"
        if not given and self.train is None:
            return (
                "give it a `train` (its training on HR) or a `checkpoint`; `pretrained` weights have no head for these "
                "classes, so they need `train` too"
            )
        if given and self.train is not None:
            where = "factory" if self.factory else "checkpoint" if self.checkpoint else "timm"
            return f"`train` or `{where}`, not both: what was made elsewhere is taken as it is"
        told = {
            "input": self.input != Boundary(),
            **{key: bool(getattr(self, key)) for key in ("classes", "outputs", "options")},
        }
        if not given and any(told.values()):
            key = next(key for key, said in told.items() if said)
            return f"`{key}` is for a teacher made elsewhere; this one is trained here"
        return ""
