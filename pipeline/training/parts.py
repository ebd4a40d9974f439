"""What a training loop is made of beside its step: optimiser, shared gradients, the adversary's side."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.methods.base import Adversary
from pipeline.recipe.schedule import Weight, weight_at
from pipeline.recipe.settings import Budget
from pipeline.training.muon import Muon, hidden


def learning_rate(settings: Budget, step: int) -> float:
    """Learning rate of `step` (0-based)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    if settings.schedule == "cosine":
        return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "multistep":
        return settings.lr * settings.gamma ** sum(step >= m * settings.steps for m in settings.milestones)
    return settings.lr


def optimiser_of(
    modules: Collection[nn.Module], settings: Budget, capturable: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of these settings; `capturable`: its step may be part of a CUDA graph."""
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    decay = settings.weight_decay
    if settings.optimiser == "sgd":
        momentum = settings.betas[0]
        return torch.optim.SGD(
            parameters, settings.lr, momentum, weight_decay=decay, nesterov=momentum > 0, fused=True
        )
    if settings.optimiser == "muon":
        matrices = [p for m in modules for p in hidden(m)]
        return Muon(
            parameters, matrices, settings.lr, settings.betas, weight_decay=decay, capturable=capturable
        )
    make = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return make(
        parameters, settings.lr, settings.betas, weight_decay=decay, fused=True, capturable=capturable
    )


def plain(optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Its state as an optimiser outside a graph has it, so that a checkpoint goes on on any device."""
    state = optimiser.state_dict()
    groups = [
        {**g, "lr": float(g["lr"]), **({"capturable": False} if "capturable" in g else {})}
        for g in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def restore(optimiser: torch.optim.Optimizer, state: dict[str, Any], device: torch.device) -> None:
    """Load what `plain` gave; an optimiser that may be part of a graph stays one."""
    capturable = optimiser.defaults.get("capturable", False)
    optimiser.load_state_dict(state)
    if not capturable:
        return
    for group in optimiser.param_groups:
        group["capturable"] = True
    for each in optimiser.state.values():
        each["step"] = each["step"].to(device)


def shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over the workers."""
    ids = [device.index] if device.type == "cuda" else None
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in _SHARING else "broadcast_buffers"
    # Buffers are equal already; gradients are what is sent, without a copy.
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, **options)


_SHARING = inspect.signature(nn.parallel.DistributedDataParallel).parameters
"""PyTorch 2.13 named one of them anew."""


def weighed(terms: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: float) -> Tensor:
    """The terms by their weights at `progress`."""
    total = sum(weight_at(weights[k], progress) * v for k, v in terms.items())
    assert isinstance(total, Tensor)
    return total


class Opponent:
    """An adversary's side of the step: its own networks and optimiser, after the phase's own have moved."""

    def __init__(
        self, adversary: Adversary, device: torch.device, world: int, capturable: bool = False
    ) -> None:
        self.adversary, self.device = adversary, device
        for module in adversary.modules.values():
            module.to(device).train()
        self.live = dict(adversary.modules)
        if world > 1:
            self.live = {k: shared(m, device) for k, m in self.live.items()}
        parameters = [p for m in adversary.modules.values() for p in m.parameters()]
        self.optimiser = torch.optim.Adam(
            parameters, lr=adversary.lr, betas=adversary.betas, capturable=capturable
        )

    def step(self, tensors: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.enable_grad():
            terms = self.adversary.losses(self.live, tensors)
            weighed(terms, dict.fromkeys(terms, 1.0), progress).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return terms

    def state(self) -> dict[str, Any]:
        modules = {k: m.state_dict() for k, m in self.adversary.modules.items()}
        return {"modules": modules, "optimiser": plain(self.optimiser)}

    def load(self, state: dict[str, Any]) -> None:
        for name, module in self.adversary.modules.items():
            module.load_state_dict(state["modules"][name])
        restore(self.optimiser, state["optimiser"], self.device)
