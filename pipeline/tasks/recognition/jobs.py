"""A recognition training as a job by value: the teacher's, the assistant's or a student's."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.store import Store
from pipeline.losses.gather import globalise
from pipeline.methods import METHODS
from pipeline.methods.base import Phase
from pipeline.methods.horkd import assistant_phase
from pipeline.methods.scratch import task_phase
from pipeline.recipe.recognition import HORKD, Network, Recognition
from pipeline.recipe.settings import Budget
from pipeline.tasks.recognition.networks import Recogniser, build
from pipeline.tasks.recognition.sampler import Gallery, ViewSampler
from pipeline.tasks.recognition.tasks import METRICS, score
from pipeline.tasks.recognition.teach import Source
from pipeline.tasks.super_resolution.distill import Listener
from pipeline.training import weights
from pipeline.training.loop import Hooks, train

VERSION = 1
OBSERVED_ONLY = ("log_every", "evaluate_every", "keep")
SECOND_STEP_ONLY = ("gamma", "assistant", "union", "init")
"""Settings of HORKD that its assistant does not depend on."""


@dataclass(frozen=True, slots=True)
class RecognitionJob:
    """Everything that a training needs, by value."""

    label: str
    role: str
    """`teacher`, `assistant` or `student`."""
    method: str
    """Of a student: its method's name or its variant's; of the others their role."""
    recipe: dict[str, Any]
    gap: int
    """1 for the networks that work at HR."""
    seed: int
    classes: int
    pictures: dict[str, str]
    """`train`, `val` -> manifest in the cache."""
    outputs: dict[str, str]
    """`teacher`, `assistant` -> manifest of their outputs for the training pictures."""
    sources: dict[str, Source]
    """The same networks by value, for widths, for online features and for the student's start."""
    folder: str
    fingerprint: str

    @property
    def spec(self) -> Recognition:
        return Recognition.model_validate(self.recipe)

    @property
    def group(self) -> str:
        """The label without the seed: what the seeds of one training share."""
        return self.label.removesuffix(f"-s{self.seed}")

    @property
    def settings(self) -> Budget:
        """Its length and optimiser."""
        return settings_of(self.spec, self.role)

    @property
    def network(self) -> Network:
        """What is trained."""
        recipe = self.spec
        return recipe.teacher.network if self.role == "teacher" else recipe.student

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what it gets."""
        recipe = self.spec
        return recipe.hr_size if self.role != "student" else recipe.input_size(self.gap)

    def output(self) -> Store:
        """Where checkpoints, weights and result go."""
        recipe = self.spec
        root = f"{recipe.output}/{recipe.name}" if self.role == "student" else recipe.cache.root
        return Store.open(Store.open(root).where(self.folder))

    def result(self) -> dict[str, Any] | None:
        """What a finished job left, or None; damaged results are set aside (`weights.finished`)."""
        return weights.finished(self.output(), self.fingerprint)

    def source(self) -> Source:
        """What it trained, by value; a student's weights lie in the run's output."""
        segment = self.spec.task == "segmentation"
        file = f"{self.folder}/{weights.WEIGHTS}"
        return Source(
            self.role, self.network.model_dump(), self.size, self.classes, segment, file, self.fingerprint
        )

    def build(self, *, pretrained: bool = False) -> Recogniser:
        """The untrained network."""
        segment = self.spec.task == "segmentation"
        return build(self.network, self.size, self.classes, segment=segment, pretrained=pretrained)

    def run(
        self, *, device: str = "cpu", rank: int = 0, world: int = 1, listener: Listener | None = None
    ) -> dict[str, Any] | None:
        """Train from wherever it stands; rank 0 writes weights and result and returns the result."""
        if (done := self.result()) is not None:
            return done
        listener, recipe, output = listener or Listener(), self.spec, self.output()
        cache = Store.open(recipe.cache.root)
        torch.manual_seed(self.seed)
        phase = self._phase(cache, device)
        if world > 1:
            globalise(phase.modules[phase.artefact])
        pictures = load_manifest(cache, self.pictures["train"])
        outputs = {name: load_manifest(cache, rel) for name, rel in self.outputs.items()}
        sampler = ViewSampler(
            Gallery(cache, pictures, outputs),
            batch=phase.settings.batch,
            seed=self.seed,
            gap=self.gap,
            views=recipe.data.views,
            enlarged=recipe.input == "enlarged" and self.role == "student",
            sampling=recipe.sampling,
            columns=phase.sources,
        )
        judge = Judge(Gallery(cache, load_manifest(cache, self.pictures["val"])), recipe, self.gap, device)
        curves = train(
            phase,
            sampler,
            folder=Store.open(output.where(f"0-{phase.name}")),
            fingerprint=self.fingerprint,
            seed=self.seed,
            device=torch.device(device),
            rank=rank,
            world=world,
            hooks=Hooks(
                evaluate=judge if rank == 0 else None,
                log=listener.log,
                sync=listener.sync,
                urgent=listener.urgent,
            ),
        )
        if rank != 0:
            return None
        return self._finish(output, phase.modules[phase.artefact], curves.values)

    def _phase(self, cache: Store, device: str) -> Phase:
        recipe = self.spec
        network = self.build(pretrained=self.role == "teacher" and recipe.teacher.pretrained)
        if self.role == "teacher":
            return task_phase(recipe, network, self.settings)
        teacher = self.sources.get("teacher")
        width = teacher.network["embedding"] if teacher else 0
        fill = partial(_fill, teacher.load(cache, device)) if teacher and recipe.cache.online else None
        if self.role == "assistant":
            return assistant_phase(recipe, network, width, fill)
        if (
            isinstance(recipe.method, HORKD)
            and recipe.method.init == "assistant"
            and "assistant" in self.sources
        ):
            network.load_state_dict(self.sources["assistant"].load(cache).state_dict())
        recogniser = METHODS[recipe.method.name].recogniser
        assert recogniser is not None
        return recogniser(recipe, network, width, fill)

    def _finish(self, output: Store, model: nn.Module, curves: dict[str, Any]) -> dict[str, Any]:
        recipe = self.spec
        facts = {
            "task": recipe.task,
            "role": self.role,
            "architecture": self.network.name,
            "options": self.network.options,
            "embedding": self.network.embedding,
            "classes": self.classes,
            "size": list(self.size),
            "gap": self.gap,
            "method": self.method,
            "seed": self.seed,
            "fingerprint": self.fingerprint,
        }
        return weights.write(output, model, facts, {"label": self.label, "curves": {"train": curves}})


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores a network on the validation pictures."""

    gallery: Gallery
    recipe: Recognition
    gap: int
    device: str

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """{"held_out/<metric>": value} of the task's main figures."""
        values, _ = score(model, self.gallery, self.recipe, self.gap, self.device)
        return {f"held_out/{m.key}": values[m.key] for m in METRICS[self.recipe.task]}


def _fill(teacher: nn.Module, batch: MutableMapping[str, Tensor]) -> None:
    """Run the teacher in the step, on the HR views."""
    with torch.no_grad():
        out = teacher(batch["hr"])
    batch.update({f"teacher/{name}": value for name, value in out.items()})


def settings_of(recipe: Recognition, role: str) -> Budget:
    """The training of a role."""
    if role == "teacher":
        assert recipe.teacher.train is not None
        return recipe.teacher.train
    if role == "assistant" and isinstance(recipe.method, HORKD):
        return recipe.method.assistant_train or recipe.train
    return recipe.train


def job_fingerprint(recipe: Recognition, role: str, gap: int, seed: int, inputs: dict[str, str]) -> str:
    """Covers what changes the weights: settings, seed and cached inputs, not how often one looks."""
    dump = recipe.model_dump(mode="json")
    settings = settings_of(recipe, role).model_dump(mode="json")
    own: dict[str, Any] = {
        "train": {k: v for k, v in settings.items() if k not in OBSERVED_ONLY},
        "loss": dump["loss"],
        "sampling": dump["sampling"],
        "views": dump["data"]["views"],
        "size": list(recipe.hr_size),
    }
    if role == "teacher":
        own |= {"network": dump["teacher"]["network"], "pretrained": recipe.teacher.pretrained}
    else:
        method = {k: v for k, v in dump["method"].items() if role == "student" or k not in SECOND_STEP_ONLY}
        method.pop("teacher", None)  # its outputs are among the inputs
        own |= {"network": dump["student"], "method": method, "online": recipe.cache.online}
    if role == "student":
        own |= {"input": recipe.input, "gap": gap}
    facts = {
        "version": VERSION,
        "task": recipe.task,
        "role": role,
        "seed": seed,
        "own": own,
        "inputs": inputs,
    }
    return fingerprint(facts)
