"""The settings of a recognition recipe, each documented beside it: a recipe with the key `task`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Union

from pydantic import Field, model_validator

from pipeline.recipe.recipe import Distill, Tracking
from pipeline.recipe.schedule import Fraction, Ramp, Weight
from pipeline.recipe.settings import Budget, Name, Positive, Section

Task = Literal["classification", "verification", "retrieval", "segmentation"]
MethodName = Literal["scratch", "kd", "rkd", "horkd"]
Size = Annotated[int, Field(ge=4)]
LEAST_SIDE = 4
"""Least side of an LR picture in pixels."""
GAPS: dict[int, tuple[int, ...]] = {
    1: (),
    2: (2,),
    3: (3,),
    4: (4,),
    6: (3, 2),
    8: (4, 2),
    12: (4, 3),
    16: (4, 4),
}
"""Gap -> the steps in which it is made: MATLAB's antialiased bicubic, which is exact up to 4, step by step above."""


class Views(Section):
    """The views of a picture: seeded, so that cached teacher outputs line up with what the student sees."""

    count: Positive = 4
    """Views per picture; view 0 is the picture as it is."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the views; part of the cache's fingerprint, apart from the training's seed."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in HR pixels; borders are mirrored."""
    flip: bool = False
    """Mirror half of the views left and right."""
    zoom: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Views are magnified by between 1 / (1 + zoom) and 1 + zoom."""
    light: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Their contrast changes by between 1 / (1 + light) and 1 + light, their brightness by up to light x 128 levels."""


class RecognitionData(Section):
    """Where the pictures are and how they become training, validation and test sets."""

    layout: Literal["digits", "folders", "market1501", "masks", "npz"] = "digits"
    """`digits`: scikit-learn's 8 x 8 digits, no files. `folders`: a folder per class. `market1501`: bounding_box_train,
    query, bounding_box_test with names like 0002_c1s1_000451_03.jpg. `masks`: NAME.jpg beside NAME_mask.png.
    `npz`: arrays in one file.
    """
    root: str = ""
    """The folder, or the npz file."""
    size: Size | tuple[Size, Size] = 32
    """HR side, or [height, width]; every picture is resized to it, and it must be a multiple of every gap."""
    images: str = "x"
    """npz: the key of the pictures (n, H, W[, 3]) uint8."""
    labels: str = "y"
    """npz: the key of the labels (n,), integers from 0."""
    test_images: str | None = None
    """npz: the key of test pictures; without it a part of the pictures is set aside."""
    test_labels: str | None = None
    """npz: the key of their labels."""
    camera: str | None = None
    """npz: the key of the camera or view of each picture, for retrieval."""
    classes: tuple[str, ...] = ()
    """Names of the classes; found from the data where left out. A named class without pictures is refused."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share set aside as test set where the layout has none of its own."""
    split: Literal["pictures", "identities"] = "pictures"
    """What is set aside: pictures of every class, or whole identities (verification, retrieval: unseen people)."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training pictures kept out of training to watch it and to choose settings by; of the identities
    (at least two) for verification and retrieval.
    """
    views: Views = Views()


class RecognitionCache(Section):
    """Where pictures and teacher outputs are kept."""

    root: str = "cache"
    """Folder or URI (s3://, gs://) that holds every shard."""
    shard_mb: Annotated[float, Field(gt=0)] = 64.0
    """Approximate size of one shard of pictures in megabytes (10^6 bytes)."""
    features: Literal["none", "pooled", "map"] = "none"
    """Cached beside logits and embedding: nothing, the last feature map's mean, or the map itself (float16)."""
    online: bool = False
    """Run the teacher in every step instead of reading its outputs from the cache."""


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


class RecognitionTeacher(Section):
    """A network that sees HR."""

    name: Name | None = None
    """How tables call it where there are several; default: its network's name."""
    network: Network = Network(name="resnet14", options={"width": 32})
    checkpoint: str | None = None
    """A file with its weights (safetensors, or .pth read as tensors alone)."""
    pretrained: bool = False
    """Start from timm's published weights of the backbone; the head is trained."""
    train: Budget | None = None
    """Train it on HR, as a phase of the run; needed unless there is a checkpoint."""
    batch: Positive = 64
    """Pictures per forward pass when its outputs are cached."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPU share of the processes that cache outputs and score."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of its training; default: the recipe's."""

    @property
    def label(self) -> str:
        return self.name or self.network.label


class OutputFusion(Section):
    """How several teachers become one: soft labels averaged, embeddings side by side."""

    kind: Literal["mean", "weighted", "best"] = "mean"
    """`mean` of the soft labels; `weighted`: by `weights`; `best`: each class from the teacher that is surest of its
    held-out pictures."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | Literal["fit"] = "fit"
    """Of `weighted`: a share by teacher, or `fit`: those of the greatest likelihood of the held-out labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which the soft labels are averaged."""
    embeddings: Literal["concatenate", "project"] = "concatenate"
    """All embeddings side by side, each of one length, or their principal components, as many as the widest has."""


class Sampling(Section):
    """P x K sampling: every batch holds K pictures of each of P identities."""

    identities: Annotated[int, Field(ge=2)]
    """P. One identity alone has no relations to others."""
    pictures: Annotated[int, Field(ge=2)]
    """K; an identity with fewer pictures repeats them in other views."""


class TaskLoss(Section):
    """How the task itself is learned."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy."""
    dice: Annotated[float, Field(ge=0)] = 1.0
    """Segmentation: weight of the soft Dice loss beside the cross-entropy."""


class Scratch(Section):
    """The LR student alone: the task's loss."""

    name: Literal["scratch"]
    """Always `scratch`."""
    task: Weight = 1.0
    """Weight of the task's loss."""


class KD(Section):
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


class RKD(Section):
    """Resolution-aware distillation (Feng, Lai, Xie, TIP 2021), reconstructed from its abstract: task + adversarial +
    (soft labels and feature regression, pair-wise constraint, MMD). A weight of 0 leaves its term out.
    """

    name: Literal["rkd"]
    """Always `rkd`."""
    task: Weight = 1.0
    """Weight of the task's loss."""
    adversarial: Weight = Ramp(kind="linear", start=0.0, end=0.1, begin=0.05, until=0.2)
    """Weight of the adversarial term; it begins late, when the discriminator has learned something."""
    soft: Weight = 0.3
    """Weight of the soft labels."""
    feature: Weight = 1.0
    """Weight of the feature regression."""
    map: Weight = 0.0
    """Weight of the regression of whole feature maps; needs cache.features: map."""
    pairwise: Weight = 1.0
    """Weight of the pair-wise constraint."""
    mmd: Weight = 1.0
    """Weight of the maximum mean discrepancy."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of the soft labels."""
    discriminator_lr: Annotated[float, Field(gt=0)] = 1e-4
    """Learning rate of the discriminator's own Adam (0.5, 0.999)."""


class HORKD(Section):
    """Hybrid-order relational distillation (Ge et al., AAAI 2020), reconstructed from its abstract and captions: an
    assistant of the student's structure learns at HR from the teacher, then the student at LR from both.
    """

    name: Literal["horkd"]
    """Always `horkd`."""
    task: Weight = 1.0
    """Weight of the task's loss."""
    soft: Weight = 0.1
    """Weight of the soft labels."""
    order1: Weight = 1.0
    """Weight of each item by itself."""
    order2: Weight = 2.0
    """Weight of pairs (distances)."""
    order3: Weight = 4.0
    """Weight of triplets (angles)."""
    group: Weight = 1.0
    """Weight of the whole batch's structure."""
    gamma: Annotated[float, Field(ge=0)] = 0.5
    """What the teacher counts in the second step, beside the assistant's 1."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    """Temperature of the soft labels."""
    assistant: bool = True
    """False: no assistant, the student learns from the teacher alone."""
    union: bool = True
    """"One and more": relations among HR and LR items together, not among LR items alone."""
    init: Literal["assistant", "random"] = "assistant"
    """Where the student starts."""
    anchors: Positive = 32
    """Items of a batch at which angles are taken, to bound memory."""
    assistant_train: Budget | None = None
    """The assistant's training; default: the student's `train`."""


Method = Annotated[Union[Scratch, KD, RKD, HORKD], Field(discriminator="name")]
METHODS: dict[str, type[Section]] = {"scratch": Scratch, "kd": KD, "rkd": RKD, "horkd": HORKD}


class RecognitionCompare(Section):
    """What `faculty run` trains beside the recipe's own method, at the same budget."""

    methods: tuple[Name, ...] = ("scratch", "kd")
    """Baselines: methods by name, or names of `variants`."""
    variants: dict[Name, Method] = {}
    """Methods with settings of their own under names of their own, for ablations."""
    seeds: Positive = 1
    """Seeds per method: seed, seed + 1, ..."""
    settings: dict[MethodName, dict[str, Any]] = {}
    """Settings of methods that are not the recipe's own, by name; defaults where left out."""


class Recognition(Section):
    """One run, from pictures to an LR student."""

    name: Name
    """Names the run, its output folder and its MLflow experiment."""
    task: Task
    """`classification` (accuracy), `verification` (pairs: TAR at FAR, rank-1), `retrieval` (mAP, CMC) or `segmentation`
    (IoU, Dice, AUPRC).
    """
    gap: Positive | tuple[Positive, ...] = 2
    """How many times smaller the student's pictures are a side: 1, 2, 3, 4, 6, 8, 12 or 16; a list runs each."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of everything random."""
    output: str = "runs"
    """Folder or URI under which the folder `name` receives checkpoints, students and the report."""
    data: RecognitionData = RecognitionData()
    cache: RecognitionCache = RecognitionCache()
    teacher: RecognitionTeacher = RecognitionTeacher()
    """The network that sees HR, where one is enough."""
    teachers: tuple[RecognitionTeacher, ...] = ()
    """Several of them instead: students learn from them together."""
    fusion: OutputFusion = OutputFusion()
    student: Network = Network()
    input: Literal["native", "enlarged"] = "native"
    """The student gets LR pictures as they are (strides of its stem are dropped where its last map would be a single
    pixel), or enlarged to HR's size by bicubic interpolation."""
    method: Method
    """How the student is trained: `scratch`, `kd`, `rkd` or `horkd`."""
    loss: TaskLoss = TaskLoss()
    sampling: Sampling | None = None
    """P x K sampling by identity; pictures in random order where left out."""
    train: Budget = Budget()
    distill: Distill = Distill()
    compare: RecognitionCompare = RecognitionCompare()
    tracking: Tracking = Tracking()

    @property
    def seen_by(self) -> tuple[RecognitionTeacher, ...]:
        """The networks that see HR."""
        return self.teachers or (self.teacher,)

    @property
    def gaps(self) -> tuple[int, ...]:
        return (self.gap,) if isinstance(self.gap, int) else self.gap

    @property
    def hr_size(self) -> tuple[int, int]:
        """(height, width) of an HR picture."""
        return (self.data.size, self.data.size) if isinstance(self.data.size, int) else self.data.size

    def lr_size(self, gap: int) -> tuple[int, int]:
        """(height, width) of an LR picture."""
        return self.hr_size[0] // gap, self.hr_size[1] // gap

    def input_size(self, gap: int) -> tuple[int, int]:
        """(height, width) of what the student gets."""
        return self.hr_size if self.input == "enlarged" else self.lr_size(gap)

    def _fusable(self) -> None:
        """What several teachers need. Raises ValueError."""
        labels = [teacher.label for teacher in self.teachers]
        if double := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"teachers: names must differ, found {double} twice; give each a `name`")
        networks = [t.model_dump(exclude={"name", "batch", "gpus"}) for t in self.teachers]
        if twice := [labels[i] for i, network in enumerate(networks) if network in networks[:i]]:
            raise ValueError(f"teachers: {twice[0]} equals one before it; give it a `seed` of its own")
        fusion = self.fusion
        if fusion.kind == "weighted" and isinstance(fusion.weights, dict):
            if set(fusion.weights) != set(labels) or not sum(fusion.weights.values()):
                raise ValueError(f"fusion.weights must name exactly the teachers {labels}, not all with 0")
        elif fusion.kind != "mean" and self.task != "classification":
            raise ValueError(
                f"fusion.{'weights: fit' if fusion.kind == 'weighted' else 'kind: best'} needs held-out pictures of "
                f"the classes that are trained on, which {self.task} has not; take `mean`, or give the weights"
            )
        if self.cache.features != "none":
            raise ValueError("cache.features: several teachers have no common feature maps; take `none`")

    @model_validator(mode="after")
    def _consistent(self) -> Recognition:
        for gap in self.gaps:
            if gap not in GAPS:
                raise ValueError(f"gap must be one of {', '.join(map(str, sorted(GAPS)))}, found {gap}")
            height, width = self.lr_size(gap)
            if self.hr_size[0] % gap or self.hr_size[1] % gap:
                raise ValueError(f"data.size {self.hr_size} must be a multiple of gap ({gap})")
            if min(height, width) < LEAST_SIDE:
                raise ValueError(
                    f"gap {gap} leaves {height}x{width} pixels of {self.hr_size[0]}x{self.hr_size[1]}; at least "
                    f"{LEAST_SIDE} a side are needed"
                )
        if not self.gaps or len(set(self.gaps)) != len(self.gaps):
            raise ValueError(f"gap: one or several different values, found {self.gap}")
        if self.teachers and self.teacher != RecognitionTeacher():
            raise ValueError("`teacher` or `teachers`, not both")
        for number, teacher in enumerate(self.seen_by):
            where = f"teachers.{number}" if self.teachers else "teacher"
            if teacher.checkpoint and teacher.pretrained:
                raise ValueError(f"{where}: `checkpoint` or `pretrained`, not both")
            if not teacher.checkpoint and teacher.train is None:
                raise ValueError(
                    f"{where}: give it a `train` (its training on HR) or a `checkpoint`; `pretrained` weights have no "
                    "head for these classes, so they need `train` too"
                )
        if len(self.teachers) > 1:
            self._fusable()
        if (self.task == "segmentation") != (self.data.layout == "masks"):
            raise ValueError(f"task {self.task} does not go with data.layout {self.data.layout}")
        if self.sampling and self.task == "segmentation":
            raise ValueError("sampling: pictures for segmentation have no identities")
        if self.sampling and self.train.batch != self.sampling.identities * self.sampling.pictures:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be sampling.identities x sampling.pictures "
                f"({self.sampling.identities * self.sampling.pictures})"
            )
        if len(set(self.data.classes)) < len(self.data.classes):
            raise ValueError(f"data.classes: names must differ, found {list(self.data.classes)}")
        if self.data.split == "identities" and self.task not in ("verification", "retrieval"):
            raise ValueError(
                f"data.split: identities does not go with {self.task}: its classes must be known"
            )
        for name, settings in self.compare.settings.items():
            if settings.get("name", name) != name:
                raise ValueError(f"compare.settings.{name}: its name is {settings['name']!r}")
            METHODS[name].model_validate({**settings, "name": name})
        variants = self.compare.variants
        if taken := sorted(set(METHODS) & set(variants)):
            raise ValueError(f"compare.variants: {taken} are methods' own names; choose others")
        if unknown := sorted(set(self.compare.methods) - {*METHODS, *variants}):
            raise ValueError(
                f"compare.methods: {unknown} are neither methods ({', '.join(METHODS)}) nor names of compare.variants"
            )
        for where, method in {
            "method": self.method,
            **{f"compare.variants.{k}": v for k, v in variants.items()},
        }.items():
            if isinstance(method, RKD) and method.map != 0.0 and self.cache.features != "map":
                raise ValueError(f"{where}.map needs cache.features: map")
        return self


__all__ = ["HORKD", "KD", "METHODS", "RKD", "Fraction", "Recognition", "Scratch"]
