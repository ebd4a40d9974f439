"""The settings of a recognition recipe, each documented beside it: a recipe with the key `task`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.recipe.checks import unshared
from pipeline.recipe.recipe import Actors, Distill, Tracking
from pipeline.recipe.recognition_methods import METHODS, OF_MASKS, RKD, Method
from pipeline.recipe.settings import Budget, Later, Name, Positive, Section, Seed
from pipeline.tasks.recognition.comparing import RecognitionCompare
from pipeline.tasks.recognition.network_settings import Network as Network
from pipeline.tasks.recognition.network_settings import RecognitionTeacher as RecognitionTeacher
from pipeline.tasks.recognition.settings import (
    GAPS,
    Degradation,
    Mixing,
    OutputFusion,
    RecognitionCache,
    RecognitionData,
    Sampling,
    unfit,
)


class TaskLoss(Section):
    """How the task itself is learned."""

    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing of the cross-entropy."""
    dice: Annotated[float, Field(ge=0)] = 1.0
    """Segmentation: weight of the soft Dice loss beside the cross-entropy."""


class Recognition(Later):
    """One run, from pictures to an LR student."""

    later: ClassVar[tuple[str, ...]] = ("lr", "lr_scored", "mixing")
    known_methods: ClassVar[Mapping[str, type[Section]]] = METHODS

    name: Name
    """Names the run, its output folder and its MLflow experiment."""
    task: Literal["classification", "verification", "retrieval", "segmentation"]
    """`classification` (accuracy), `verification` (pairs: TAR at FAR, rank-1), `retrieval` (mAP, CMC) or `segmentation`
    (IoU, Dice, AUPRC).
    """
    gap: Positive | tuple[Positive, ...] = 2
    """How many times smaller the student's pictures are a side: 1, 2, 3, 4, 6, 8, 12 or 16; a list runs each."""
    lr: Degradation | tuple[Degradation, ...] = "bicubic"
    """How LR arises: `bicubic`, `average` or `blur_noise`. Of a list each sample in training has one, drawn anew each
    time; held-out and test pictures have the first, and each student is scored with the others too."""
    lr_scored: tuple[Degradation, ...] = ()
    """Further ways in which LR of the test pictures arises, each with a figure of its own: how a student does on
    pictures that came about otherwise than those of its training."""
    seed: Seed = 0
    """Seed of everything random."""
    output: str = "runs"
    """Folder or URI under which the folder `name` receives checkpoints, students and the report."""
    data: RecognitionData = RecognitionData()
    cache: RecognitionCache = RecognitionCache()
    teacher: RecognitionTeacher = RecognitionTeacher()
    """The network that sees HR, where one is enough."""
    teach: Actors = Actors()
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
    mixing: Mixing = Mixing()
    """mixup and CutMix of the students' pictures, of `scratch` as of all others; nothing is mixed where left out."""
    train: Budget = Budget()
    distill: Distill = Distill()
    compare: RecognitionCompare = RecognitionCompare()
    tracking: Tracking = Tracking()

    @property
    def identities(self) -> bool:
        """Whether what is asked about is other than what was trained on: unseen people, not known classes."""
        return self.task in ("verification", "retrieval")

    @property
    def masks(self) -> bool:
        """Whether the truth about a picture is a mask."""
        return self.task == "segmentation"

    @property
    def seen_by(self) -> tuple[RecognitionTeacher, ...]:
        """The networks that see HR."""
        return self.teachers or (self.teacher,)

    @property
    def gaps(self) -> tuple[int, ...]:
        """The recipe's own."""
        return (self.gap,) if isinstance(self.gap, int) else self.gap

    @property
    def degradations(self) -> tuple[Degradation, ...]:
        """How LR arises, the first in tests."""
        return (self.lr,) if isinstance(self.lr, str) else self.lr

    @property
    def other_degradations(self) -> tuple[Degradation, ...]:
        """How LR arises in tests beside the first."""
        return tuple(dict.fromkeys((*self.degradations[1:], *self.lr_scored)))

    @property
    def trained_gaps(self) -> tuple[int, ...]:
        """The gaps that students are trained at: the recipe's own, and those of `compare.gaps` that fit, rising."""
        if not self.compare.gaps:
            return self.gaps
        return tuple(sorted({*self.gaps, *self.compare.gaps} - self.left_out.keys()))

    @property
    def left_out(self) -> dict[int, str]:
        """{gap of `compare.gaps`: why these pictures are too small for it}."""
        reasons = {gap: unfit(self.hr_size, gap) for gap in self.compare.gaps}
        return {gap: reason for gap, reason in reasons.items() if reason}

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

    def _mixable(self, where: str, method: Section) -> None:
        """What mixed pictures ask of the task and of a method. Raises ValueError."""
        if not self.mixing.on:
            return
        if self.task != "classification":
            raise ValueError(f"mixing: it is for classification, not for {self.task}")
        if getattr(method, "map", 0.0) != 0.0:
            raise ValueError(f"{where}.map: cached maps of mixed pictures are not known; set it to 0")

    def _fusable(self) -> None:
        """What several teachers need. Raises ValueError."""
        labels = [teacher.label for teacher in self.teachers]
        if double := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"teachers: names must differ, found {double} twice; give each a `name`")
        networks = [t.model_dump(exclude={"name", "batch", "gpus"}) for t in self.teachers]
        if twice := [labels[i] for i, network in enumerate(networks) if network in networks[:i]]:
            raise ValueError(f"teachers: {twice[0]} equals one before it; give it a `seed` of its own")
        fusion = self.fusion
        if fusion.kind != "weighted" and isinstance(fusion.weights, dict):
            raise ValueError(f"fusion.weights goes with fusion.kind: weighted, found {fusion.kind}")
        if fusion.kind == "weighted" and isinstance(fusion.weights, dict):
            if set(fusion.weights) != set(labels) or not sum(fusion.weights.values()):
                raise ValueError(f"fusion.weights must name exactly the teachers {labels}, not all with 0")
        elif fusion.kind != "mean" and (self.identities or self.masks):
            raise ValueError(
                f"fusion.{'weights: fit' if fusion.kind == 'weighted' else 'kind: best'} needs held-out pictures of "
                f"the classes that are trained on, which {self.task} has not; take `mean`, or give the weights"
            )
        if self.cache.features != "none":
            raise ValueError("cache.features: several teachers have no common feature maps; take `none`")

    @model_validator(mode="before")
    @classmethod
    def _of_masks(cls, content: Any) -> Any:
        """Segmentation has defaults of its own for what methods make of whole pictures."""
        if not isinstance(content, dict) or content.get("task") != "segmentation":
            return content

        def filled(method: Any, name: Any = None) -> Any:
            if not isinstance(method, dict) or not isinstance(name := method.get("name", name), str):
                return method
            return {**OF_MASKS.get(name, {}), **method}

        found = dict(content)
        if "method" in content:
            found["method"] = filled(content["method"])
        if isinstance(compare := content.get("compare"), dict):
            found["compare"] = dict(compare)
            if isinstance(variants := compare.get("variants"), dict):
                found["compare"]["variants"] = {n: filled(v) for n, v in variants.items()}
            if isinstance(settings := compare.get("settings"), dict):
                found["compare"]["settings"] = {n: filled(v, n) for n, v in settings.items()}
        return found

    @model_validator(mode="after")
    def _consistent(self) -> Recognition:
        for gap in self.gaps:
            if gap not in GAPS:
                raise ValueError(f"gap must be one of {', '.join(map(str, sorted(GAPS)))}, found {gap}")
            if reason := unfit(self.hr_size, gap):
                raise ValueError(reason)
        if not self.gaps or len(set(self.gaps)) != len(self.gaps):
            raise ValueError(f"gap: one or several different values, found {self.gap}")
        if not self.degradations or len(set(self.degradations)) != len(self.degradations):
            raise ValueError(f"lr: one or several different degradations, found {list(self.degradations)}")
        if self.degradations[0] in self.lr_scored:
            raise ValueError(
                f"lr_scored: {self.degradations[0]} is what every figure is of already; leave it out"
            )
        if 1 in self.trained_gaps and (self.degradations != ("bicubic",) or self.lr_scored):
            key = "lr_scored" if self.degradations == ("bicubic",) else "lr"
            raise ValueError(
                f"{key}: at a gap of 1 pictures stay as they are; leave it out, or 1 out of `gap` (and `compare.gaps`)"
            )
        if self.compare.gaps and len(self.left_out) == len(self.compare.gaps):
            raise ValueError(f"compare.gaps: none fits: {'; '.join(self.left_out.values())}")
        if self.teachers and self.teacher != RecognitionTeacher():
            raise ValueError("`teacher` or `teachers`, not both")
        for number, teacher in enumerate(self.seen_by):
            where = f"teachers.{number}" if self.teachers else "teacher"
            if (teacher.factory or teacher.timm) and self.masks:
                raise ValueError(f"{where}: `timm` and `factory` give classes or embeddings, not {self.task}")
            if reason := teacher.wrong:
                raise ValueError(f"{where}: {reason}")
        named: dict[str, Any] = {
            f"compare.variants.{n}": method for n, method in self.compare.variants.items()
        }
        for name, settings in self.compare.settings.items():
            if settings.get("name", name) != name:
                raise ValueError(f"compare.settings.{name}: its name is {settings['name']!r}")
            named[f"compare.settings.{name}"] = METHODS[name].model_validate({**settings, "name": name})
        for where, method in {"method": self.method, **named}.items():
            if getattr(method, "logits", "") == "decoupled" and self.task != "classification":
                raise ValueError(f"{where}: logits: decoupled is for classification, not for {self.task}")
            if getattr(method, "logits", "") == "standardised" and self.masks:
                raise ValueError(
                    f"{where}: logits: standardised keeps of two classes which one is likelier, and not by how much; "
                    f"{self.task} takes plain"
                )
            self._mixable(where, method)
        if len(self.teachers) > 1:
            self._fusable()
        trainings = {
            "train": self.train,
            "method.assistant_train": getattr(self.method, "assistant_train", None),
        }
        trainings |= {f"teacher {teacher.label}: train": teacher.train for teacher in self.seen_by}
        for where, training in trainings.items():
            if training and (reason := unshared(self.distill.workers, training.batch, where)):
                raise ValueError(reason)
        if self.masks != (self.data.layout == "masks"):
            raise ValueError(f"task {self.task} does not go with data.layout {self.data.layout}")
        if self.data.layout == "market1501" and not self.identities:
            raise ValueError(
                f"data.layout: market1501 tests on people whom nobody was trained on, which {self.task} cannot name; "
                "it goes with retrieval and verification"
            )
        if self.sampling and self.masks:
            raise ValueError("sampling: pictures for segmentation have no identities")
        if self.sampling and self.train.batch != self.sampling.identities * self.sampling.pictures:
            raise ValueError(
                f"train.batch ({self.train.batch}) must be sampling.identities x sampling.pictures "
                f"({self.sampling.identities * self.sampling.pictures})"
            )
        if len(set(self.data.classes)) < len(self.data.classes):
            raise ValueError(f"data.classes: names must differ, found {list(self.data.classes)}")
        if self.data.split == "identities" and not self.identities:
            raise ValueError(
                f"data.split: identities does not go with {self.task}: its classes must be known"
            )
        variants = self.compare.variants
        if taken := sorted(set(METHODS) & set(variants)):
            raise ValueError(f"compare.variants: {taken} are methods' own names; choose others")
        if unknown := sorted(set(self.compare.methods) - {*METHODS, *variants}):
            raise ValueError(
                f"compare.methods: {unknown} are neither methods ({', '.join(METHODS)}) nor names of compare.variants"
            )
        for where, method in {"method": self.method, **named}.items():
            if isinstance(method, RKD) and method.map != 0.0 and self.cache.features != "map":
                raise ValueError(f"{where}.map needs cache.features: map")
        return self
