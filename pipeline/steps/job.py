"""A training as a step by value: it can be sent to a worker on another machine, and run again after a kill."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.losses.gather import globalise
from pipeline.methods.base import Phase, PhaseBuilder
from pipeline.recipe.settings import Budget, Section
from pipeline.steps import seen
from pipeline.steps.seen import Strip
from pipeline.training import weights
from pipeline.training.autocast import FINE
from pipeline.training.loop import train
from pipeline.training.surroundings import Batches, Curves, Hooks
from pipeline.training.turns import TURN

if TYPE_CHECKING:
    from pipeline.tasks.base import Task

STUDENT = "student"
OBSERVED_ONLY = ("log_every", "evaluate_every", "keep")
Judge = Callable[[nn.Module], tuple[dict[str, float], Strip | None]]
"""(artefact) -> ({"held_out/<metric>": value}, pictures to look at or None)."""


class DoesNotFit(FacultyError):
    """A training for which a GPU's memory is too small, alone or beside what else is there."""


class Stopped(Exception):
    """Raised by a listener's `sync` on every rank: this training goes no further."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a training's news go; all optional."""

    log: Callable[[dict[str, float], int], None] | None = None
    picture: Callable[[np.ndarray, int], None] | None = None
    """(HWC uint8 strip of held-out samples, step) after each evaluation."""
    sync: Callable[[dict[str, float], int], None] | None = None
    """(metrics, step) on every rank after each checkpoint; the metrics say `last_phase` (1 or 0) too, and in seconds
    how long it trained in this process (`at`) and how much of that its evaluations took (`looked`)."""
    urgent: Callable[[], bool] | None = None
    """Asked on every rank now and then; True where a checkpoint is due at once, because the machine may go."""
    say: Callable[[str], None] | None = None
    """What people should know of how it trains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(ABC):
    """Everything that a training needs, by value. What is trained, on what, and who judges it, each task says."""

    task: Task
    label: str
    """Names it in its run."""
    role: str
    """`student`; or what helps students, and lies in the cache: `teacher`, `assistant`, `aggregation`."""
    method: str = ""
    """Of a student: its method's name, or that of the variant that its settings come from."""
    recipe: dict[str, Any]
    seed: int
    gap: int = 1
    """How many times smaller than HR the trained network's pictures are a side."""
    folder: str
    """Where checkpoints and the result go, relative to the run's output (a student's) or to the cache."""
    fingerprint: str

    @property
    def spec(self) -> Any:
        """Its recipe."""
        return self.task.recipe.model_validate(self.recipe)

    @property
    def group(self) -> str:
        """The label without the seed: what the seeds of one training share."""
        return self.label.removesuffix(f"-s{self.seed}")

    @property
    def identity(self) -> str:
        """Of the network that it makes."""
        return f"{self.role}-{self.fingerprint}"

    @property
    def root(self) -> str:
        """URI of the store that `folder` lies in."""
        recipe = self.spec
        if self.role == STUDENT:
            return Store.open(recipe.output).below(recipe.name).uri
        return Store.open(recipe.cache.root).uri

    def output(self) -> Store:
        """Where checkpoints, weights and result go."""
        return Store.open(self.root).below(self.folder)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole job."""
        return self.settings.steps

    @property
    def scored(self) -> bool:
        """Whether its network is a row of the table."""
        return True

    def result(self) -> dict[str, Any] | None:
        """What a finished job left, or None; damaged results are set aside (`weights.finished`)."""
        return weights.finished(self.output(), self.fingerprint)

    def seen(self) -> list[tuple[int, Strip]]:
        """(step, pictures) of a few moments of its last phase, as far as they were kept."""
        found = {rel.partition("/")[0] for rel, _ in self.output().list() if "/seen-" in rel}
        last = max(found, key=lambda folder: int(folder.partition("-")[0]), default=None)
        return seen.kept(self.output().below(last)) if last else []

    @property
    @abstractmethod
    def settings(self) -> Budget:
        """Its length and optimiser."""

    @abstractmethod
    def params(self) -> dict[str, Any]:
        """What MLflow shows of it."""

    @abstractmethod
    def given(self, device: str) -> dict[str, nn.Module]:
        """Networks that its first phase starts from or looks at, by name."""

    @abstractmethod
    def phases(self, device: str) -> Sequence[PhaseBuilder]:
        """The phases of its method."""

    @abstractmethod
    def sampler(self, phase: Phase) -> Batches:
        """Its batches."""

    @abstractmethod
    def judge(self, phase: Phase, device: str) -> Judge | None:
        """Who looks at the artefact between steps; None where nothing is held out."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the weights' file says of itself."""

    def run(
        self, *, device: str = "cpu", rank: int = 0, world: int = 1, listener: Listener | None = None
    ) -> dict[str, Any] | None:
        """Train every phase from wherever it stands; rank 0 writes weights and result and returns the result."""
        if (done := self.result()) is not None:
            return done
        listener, output = listener or Listener(), self.output()
        curves: dict[str, Any] = {}
        watch = _Watch()
        with TURN:
            artefacts, makers = self.given(device), self.phases(device)
        for number, make in enumerate(makers):
            with TURN:  # random weights
                torch.manual_seed(self.seed)
                phase = make(artefacts)
                judge = self.judge(phase, device) if rank == 0 else None
            if world > 1:
                globalise(phase.modules[phase.artefact])
            folder = output.below(f"{number}-{phase.name}")
            look = _Look(judge, listener, folder, seen.moments(phase.settings), watch) if judge else None
            hooks = Hooks(
                evaluate=look,
                log=listener.log,
                sync=_synced(listener, watch, last=number == len(makers) - 1),
                urgent=listener.urgent,
                say=listener.say,
            )
            try:
                result: Curves = train(
                    phase,
                    self.sampler(phase),
                    folder=folder,
                    fingerprint=self.fingerprint,
                    seed=self.seed,
                    device=torch.device(device),
                    rank=rank,
                    world=world,
                    hooks=hooks,
                )
            except torch.OutOfMemoryError as error:
                raise DoesNotFit(_too_large(self.label, phase.settings, device, error)) from None
            artefacts[phase.name] = phase.modules[phase.artefact]
            curves[phase.name] = result.values
        if rank != 0:
            return None
        facts = {**self.facts(), "seed": self.seed, "fingerprint": self.fingerprint}
        return weights.write(output, artefacts[phase.name], facts, {"label": self.label, "curves": curves})


@dataclass(slots=True)
class _Watch:
    """How long a training has been under way in this process."""

    begun: float = field(default_factory=time.monotonic)
    looked: float = 0.0
    """Seconds of its evaluations."""


@dataclass(frozen=True, slots=True)
class _Look:
    """An evaluation: the judge's figures; its pictures go to the listener, and some of them are kept."""

    judge: Judge
    listener: Listener
    folder: Store
    moments: Sequence[int]
    watch: _Watch

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        begun = time.monotonic()
        values, strip = self.judge(model)
        if strip is not None and self.listener.picture is not None:
            self.listener.picture(strip.picture, step)
        if strip is not None and step in self.moments:
            seen.keep(self.folder, step, strip)
        self.watch.looked += time.monotonic() - begun
        return values


def _too_large(label: str, settings: Budget, device: str, error: Exception) -> str:
    held = torch.cuda.max_memory_allocated(device) / 2**30 if torch.cuda.is_available() else 0.0
    needed = f"it held {held:.1f} GiB and wanted more" if held else "it wanted more than there is"
    return (
        f"{label}: a batch of {settings.batch} does not fit into the GPU's memory: {needed} ({error}). Lower "
        "its batch (train.batch), set its amp: bf16, or give each training more of a GPU: distill.gpus_per_worker."
    )


def _synced(listener: Listener, watch: _Watch, last: bool) -> Callable[[dict[str, float], int], None] | None:
    if (sync := listener.sync) is None:
        return None

    def tell(metrics: dict[str, float], step: int) -> None:
        clock = {"at": time.monotonic() - watch.begun, "looked": watch.looked}
        sync({**metrics, "last_phase": float(last), **clock}, step)

    return tell


def located(recipe: Any) -> dict[str, Any]:
    """The recipe's content with cache and output as URIs: a worker of Ray Train runs in a folder of its own."""
    cache = recipe.cache.model_copy(update={"root": Store.open(recipe.cache.root).uri})
    moved: Section = recipe.model_copy(update={"cache": cache, "output": Store.open(recipe.output).uri})
    return moved.model_dump(mode="json")


def weighty(settings: dict[str, Any]) -> dict[str, Any]:
    """Of a training's settings those that change its weights, not how often one looks."""
    found = {k: v for k, v in settings.items() if k not in OBSERVED_ONLY}
    return {**found, "fine": FINE} if found.get("amp") == "bf16" else found


def weighty_method(settings: dict[str, Any]) -> dict[str, Any]:
    """A method's settings, with the defaults of what only says how often one looks in the trainings that it names."""
    found = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = weighty_method(value)
        elif key in OBSERVED_ONLY:
            value = Budget.model_fields[key].default
        found[key] = value
    return found
