"""The one training loop. It knows nothing of Ray: rank and world are numbers, gradients meet in torch.distributed.

Everything that changes during a run is a pure function of the step (learning rate, term weights, sample
order, random seeds) or part of the checkpoint (weights, optimiser, EMA, scaler, curves). So a run resumed
after a kill gives, on a CPU with the same threads, the same bits as one that never stopped, and a run resumed
on another number of workers sees the same batches.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.methods.base import Adversary, Phase
from pipeline.recipe.schedule import Weight, weight_at
from pipeline.recipe.settings import Budget
from pipeline.training import checkpoint, cpu
from pipeline.training.surroundings import Batches, Curves, Hooks


def learning_rate(settings: Budget, step: int) -> float:
    """Learning rate of `step` (0-based)."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    span = max(settings.steps - settings.warmup, 1)
    progress = (step - settings.warmup) / span
    if settings.schedule == "cosine":
        return settings.min_lr + (settings.lr - settings.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if settings.schedule == "multistep":
        return settings.lr * settings.gamma ** sum(step >= m * settings.steps for m in settings.milestones)
    return settings.lr


def train(
    phase: Phase,
    sampler: Batches,
    *,
    folder: Store,
    fingerprint: str,
    seed: int,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    hooks: Hooks | None = None,
) -> Curves:
    """Train `phase` to its last step, from its newest checkpoint in `folder` if there is one.

    Afterwards `phase.modules` hold the final weights, the artefact its EMA weights (where EMA is on).
    Raises FacultyError naming step, term and tiles when a loss is not finite, InputError for a foreign checkpoint.
    """
    hooks = hooks or Hooks()
    cpu.prepare()
    loop = _Loop(phase, device, world)
    start = 0
    if (found := checkpoint.load_latest(folder, fingerprint=fingerprint)) is not None:
        start, state = found
        loop.load(state)
    settings = phase.settings
    check_every = settings.log_every if device.type == "cuda" else 1
    for step, batch in sampler.iterate(start, settings.steps, rank, world):
        tensors = batch.to(device)
        torch.manual_seed((seed << 40) + (step << 10) + rank)
        loop.step(step, tensors)
        done = step + 1
        boundary = done % settings.evaluate_every == 0 or done == settings.steps
        if boundary or done % settings.log_every == 0 or len(loop.pending) >= check_every:
            loop.require_finite(sampler, rank, world)
        if boundary or done % settings.log_every == 0:
            _log(loop, done, loop.drain(), hooks if rank == 0 else Hooks())
        if boundary:
            metrics: dict[str, float] = {}
            if rank == 0:
                if hooks.evaluate is not None:
                    metrics = loop.with_ema(lambda m, at=done: hooks.evaluate(m, at))  # type: ignore[misc]
                    _log(loop, done, metrics, hooks)
                checkpoint.save(folder, done, loop.state(), fingerprint=fingerprint, keep=settings.keep)
            if hooks.sync is not None:
                hooks.sync(metrics, done)
        elif hooks.urgent is not None and done % settings.log_every == 0 and hooks.urgent() and rank == 0:
            checkpoint.save(folder, done, loop.state(), fingerprint=fingerprint, keep=settings.keep)
    loop.finish()
    return loop.curves


def _log(loop: _Loop, step: int, values: dict[str, float], hooks: Hooks) -> None:
    loop.curves.add(step, values)
    if hooks.log is not None:
        hooks.log(values, step)


class _Loop:
    """The state of one training and its step."""

    def __init__(self, phase: Phase, device: torch.device, world: int) -> None:
        self.phase, self.device, self.settings, self.world = phase, device, phase.settings, world
        for module in phase.modules.values():
            module.to(device=device, memory_format=torch.channels_last).train()
        for module in phase.frozen.values():
            module.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.parameters = [p for m in phase.modules.values() for p in m.parameters() if p.requires_grad]
        self.optimiser = _optimiser(self.parameters, self.settings)
        self.scaler = torch.amp.GradScaler(enabled=self.settings.amp == "fp16" and device.type == "cuda")
        artefact = phase.modules[phase.artefact]
        self.ema = (
            {k: v.detach().clone() for k, v in artefact.state_dict().items()} if self.settings.ema else None
        )
        self.live = dict(phase.modules)
        if self.settings.compile:
            self.live = {k: torch.compile(m) for k, m in self.live.items()}  # type: ignore[misc]
        if world > 1:
            self.live = {k: _shared(m, device) for k, m in self.live.items()}
        self.opponent = _Opponent(phase.adversary, device, world) if phase.adversary else None
        self.curves = Curves()
        self.pending: list[tuple[int, Tensor]] = []
        self.sums: Tensor | None = None
        self.count = 0
        self.names: list[str] = []

    def step(self, step: int, tensors: dict[str, Tensor]) -> None:
        rate = learning_rate(self.settings, step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        progress = step / self.settings.steps
        with self._autocast():
            terms = self.phase.losses(self.live, tensors)
        total = _weighed(terms, self.phase.weights, progress)
        self.scaler.scale(total).backward()
        if self.settings.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self._average(step)
        values = {**terms, "loss": total}
        if self.opponent is not None:
            with self._autocast():
                values |= self.opponent.step(tensors, progress)
        self.names = list(values)
        self.pending.append((step, torch.stack(list(values.values())).detach()))

    def _autocast(self) -> Any:
        if self.device.type != "cuda" or self.settings.amp == "off":
            return nullcontext()
        return torch.autocast("cuda", torch.bfloat16 if self.settings.amp == "bf16" else torch.float16)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.ema is None:
            return
        # A short warm-up of the decay, so that the random initial weights do not linger in short runs.
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        current = self.phase.modules[self.phase.artefact].state_dict()
        floats = [k for k, v in current.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.ema[k] for k in floats], [current[k] for k in floats], 1 - decay)

    def require_finite(self, sampler: Batches, rank: int, world: int) -> None:
        """Move pending terms to the running sums; raise where one is not finite."""
        if not self.pending:
            return
        values = torch.stack([v for _, v in self.pending])
        if not torch.isfinite(values).all():
            row, column = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
            step = self.pending[row][0]
            ids = sampler.batch(step, rank, world).ids
            raise FacultyError(
                f"phase {self.phase.name}, step {step}: the term `{self.names[column]}` is "
                f"{values[row, column].item()}. Samples of this batch: {', '.join(ids)}. Lower train.lr, set "
                "train.clip or train.warmup, or train.amp: off; the newest checkpoint is from before this step."
            )
        self.sums = values.sum(0) if self.sums is None else self.sums + values.sum(0)
        self.count += len(self.pending)
        self.pending.clear()

    def drain(self) -> dict[str, float]:
        """Mean of the terms since the last drain, over all workers' shares of the batch."""
        if self.sums is None:
            return {}
        if self.world > 1:
            dist.all_reduce(self.sums)
        means = (self.sums / (self.count * self.world)).tolist()
        self.sums, self.count = None, 0
        return {f"train/{name}": value for name, value in zip(self.names, means, strict=True)}

    @torch.no_grad()
    def with_ema(self, use: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """Call `use` with the artefact in eval mode carrying the EMA weights, then put the live ones back."""
        module = self.phase.modules[self.phase.artefact]
        live = {k: v.detach().clone() for k, v in module.state_dict().items()}
        if self.ema is not None:
            module.load_state_dict(self.ema)
        module.eval()
        try:
            return use(module)
        finally:
            module.load_state_dict(live)
            module.train()

    def state(self) -> dict[str, Any]:
        return {
            "modules": {k: m.state_dict() for k, m in self.phase.modules.items()},
            "ema": self.ema or {},
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "curves": json.dumps(self.curves.values),
            **({"adversary": self.opponent.state()} if self.opponent else {}),
        }

    def load(self, state: dict[str, Any]) -> None:
        for name, module in self.phase.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema = {k: v.to(self.device) for k, v in state["ema"].items()}
        self.curves = Curves(json.loads(state["curves"]))
        if self.opponent is not None:
            self.opponent.load(state["adversary"])

    def finish(self) -> None:
        """Leave the artefact in eval mode with its EMA weights."""
        module = self.phase.modules[self.phase.artefact]
        if self.ema is not None:
            module.load_state_dict(self.ema)
        for each in self.phase.modules.values():
            each.eval()


class _Opponent:
    """An adversary's side of the step: its own networks and optimiser, after the phase's own have moved."""

    def __init__(self, adversary: Adversary, device: torch.device, world: int) -> None:
        self.adversary = adversary
        for module in adversary.modules.values():
            module.to(device).train()
        self.live = dict(adversary.modules)
        if world > 1:
            self.live = {k: _shared(m, device) for k, m in self.live.items()}
        parameters = [p for m in adversary.modules.values() for p in m.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=adversary.lr, betas=adversary.betas)

    def step(self, tensors: Mapping[str, Tensor], progress: float) -> dict[str, Tensor]:
        with torch.enable_grad():
            terms = self.adversary.losses(self.live, tensors)
            _weighed(terms, dict.fromkeys(terms, 1.0), progress).backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return terms

    def state(self) -> dict[str, Any]:
        modules = {k: m.state_dict() for k, m in self.adversary.modules.items()}
        return {"modules": modules, "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        for name, module in self.adversary.modules.items():
            module.load_state_dict(state["modules"][name])
        self.optimiser.load_state_dict(state["optimiser"])


def _optimiser(parameters: list[nn.Parameter], settings: Budget) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.optimiser == "sgd":
        momentum = settings.betas[0]
        return torch.optim.SGD(
            parameters, settings.lr, momentum, weight_decay=decay, nesterov=momentum > 0, fused=True
        )
    make = torch.optim.AdamW if settings.optimiser == "adamw" else torch.optim.Adam
    return make(parameters, lr=settings.lr, betas=settings.betas, weight_decay=decay, fused=True)


def _shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over the workers."""
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)


def _weighed(terms: Mapping[str, Tensor], weights: Mapping[str, Weight], progress: float) -> Tensor:
    total = sum(weight_at(weights[k], progress) * v for k, v in terms.items())
    assert isinstance(total, Tensor)
    return total
