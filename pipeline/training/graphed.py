"""A training step as a CUDA graph: captured once, then replayed as a whole, without a Python call for each kernel.

Small students are bound by the host: a step is hundreds of kernels of a few microseconds. Whatever changes from step to
step is a tensor on the device here (the samples, the learning rate, the weights of the terms, the average's decay), so
that the same kernels do every step.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.recipe.schedule import weight_at
from pipeline.training.surroundings import Batch

if TYPE_CHECKING:
    from pipeline.training.loop import Loop

log = logging.getLogger(__name__)
SWITCH = "FACULTY_CUDA_GRAPHS"
"""The variable that turns graphs off, by 0."""
WARM = 3
"""Steps without a graph before one is captured: libraries choose their kernels in these."""
NEAR = 0.02
"""Relative difference of the losses at which a graph is not trusted: autocast and summation order make less."""
Unpack = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def obstacle(loop: Loop) -> str:
    """Why a training has no graph; nothing where it may have one."""
    settings = loop.settings
    reasons = {
        f"{SWITCH}=0": os.environ.get(SWITCH) == "0",
        "no GPU": loop.device.type != "cuda",
        f"{loop.world} workers exchange gradients": loop.world > 1,
        "an adversary learns beside it": loop.opponent is not None,
        "train.amp: fp16 scales its loss by what it finds": settings.amp == "fp16",
        "train.optimiser: sgd": settings.optimiser == "sgd",
        "train.compile": settings.compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class Graphed:
    """The steps of a training, replayed as soon as the graph is there; as they come where there is none."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.why = ""
        """Why there is no graph after all."""
        self._graph: Any = None
        self._stream = torch.cuda.Stream(loop.device) if loop.device.type == "cuda" else None
        self._warm = 0
        self._inputs: dict[str, Tensor] = {}
        self._values = torch.empty(0)

    def step(self, step: int, batch: Batch) -> Tensor:
        """One step: the terms' values, in the order of `loop.names`, on the device."""
        raw, unpack = sent(batch, self.loop.device)
        if self.why or any(raw[k].shape != v.shape for k, v in self._inputs.items()):
            return self.loop.eager(step, unpack(raw))
        if self._warm < WARM:
            self._warm += 1
            return self._beside(lambda: self.loop.eager(step, unpack(raw)))
        if self._graph is None:
            return self._first(step, raw, unpack)
        self._replay(step, raw)
        return self._values.clone()

    def _first(self, step: int, raw: Mapping[str, Tensor], unpack: Unpack) -> Tensor:
        """Capture, replay once, and compare: a graph that computes something else is given up."""
        before = self._state()
        try:
            with torch.no_grad():
                expected = torch.stack(list(self.loop.terms(unpack(raw)).values()))
            self._restore(before)  # running means have seen the batch
            torch.manual_seed(torch.initial_seed())  # the same random numbers again
            self._capture(raw, unpack)
            self._replay(step, raw)
            found = self._values[: len(expected)].clone()
            if torch.allclose(found, expected, rtol=NEAR, atol=1e-5, equal_nan=True):
                return self._values.clone()
            self.why = f"it computed {found.tolist()} instead of {expected.tolist()}"
        except RuntimeError as error:  # what CUDA cannot capture, it says so; out of memory is one too
            self.why = str(error).splitlines()[0]
        log.warning("phase %s runs without a CUDA graph: %s", self.loop.phase.name, self.why)
        self._graph, self._inputs = None, {}
        self._restore(before)
        return self.loop.eager(step, unpack(raw))

    def _capture(self, raw: Mapping[str, Tensor], unpack: Unpack) -> None:
        self._inputs = {k: v.clone() for k, v in raw.items()}
        self.prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._values = self.body(unpack(self._inputs))
        self._graph = graph

    def prepare(self) -> None:
        """Put the numbers that change into tensors, and leave gradients to be made anew."""
        loop = self.loop
        self._numbers = torch.zeros(2 + len(loop.phase.weights), device=loop.device)
        for group in loop.optimiser.param_groups:
            group["lr"] = self._numbers[0]
        loop.optimiser.zero_grad(set_to_none=True)

    def body(self, tensors: dict[str, Tensor]) -> Tensor:
        """What is captured: a step by the numbers in `_numbers`. Returns the terms' values and their weighted sum."""
        loop = self.loop
        terms = loop.terms(tensors)
        weights = dict(zip(loop.phase.weights, self._numbers[2:].unbind(), strict=True))
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        total.backward()
        if loop.settings.clip:
            nn.utils.clip_grad_norm_(loop.parameters, loop.settings.clip)
        loop.optimiser.step()
        if loop.ema is not None:
            averaged, current = loop.averaged()
            off = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(off, self._numbers[1])
            torch._foreach_add_(averaged, off)
        return torch.stack([*terms.values(), total]).detach()

    def set_numbers(self, step: int) -> None:
        """The numbers of a step: learning rate, share of the new weights in the average, weights of the terms."""
        loop = self.loop
        progress = step / loop.settings.steps
        weights = [weight_at(weight, progress) for weight in loop.phase.weights.values()]
        values = torch.tensor([loop.rate(step), 1 - loop.decay(step), *weights])
        values = values.pin_memory() if loop.device.type == "cuda" else values
        self._numbers.copy_(values, non_blocking=True)

    def _replay(self, step: int, raw: Mapping[str, Tensor]) -> None:
        for name, tensor in self._inputs.items():
            tensor.copy_(raw[name], non_blocking=True)
        self.set_numbers(step)
        self._graph.replay()

    def _beside(self, work: Callable[[], Tensor]) -> Tensor:
        """Run on a stream of its own, as what is to be captured wants it."""
        current = torch.cuda.current_stream(self.loop.device)
        assert self._stream is not None
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            values = work()
        current.wait_stream(self._stream)
        return values

    def _state(self) -> dict[str, Any]:
        return copy.deepcopy(self.loop.state())

    def _restore(self, state: dict[str, Any]) -> None:
        """Go back to a state, which stays as it is: a loop that loads one goes on in its very tensors."""
        self.loop.optimiser.zero_grad(set_to_none=True)
        curves = self.loop.curves
        self.loop.load(copy.deepcopy(state))
        self.loop.curves = curves


def sent(batch: Batch, device: torch.device) -> tuple[Mapping[str, Tensor], Unpack]:
    """(what is copied to the device, how the losses' tensors are made of it there)."""
    parts = getattr(batch, "parts", None)
    if parts is None:
        return batch.to(device), dict
    return parts(device)
