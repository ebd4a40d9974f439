"""What a method is: a list of phases, each a training with its own modules, data and losses.

The training loop (pipeline/training/loop.py) is one piece of code for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from pipeline.losses.pixel import l1
from pipeline.recipe.schedule import Weight
from pipeline.recipe.settings import Budget
from students.colour import colours_of, luma

Modules = Mapping[str, nn.Module]
Batch = Mapping[str, Tensor]
Losses = Callable[[Modules, Batch], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Adversary:
    """A second party with its own networks and optimiser (Adam), which moves once after each step of the phase.

    `losses(modules, batch)` reads what the phase's losses left in `batch` for it, under names of their own.
    """

    modules: dict[str, nn.Module]
    losses: Losses
    lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)


@dataclass(frozen=True, slots=True)
class Phase:
    """One training.

    `losses(modules, batch)` gets the trainable modules (as the loop wrapped them, so always call these and
    never ones kept elsewhere) and NCHW float tensors in [0, 1] named by `sources`, plus `has_hr` (B,) float
    0/1. It returns scalars by term; the loop adds them up with `weights`, which may be schedules.
    """

    name: str
    modules: dict[str, nn.Module]
    sources: tuple[str, ...]
    """Cached tensors that a step reads: `lr`, `hr`, `target`, `teacher0`, `teacher1`, ..."""
    losses: Losses
    weights: dict[str, Weight]
    settings: Budget
    artefact: str
    """The module that is evaluated, exported and handed to the next phase."""
    inputs: tuple[str, ...] = ("lr",)
    """Tensors that the artefact maps to a picture when it is evaluated."""
    require_hr: bool = False
    """Leave out tiles without an HR partner."""
    shown: Callable[[nn.Module, Tensor], Tensor] | None = None
    """(artefact, its input) -> a further LR-size RGB picture for the strip of held-out tiles."""
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    """Networks that the losses call and nothing trains; the loop moves them to its device, in eval mode."""
    adversary: Adversary | None = None
    """Trained against this phase, and part of its checkpoints."""


PhaseBuilder = Callable[[Modules], Phase]
"""Builds a phase from the artefacts of the phases before it, by phase name."""


def masked_hr(sr: Tensor, batch: Batch, loss: Callable[..., Tensor] = l1) -> Tensor:
    """A pixel loss against HR where there is one, divided by the whole batch, so that it does not depend on how workers
    share it.
    """
    has_hr = batch["has_hr"].bool()
    return loss(sr, batch["hr"], has_hr) * has_hr.float().mean()


def seen_by(network: nn.Module) -> Callable[[Batch], Batch]:
    """Turns a batch's pictures into what `network` is trained on: luma alone where it enlarges luma alone."""
    if colours_of(network) == 3:
        return lambda batch: batch
    return lambda batch: {k: luma(v) if v.ndim == 4 else v for k, v in batch.items()}
