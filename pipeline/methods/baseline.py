"""The honest baselines: a student alone, and a student with one teacher.

`scratch`:  L = hr * mean|S(x) - y|
`kd`:       L = distill * mean|S(x) - T(x)| + hr * mean|S(x) - y|

T(x) comes from the cache, so `kd` costs what `scratch` costs. A student that enlarges luma alone is trained on luma.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from pipeline.losses.pixel import l1
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, masked_l1, seen_by
from pipeline.recipe.methods import KD, Scratch
from pipeline.recipe.settings import Train


def scratch(method: Scratch, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """One phase: L1 against HR. Tiles without HR are left out."""

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            return {"hr": l1(modules["student"](batch["lr"]), batch["hr"])}

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


def kd(method: KD, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """One phase: L1 against one teacher's output and against HR."""

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            sr = modules["student"](batch["lr"])
            return {"distill": l1(sr, batch["target"]), "hr": masked_l1(sr, batch)}

        return Phase(
            name="distill",
            modules={"student": network},
            sources=("lr", "hr", "target"),
            losses=losses,
            weights={"distill": method.distill, "hr": method.hr},
            settings=settings,
            artefact="student",
        )

    return [build]
