"""The recipe's settings: the whole truth of a run, each documented beside it. `recipe_file.py` reads them from YAML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pywt
from pydantic import Field, model_validator

from pipeline.recipe.checks import unshared, without_hr
from pipeline.recipe.comparing import Equal
from pipeline.recipe.data import Data
from pipeline.recipe.fusion import Aggregate, Bands, Best, Fusion, Mean, Weighted
from pipeline.recipe.methods import DUKD, KD, METHODS, PISR, Method
from pipeline.recipe.settings import Gpus, Later, Name, Positive, Section, Seed, Train
from pipeline.recipe.student import Student as Student
from pipeline.recipe.teachers import TeacherSpec as TeacherSpec
from pipeline.recipe.upcycle import checks as upcycling


class Cache(Section):
    """Where tiles, teacher outputs and fused targets are kept."""

    root: str = "cache"
    """Folder or URI (s3://, gs://) that holds every shard."""
    shard_mb: Annotated[float, Field(gt=0)] = 64.0
    """Approximate size of one shard's pixels in megabytes (10^6 bytes)."""
    dtype: Literal["uint8", "float16"] = "uint8"
    """How teacher outputs are stored: `uint8` (0..255, rounded) or `float16` (0..1, unclamped)."""


class Actors(Section):
    """The processes that run the teachers."""

    actors: Positive | dict[str, Positive] | Literal["auto"] = "auto"
    """Actors per teacher: a number, a table by teacher name, or `auto` (shared out by measured cost)."""
    cpus_per_actor: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPU share that Ray reserves per actor."""
    threads: Positive | Literal["auto"] = "auto"
    """CPU threads of an actor; `auto` shares the cores between the actors that have work, anew for each shard."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """How often a dead actor is restarted (its shard is taught again) before the run fails."""


class Teach(Actors):
    """How the teachers are run."""

    gpus_per_actor: Gpus = "auto"
    """GPU share per actor: 0.25 puts four actors on one GPU, 0 keeps them on CPUs; `auto` shares out what there is."""
    batch: Positive | Literal["auto"] = "auto"
    """Tiles per forward pass: `auto` is 8 on a CPU, 32 on a GPU, which takes up to a quarter more to leave no rest."""


class Distill(Section):
    """Ray Train's side of a training."""

    workers: Positive | tuple[Positive, Positive] = 1
    """Workers, or [least, most] for an elastic group. The global batch is split over them."""
    cpus_per_worker: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """CPUs per worker, also its thread count; `auto` shares the machine between the trainings that run side by side."""
    gpus_per_worker: Gpus = "auto"
    """GPUs per worker, 0 for CPUs; `auto` shares out what there is: up to twelve trainings a GPU, a whole GPU for
    each of several workers."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources per worker: {on_demand: 0.001} keeps a training on nodes that have `on_demand`
    (cluster.yaml).
    """
    side_by_side: Positive | Literal["auto"] = "auto"
    """Trainings of one comparison that run at the same time."""
    max_failures: Annotated[int, Field(ge=-1)] = 2
    """Worker failures after which the run ends; -1 for no limit."""


class Compare(Equal):
    """What `faculty run` trains beside the recipe's own method, at the same budget."""

    methods: tuple[str, ...] = ("scratch",)
    """Baselines: methods by name, or names of `variants`."""
    variants: dict[Name, Method] = {}
    """Further settings of methods under names of their own, for ablations."""
    beside: tuple[TeacherSpec, ...] = ()
    """Networks that stand beside in the table, published ones of the student's size: nobody learns from them."""
    seeds: Positive = 1
    """Seeds per method: seed, seed + 1, ..."""


class Export(Section):
    """What a student leaves as, besides safetensors, ONNX in float32 and `.pth`."""

    formats: tuple[Literal["fp16", "int8", "ncnn"], ...] = ()
    """Smaller ones, each kept where it loses little (fp16 and ncnn 0.02 dB, int8 0.3 dB): `fp16` and `int8` are ONNX,
    int8 calibrated on the run's tiles; `ncnn` is for phones and needs `pip install 'faculty[ncnn]'`.
    """


class Tracking(Section):
    """MLflow."""

    enabled: bool = True
    """Record the run in MLflow."""
    uri: str | None = None
    """Tracking store; default: MLFLOW_TRACKING_URI, else sqlite beside the output folder."""
    experiment: str | None = None
    """Experiment; default: the recipe's name."""
    system_metrics: bool = True
    """Also record CPU, memory, disk, network and GPU load of the machine with the driver."""


class Recipe(Later):
    """One run, from pictures and checkpoints to a student."""

    later: ClassVar[tuple[str, ...]] = ("judged_by", "export")
    known_methods: ClassVar[Mapping[str, type[Section]]] = METHODS

    name: Name
    """Names the run, its output folder and its MLflow experiment."""
    scale: Literal[1, 2, 3, 4]
    """Enlargement; 1 is restoration (of noise, of compression): LR has HR's size."""
    seed: Seed = 0
    """Seed of everything random."""
    output: str = "runs"
    """Folder or URI under which the folder `name` receives checkpoints, students and the report."""
    data: Data
    cache: Cache = Cache()
    teachers: tuple[TeacherSpec, ...] = ()
    """The pretrained networks; their order is part of the fusion."""
    teach: Teach = Teach()
    fusion: Fusion = Mean(kind="mean")
    """How the teachers become one target: `mean`, `median`, `best`, `weighted`, `bands`, `mask`, `regions` or
    `aggregate`.
    """
    student: Student = Student()
    method: Method
    """How the student is trained: `scratch`, `kd`, `mtkd`, `pisr` or `dukd`."""
    train: Train = Train()
    judged_by: Literal["hr", "teachers"] | None = None
    """What tables, charts and searches go by: `hr`, PSNR against HR; or `teachers`, fidelity: PSNR against what all
    teachers make of the same LR picture, for teachers that are sharper than HR is. Default: `hr` where there is some.
    """
    distill: Distill = Distill()
    compare: Compare = Compare()
    export: Export = Export()
    tracking: Tracking = Tracking()

    @property
    def by_fidelity(self) -> bool:
        """Whether students are judged by how near they come to their teachers."""
        return self.judged_by == "teachers" or not self.data.has_hr

    @model_validator(mode="before")
    @classmethod
    def _baselines(cls, content: Any) -> Any:
        """Without HR no student learns alone: the default baseline falls away."""
        if isinstance(content, dict) and isinstance(content.get("data"), dict):
            data, compare = content["data"], content.get("compare") or {}
            if (
                data.get("lr_only")
                and not (data.get("train") or data.get("pairs"))
                and isinstance(compare, dict)
            ):
                return {**content, "compare": {"methods": [], **compare}}
        return content

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        labels = [t.label for t in self.teachers]
        actors = self.teach.actors if isinstance(self.teach.actors, dict) else {}
        named = [*labels, *(t.label for t in self.compare.beside)]
        double = sorted({n for n in named if named.count(n) > 1})
        checks = [
            *without_hr(self),
            *upcycling(self),
            (
                isinstance(self.fusion, Bands)
                and (not {self.fusion.low, self.fusion.details} <= set(labels) or not self.fusion.shares),
                f"fusion.low and fusion.details must name two of the teachers {labels}, with a share at least",
            ),
            (
                isinstance(self.fusion, Bands) and self.fusion.wavelet not in pywt.wavelist(kind="discrete"),
                f"fusion.wavelet must be a discrete wavelet of PyWavelets, found {getattr(self.fusion, 'wavelet', '')}",
            ),
            (
                self.data.tile % self.scale,
                f"data.tile ({self.data.tile}) must be a multiple of scale ({self.scale})",
            ),
            (
                bool(double),
                f"teachers: names must differ (those of compare.beside too), found {double} twice; give each a `name`",
            ),
            (
                self.method.target != "none" and not self.teachers,
                f"method {self.method.name} needs at least one teacher; add `teachers:`",
            ),
            (
                bool(taken := sorted(set(METHODS) & set(self.compare.variants))),
                f"compare.variants: {taken} are methods' own names; choose others",
            ),
            (
                bool(unknown := sorted(set(self.compare.methods) - {*METHODS, *self.compare.variants})),
                f"compare.methods: {unknown} are neither methods ({', '.join(METHODS)}) nor names of compare.variants",
            ),
            (
                bool(strange := sorted(set(actors) - set(labels))),
                f"teach.actors names {strange}, which are no teachers; the teachers are {labels}",
            ),
            (
                isinstance(self.fusion, Weighted)
                and isinstance(self.fusion.weights, dict)
                and set(self.fusion.weights) != set(labels),
                f"fusion.weights must name exactly the teachers {labels}",
            ),
            (
                isinstance(self.fusion, Weighted)
                and isinstance(self.fusion.weights, dict)
                and not math.isclose(sum(self.fusion.weights.values()), 1, abs_tol=0.01),
                "fusion.weights must sum to 1, or pictures get darker or brighter",
            ),
            (
                isinstance(self.fusion, Best) and bool(self.data.lr_only) and len(self.teachers) > 1,
                "fusion best is chosen by HR, and data.lr_only has none; take mean, median or weighted",
            ),
            (
                isinstance(self.method, (KD, DUKD)) and self.method.teacher == "best" and "best" in labels,
                "method.teacher: `best` means the teacher of the highest PSNR, and a teacher is called so; give that "
                "teacher (teachers) another `name`",
            ),
            (
                isinstance(self.method, KD) and self.method.teacher not in ("best", *labels),
                f"method.teacher must be `best` or one of {labels}, found {getattr(self.method, 'teacher', '')!r}",
            ),
        ]
        trainings = [("train", self.train)]
        if isinstance(self.fusion, Aggregate):
            trainings.append(("fusion.train", self.fusion.train))
        if isinstance(self.method, PISR) and self.method.pretrain:
            trainings.append(("method.pretrain", self.method.pretrain))
        room = self.data.tile // self.scale - 2 * self.data.margin
        for path, t in trainings:
            checks.append(
                (t.patch > room, f"{path}.patch ({t.patch}) exceeds tile/scale - 2*margin ({room})")
            )
            checks.append((bool(text := unshared(self.distill.workers, t.batch, path)), text))
            checks.append(
                (
                    isinstance(self.method, PISR) and path != "fusion.train" and t.sampling != "uniform",
                    f"{path}.sampling must be uniform for pisr: importance weights act on a network's output, and pisr "
                    "compares features too",
                )
            )
        for bad, text in checks:
            if bad:
                raise ValueError(text)
        return self
