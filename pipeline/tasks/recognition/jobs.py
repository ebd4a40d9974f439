"""The trainings of recognition as jobs by value: a teacher's, the assistant's, a student's."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.store import Store
from pipeline.methods import METHODS
from pipeline.methods.base import Modules, Phase, PhaseBuilder
from pipeline.methods.horkd import assistant_phase
from pipeline.methods.outputs import Lesson
from pipeline.methods.scratch import task_phase
from pipeline.recipe.recognition_methods import HORKD
from pipeline.recipe.settings import Budget
from pipeline.steps.job import STUDENT, Job, located, weighty, weighty_method
from pipeline.steps.values import Samples
from pipeline.tasks.recognition.networks import Recogniser
from pipeline.tasks.recognition.recipe import Network, Recognition
from pipeline.tasks.recognition.sampler import Gallery, ViewSampler
from pipeline.tasks.recognition.teach import Source
from pipeline.training import weights

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

VERSION = 1
CONTRAST = 2
"""Version of the term `contrast`: since 2 others of the picture's own class are no negatives."""
SECOND_STEP_ONLY = ("gamma", "assistant", "union", "init")
"""Settings of HORKD that its assistant does not depend on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecognitionJob(Job):
    """A training on views of pictures, and on what is cached beside them."""

    task: RecognitionTask
    classes: int
    pictures: dict[str, str]
    """`train`, `val` -> manifest in the cache."""
    outputs: dict[str, str]
    """`teacher`, `assistant` -> manifest of their outputs for the training pictures."""
    sources: dict[str, Source]
    """The same networks by value, for widths, for online features and for the student's start."""

    @property
    def settings(self) -> Budget:
        return settings_of(self.spec, self.role)

    @property
    def network(self) -> Network:
        """What is trained."""
        recipe: Recognition = self.spec
        return recipe.teacher.network if self.role == "teacher" else recipe.student

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of what it gets."""
        recipe: Recognition = self.spec
        return recipe.hr_size if self.role != STUDENT else recipe.input_size(self.gap)

    def params(self) -> dict[str, Any]:
        shown: tuple[str, ...] = (
            "task",
            "method",
            "student",
            "train",
            "input",
            "loss",
            "sampling",
            "lr",
            "mixing",
        )
        if self.role == "teacher":
            shown = ("task", "teacher")
        own = {key: self.recipe[key] for key in shown if key in self.recipe}
        return {**own, "gap": self.gap, "seed": self.seed, "fingerprint": self.fingerprint}

    def source(self) -> Source:
        """What it trained, by value."""
        return Source(
            task=self.task,
            role=self.role,
            network=self.network.model_dump(),
            size=self.size,
            classes=self.classes,
            weights=f"{self.folder}/{weights.WEIGHTS}",
            identity=self.fingerprint,
        )

    def build(self, *, pretrained: bool = False) -> Recogniser:
        """The untrained network."""
        return self.task.build(self.network, self.size, self.classes, pretrained=pretrained)

    def given(self, device: str) -> dict[str, nn.Module]:
        return {}

    def phases(self, device: str) -> list[PhaseBuilder]:
        return [partial(self._phase, device)]

    def _phase(self, device: str, _: Modules) -> Phase:
        recipe: Recognition = self.spec
        cache = Store.open(recipe.cache.root)
        network = self.build(pretrained=self.role == "teacher" and recipe.teacher.pretrained)
        if self.role == "teacher":
            return task_phase(self._lesson(recipe), network, self.settings)
        teacher = self.sources.get("teacher")
        lesson = self._lesson(recipe)
        if teacher is not None:
            fill = partial(_fill, teacher.load(cache, device)) if recipe.cache.online else None
            lesson = self._lesson(recipe, teacher.network["embedding"], fill, teacher.classes > 0)
            if recipe.cache.features == "map":
                lesson = replace(lesson, channels=cast(Recogniser, teacher.load(cache)).channels)
        if self.role == "assistant":
            return assistant_phase(lesson, network)
        starts = isinstance(recipe.method, HORKD) and recipe.method.init == "assistant"
        if starts and "assistant" in self.sources:
            network.load_state_dict(self.sources["assistant"].load(cache).state_dict())
        recogniser = METHODS[recipe.method.name].recogniser
        assert recogniser is not None
        return recogniser(lesson, network)

    def _lesson(self, recipe: Recognition, width: int = 0, fill: Any = None, answers: bool = True) -> Lesson:
        loss = partial(self.task.loss, settings=recipe.loss)
        return Lesson(recipe, loss, self.task.imitate, self.task.truth, width, fill=fill, answers=answers)

    def sampler(self, phase: Phase) -> ViewSampler:
        recipe: Recognition = self.spec
        cache = Store.open(recipe.cache.root)
        outputs = {name: load_manifest(cache, rel) for name, rel in self.outputs.items()}
        return ViewSampler(
            Gallery(cache, load_manifest(cache, self.pictures["train"]), outputs),
            batch=phase.settings.batch,
            seed=self.seed,
            gap=self.gap,
            views=recipe.data.views,
            enlarged=recipe.input == "enlarged" and self.role == STUDENT,
            lr=recipe.degradations if self.role == STUDENT else ("bicubic",),
            sampling=recipe.sampling,
            mixing=recipe.mixing if self.role == STUDENT else None,
            columns=phase.sources,
        )

    def judge(self, phase: Phase, device: str) -> Judge:
        recipe: Recognition = self.spec
        cache = Store.open(recipe.cache.root)
        return Judge(
            self.task, Gallery(cache, load_manifest(cache, self.pictures["val"])), recipe, self.gap, device
        )

    def facts(self) -> dict[str, Any]:
        return {
            "task": self.recipe["task"],
            "role": self.role,
            "architecture": self.network.name,
            "options": self.network.options,
            "embedding": self.network.embedding,
            "classes": self.classes,
            "size": list(self.size),
            "gap": self.gap,
            "input": self.recipe["input"],
            "lr": list(self.spec.degradations),
            "method": self.method,
        }


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores a network on the validation pictures."""

    task: RecognitionTask
    gallery: Gallery
    recipe: Recognition
    gap: int
    device: str

    def __call__(self, model: nn.Module) -> tuple[dict[str, float], None]:
        """{"held_out/<metric>": value} of the task's main figures; no picture."""
        values, _ = self.task.scores(model, self.gallery, self.recipe, self.gap, self.device)
        return {f"held_out/{m.key}": values[m.key] for m in self.task.figures}, None


def _fill(teacher: nn.Module, batch: MutableMapping[str, Tensor]) -> None:
    """Run the teacher in the step, on the HR views."""
    import torch

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


def make_job(
    task: RecognitionTask,
    recipe: Recognition,
    role: str,
    samples: Samples,
    gap: int,
    seed: int,
    outputs: dict[str, str],
    sources: dict[str, Source],
    method: str = "",
) -> RecognitionJob:
    """The training of a role, on these outputs of these networks."""
    inputs = {"pictures": samples.path("train"), **outputs}
    inputs |= {f"{name} network": source.identity for name, source in sources.items()}
    print_ = job_fingerprint(recipe, role, gap, seed, inputs)
    label = f"{method}-{recipe.student.label}-x{gap}-s{seed}" if role == STUDENT else role
    return RecognitionJob(
        task=task,
        label=label,
        role=role,
        method=method or role,
        recipe=located(recipe),
        gap=gap,
        seed=seed,
        classes=task.answers(samples.classes),
        pictures={name: samples.path(name) for name in ("train", "val")},
        outputs=outputs,
        sources=sources,
        folder=f"trainings/{label}-{print_}" if role == STUDENT else f"networks/{role}-{print_}",
        fingerprint=print_,
    )


def job_fingerprint(recipe: Recognition, role: str, gap: int, seed: int, inputs: dict[str, str]) -> str:
    """Covers what changes the weights: settings, seed and cached inputs, not how often one looks."""
    dump = recipe.model_dump(mode="json")
    own: dict[str, Any] = {
        "train": weighty(settings_of(recipe, role).model_dump(mode="json")),
        "loss": dump["loss"],
        "sampling": dump["sampling"],
        "views": dump["data"]["views"],
        "size": list(recipe.hr_size),
    }
    if role == "teacher":
        own |= {"network": dump["teacher"]["network"], "pretrained": recipe.teacher.pretrained}
    else:
        method = {k: v for k, v in dump["method"].items() if role == STUDENT or k not in SECOND_STEP_ONLY}
        method = weighty_method(method)
        method.pop("teacher", None)  # its outputs are among the inputs
        if method.get("contrast"):
            method["contrast_version"] = CONTRAST
        own |= {"network": dump["student"], "method": method, "online": recipe.cache.online}
    if role == STUDENT:
        own |= {"input": recipe.input, "gap": gap}
        own |= {key: dump[key] for key in ("lr", "mixing") if key in dump}
    facts = {
        "version": VERSION,
        "task": recipe.task,
        "role": role,
        "seed": seed,
        "own": own,
        "inputs": inputs,
    }
    return fingerprint(facts)
