"""The one training loop. It knows nothing of Ray: rank and world are numbers, gradients meet in torch.distributed.

Everything that changes during a run is a pure function of the step (learning rate, term weights, sample
order, random seeds) or part of the checkpoint (weights, optimiser, EMA, scaler, curves). So a run resumed
after a kill gives, on a CPU with the same threads, the same bits as one that never stopped, and a run resumed
on another number of workers sees the same batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.cache.order import step_seed
from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.methods.base import Phase
from pipeline.training import checkpoint, cpu
from pipeline.training.autocast import autocast, coarse_steps, hindrance
from pipeline.training.graphed import Graphed, obstacle
from pipeline.training.importance import weighted
from pipeline.training.parts import Opponent, learning_rate, optimiser_of, plain, restore, shared, weighed
from pipeline.training.surroundings import Batch, Batches, Curves, Hooks
from pipeline.training.turns import TURN

AHEAD = 100
"""Steps at most that are told to a GPU at once."""
NEAR = 8
"""Steps at most after which a CPU looks whether its terms were finite: a look costs a hundredth of a small step."""


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
    loop = Loop(phase, device, world, hooks.say if rank == 0 else None)
    start = 0
    if (found := checkpoint.load_latest(folder, fingerprint=fingerprint)) is not None:
        start, state = found
        loop.load(state)
    settings = phase.settings
    sampler = getattr(sampler, "on", lambda _: sampler)(device)
    for step, batch in sampler.iterate(start, settings.steps, rank, world):
        loop.step(step, batch, step_seed(seed, step, rank))
        done = step + 1
        boundary = done % settings.evaluate_every == 0 or done == settings.steps
        if boundary or done % settings.log_every == 0 or len(loop.pending) >= loop.look_every:
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


def _log(loop: Loop, step: int, values: dict[str, float], hooks: Hooks) -> None:
    loop.curves.add(step, values)
    if hooks.log is not None:
        hooks.log(values, step)


class Loop:
    """The state of one training and its step."""

    def __init__(
        self, phase: Phase, device: torch.device, world: int, say: Callable[[str], None] | None = None
    ) -> None:
        self.say = say or (lambda text: None)
        self.phase, self.device, self.settings, self.world = phase, device, phase.settings, world
        for module in phase.modules.values():
            module.to(device=device, memory_format=torch.channels_last).train()
        for module in phase.frozen.values():
            module.to(device=device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.parameters = [p for m in phase.modules.values() for p in m.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(enabled=self.settings.amp == "fp16" and device.type == "cuda")
        artefact = phase.modules[phase.artefact]
        self.ema = (
            {k: v.detach().clone() for k, v in artefact.state_dict().items()} if self.settings.ema else None
        )
        self._averaged: tuple[Any, list[Tensor], list[Tensor]] = (None, [], [])
        self.live = dict(phase.modules)
        if self.settings.compile:
            self.live = {k: torch.compile(m) for k, m in self.live.items()}  # type: ignore[misc]
        if world > 1:
            self.live = {k: shared(m, device) for k, m in self.live.items()}
        self.ungraphed = obstacle(self)
        """Why its steps are no CUDA graph; nothing where they may be one."""
        capturable = not self.ungraphed
        if self.ungraphed and device.type == "cuda":
            self.say(f"plain steps instead of a CUDA graph: {self.ungraphed}")
        if why := hindrance(device, self.settings.amp):
            self.say(why)
        self.coarse = coarse_steps(device, self.settings.amp, self.settings.steps)
        """Steps in half precision; what comes after them is in fp32."""
        self.fine = self.coarse == 0
        self.opponent = Opponent(phase.adversary, device, world, capturable) if phase.adversary else None
        self.optimiser = optimiser_of(phase.modules.values(), self.settings, capturable)
        self.look_every = min(self.settings.log_every, AHEAD if device.type == "cuda" else NEAR)
        """Steps after which at the latest it is looked whether all terms were finite; a GPU waits for a look."""
        self._graphed = None if self.ungraphed else Graphed(self)
        self.curves = Curves()
        self.pending: list[tuple[int, Tensor]] = []
        self.sums: Tensor | None = None
        self.count = 0
        self.names: list[str] = []

    def step(self, step: int, batch: Batch, seed: int) -> None:
        """Step number `step`; what it draws at random is drawn from `seed`."""
        if step >= self.coarse and not self.fine:
            self.fine = True
            self._graphed = (
                Graphed(self) if self._graphed else None
            )  # the one there is holds the other precision
        if self._graphed is not None:
            values = self._graphed.step(step, batch, seed)
        else:
            with TURN:
                # torch.manual_seed keeps a stack trace for a GPU that is not there: a hundredth of a small step.
                (torch.default_generator if self.device.type == "cpu" else torch).manual_seed(seed)
                values = self.eager(step, batch.to(self.device))
        self.pending.append((step, values))

    def ahead(self, step: int) -> int:
        """How many steps there are from `step` on until it is looked at what they gave."""
        s = self.settings
        ends = [s.steps - step, *(n - step % n for n in (s.log_every, s.evaluate_every))]
        if step < self.coarse:
            ends.append(self.coarse - step)
        return max(1, min(*ends, self.look_every - len(self.pending)))

    def eager(self, step: int, tensors: dict[str, Tensor]) -> Tensor:
        """One step, kernel by kernel: the values of `names`."""
        rate = self.rate(step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        progress = step / self.settings.steps
        terms = self.terms(tensors)
        total = weighed(terms, self.phase.weights, progress)
        self.descend(total)
        self.optimiser.zero_grad(set_to_none=True)
        self._average(step)
        values = self.opposed({**terms, "loss": total}, tensors, progress)
        self.names = list(values)
        return torch.stack(list(values.values())).detach()

    def descend(self, total: Tensor) -> None:
        """Backward, clipping, and the optimiser's step."""
        self.scaler.scale(total).backward()
        if self.settings.clip:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def opposed(
        self, values: dict[str, Tensor], tensors: dict[str, Tensor], progress: float
    ) -> dict[str, Tensor]:
        """The values, and the adversary's after its own step."""
        if self.opponent is None:
            return values
        with self._autocast():
            return values | self.opponent.step(tensors, progress)

    def terms(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The phase's losses of a batch."""
        with self._autocast():
            return self.phase.losses(weighted(self.live, self.phase.artefact, tensors), tensors)

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.settings, step)

    def decay(self, step: int) -> float:
        """Decay of the average at a step: short at first, so that the random start does not linger in short runs."""
        return min(self.settings.ema, (1 + step) / (10 + step))

    def averaged(self) -> tuple[list[Tensor], list[Tensor]]:
        """(averages, live tensors) of the artefact's floating-point tensors."""
        assert self.ema is not None
        if self._averaged[0] is not self.ema:  # whose tensors, as the artefact's, stay where they are
            current = self.phase.modules[self.phase.artefact].state_dict()
            floats = [k for k, v in current.items() if v.is_floating_point()]
            self._averaged = self.ema, [self.ema[k] for k in floats], [current[k] for k in floats]
        return self._averaged[1:]

    def _autocast(self) -> Any:
        # A graph casts the weights anew in every step; what was kept of another step would be stale.
        return autocast(self.device, "off" if self.fine else self.settings.amp, cache=bool(self.ungraphed))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        if self.ema is None:
            return
        averages, current = self.averaged()
        torch._foreach_lerp_(averages, current, 1 - self.decay(step))

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
            "optimiser": plain(self.optimiser),
            "scaler": self.scaler.state_dict(),
            "curves": json.dumps(self.curves.values),
            **({"adversary": self.opponent.state()} if self.opponent else {}),
        }

    def load(self, state: dict[str, Any]) -> None:
        for name, module in self.phase.modules.items():
            module.load_state_dict(state["modules"][name])
        restore(self.optimiser, state["optimiser"], self.device)
        self.scaler.load_state_dict(state["scaler"] or self.scaler.state_dict())  # a CPU's is empty
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
