"""Knowledge distillation on outputs, from one teacher or from several fused; for every task.

Super-resolution:  L = distill * mean|S(x) - T(x)| + hr * mean|S(x) - y| + gradient * mean|d(S(x) - T(x))|
Recognition:       L = L_task + soft * tau^2 KL(z_T || z_S)      (Hinton, Vinyals, Dean, 2015), or of standardised
                   logits (CVPR 2024), or decoupled (CVPR 2022): losses/soft_labels.py

T(x) and z_T come from the cache, so `kd` costs what `scratch` costs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pipeline.losses.pixel import PIXEL, gradient
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, masked_hr, seen_by
from pipeline.methods.outputs import Lesson, active, output_phase, soft_term
from pipeline.recipe.methods import KD
from pipeline.recipe.recognition_methods import KD as SoftLabels
from pipeline.recipe.settings import Train


def kd(method: KD, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """One phase: the pixel loss against one teacher's output and against HR."""
    pixel = PIXEL[method.pixel]

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            sr = modules["student"](batch["lr"])
            terms = {"distill": pixel(sr, batch["target"]), "hr": masked_hr(sr, batch, pixel)}
            if method.gradient != 0:
                terms["gradient"] = gradient(sr, batch["target"])
            return terms

        return Phase(
            name="distill",
            modules={"student": network},
            sources=("lr", "hr", "target"),
            losses=losses,
            weights={"distill": method.distill, "hr": method.hr, "gradient": method.gradient},
            settings=settings,
            artefact="student",
        )

    return [build]


def recogniser(lesson: Lesson, student: nn.Module) -> Phase:
    """The LR student on its task and the teacher's soft labels."""
    recipe = lesson.recipe
    method = recipe.method
    assert isinstance(method, SoftLabels)
    weights = active({"task": method.task, "soft": method.soft})

    def terms(out: dict[str, Tensor], s: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"soft": soft_term(lesson, method, method.temperature, out["logits"], "teacher/logits", batch)}

    return output_phase(lesson, student, recipe.train, "student", weights, ("teacher/logits",), terms)
