"""The student alone, the baseline of every comparison; for every task.

Super-resolution:  L = hr * mean|S(x) - y|        (a student that enlarges luma alone is trained on luma)
Recognition:       L = task * L_task(S(x_L))
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.losses.pixel import PIXEL
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, seen_by
from pipeline.methods.outputs import Lesson, alone, output_phase
from pipeline.recipe.methods import Scratch
from pipeline.recipe.recognition_methods import Scratch as TaskAlone
from pipeline.recipe.settings import Budget, Train


def scratch(method: Scratch, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """One phase: the pixel loss against HR. Tiles without HR are left out."""
    pixel = PIXEL[method.pixel]

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            return {"hr": pixel(modules["student"](batch["lr"]), batch["hr"])}

        return Phase(
            name="distill",
            modules={"student": network},
            sources=("lr", "hr"),
            losses=losses,
            weights={"hr": method.hr},
            settings=settings,
            artefact="student",
            require_hr=True,
        )

    return [build]


def task_phase(lesson: Lesson, network: nn.Module, settings: Budget, name: str = "teacher") -> Phase:
    """A network that learns the task alone."""
    return output_phase(lesson, network, settings, name, {"task": 1.0}, (), alone)


def recogniser(lesson: Lesson, student: nn.Module) -> Phase:
    """The LR student on its task."""
    recipe = lesson.recipe
    assert isinstance(recipe.method, TaskAlone)
    return output_phase(lesson, student, recipe.train, "student", {"task": recipe.method.task}, (), alone)
