"""What the parts of a run hand to each other, by value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.cache.stats import Stats
from pipeline.recipe.settings import Gpus
from pipeline.report.table import Role
from pipeline.steps.job import Job


class Step(Protocol):
    """A unit of work by value: one shard in, one shard out. Running it again gives the same shard."""

    def run(self, device: str) -> Any:
        """Read, compute, commit."""


class OutputStep(Protocol):
    """One shard of samples for one network, in three parts: while one is computed, others are read and written."""

    @property
    def cache(self) -> str:
        """URI of the store that it reads and writes."""

    @property
    def samples(self) -> Receipt:
        """The shard that it reads."""

    @property
    def unit(self) -> float:
        """What a difference of outputs is multiplied by to be one of grey levels; 1 where they are no pictures."""

    def read(self) -> Any:
        """The shard of samples, verified."""

    def compute(self, shard: Any, network: Any, device: str) -> Any:
        """Everything through the network. Raises FacultyError for outputs that are not finite."""

    def commit(self, computed: Any) -> tuple[Receipt, Stats]:
        """Write the shard of outputs and its statistics; its receipt comes last."""


class Network(Protocol):
    """A network with outputs, by value."""

    @property
    def multiply_adds(self) -> int | None:
        """Of one sample: how much of a machine it gets; None where nobody knows."""

    def open(self, cache: str, device: str) -> Any:
        """The network, ready to run."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a named tensor of a batch is cached."""

    column: str
    train: str
    """Manifest of the training samples, relative to the cache."""
    held_out: str | None
    """Manifest of the held-out samples, if there are any."""


@dataclass(frozen=True, slots=True)
class Cached:
    """One finished folder of the cache: a manifest for each split of the samples."""

    folder: str
    manifests: Mapping[str, Manifest]

    @property
    def train(self) -> Manifest:
        return self.manifests["train"]

    @property
    def held_out(self) -> Manifest | None:
        return self.manifests.get("held_out")

    def splits(self) -> Iterator[tuple[str, Manifest]]:
        yield from self.manifests.items()

    def path(self, split: str) -> str:
        """Where the split's manifest lies."""
        return manifest_path(self.folder, self.manifests[split])

    def columns(self, column: str) -> Columns:
        return Columns(column, self.path("train"), self.path("held_out") if self.held_out else None)


@dataclass(frozen=True, slots=True)
class Samples(Cached):
    """The samples in the cache."""

    classes: tuple[str, ...] = ()
    """Names of what is told apart, in order of their numbers; empty where nothing is."""
    pictures: Mapping[str, str] = field(default_factory=dict)
    """{sha256 of its pixels: path} of the pictures that are trained or validated on, where that is known."""


class SamplePlan(Protocol):
    """The samples that a recipe asks for, and what of them is to be made."""

    @property
    def kept(self) -> Mapping[str, Receipt]:
        """Shards that are there already, by key."""

    @property
    def steps(self) -> Sequence[Step]:
        """Those to be made; each returns its receipt."""

    @property
    def note(self) -> str:
        """For the progress line."""

    def samples(self, receipts: Mapping[str, Receipt], keep: Callable[[str, Manifest], Manifest]) -> Samples:
        """All shards as splits; `keep` writes a manifest."""


@dataclass(frozen=True, slots=True)
class Column:
    """Outputs that are to be there: a shard for each shard of samples."""

    label: str
    folder: str
    step: Callable[[Receipt], Any]
    """The step that makes the outputs of a shard of samples."""
    manifest: Callable[[Manifest, Mapping[str, Receipt]], Manifest]
    """(samples of a split, receipts by key) -> the manifest of its outputs."""
    gpus: Gpus = 0.0
    """Share of a GPU that such a step gets, where several networks' outputs are put together."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What students learn from: a network's outputs in the cache, or those of several together."""

    label: str
    role: Role
    network: Any
    """By value."""
    cached: Cached | None
    """None where its outputs are made in the training's steps."""
    quality: float = float("nan")
    """By which a task tells the better of two, on held-out samples (on the training samples where none are)."""
    seconds: float = 0.0
    """Forward time over all its samples, on whatever machine made them."""
    rows: int = 0
    job: Job | None = None
    """Its training, where the run trains it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What some methods need to be there."""

    teachers: bool
    outputs: bool
    """Of the teachers, in the cache."""
    fused: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """What trainings read, all there."""

    samples: Samples
    teachers: Sequence[Outputs] = ()
    fused: Outputs | None = None
    helpers: Mapping[str, Outputs] = field(default_factory=dict)
    """By method: the network that it trains before its students (PISR's teacher, HORKD's assistant)."""

    @property
    def all(self) -> list[Outputs]:
        """Every network that students learn from, those of the fusion last; helpers apart."""
        return [*self.teachers, *([self.fused] if self.fused else [])]


@dataclass(frozen=True, slots=True)
class Result:
    """A model's figures on the test pictures."""

    name: str
    """How tables call it: no other of a run is called so."""
    role: Role
    identity: str
    """Follows from its weights: whatever is kept of a model is kept under it, never under its name."""
    sets: Mapping[str, Mapping[str, Any]]
    """{test set: {metric: value}}, and what else the JSON says of it."""
    parameters: int | None = None
    multiply_adds: int | None = None
    latency_ms: float | None = None
    job: Job | None = None
    """A student's training."""
    row: str = ""
    """The table's row, which the seeds of one training share; empty: a row of its own."""
    curves: Mapping[str, Any] = field(default_factory=dict)
    """What a task's drawings are made from."""

    @property
    def group(self) -> str:
        """The name of its row."""
        return self.row or self.name


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    recipe: Any
    prepared: Prepared
    jobs: Sequence[Job]
    results: Sequence[Result]
    """Every model, baselines first."""
    sets: Sequence[str]
    scores: Any = None
    """What the task keeps of its scoring for its drawings."""
    work: Mapping[str, float] = field(default_factory=dict)
    """Multiply-adds by method, where comparisons are not of equal steps."""

    def of(self, job: Job) -> Result:
        """A student's figures."""
        return next(r for r in self.results if r.job is not None and r.job.label == job.label)


def manifest_path(folder: str, manifest: Manifest) -> str:
    """Where a manifest lies."""
    return f"{folder}/manifest-{manifest.fingerprint}.json"
