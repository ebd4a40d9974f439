"""A training step as a CUDA graph: captured once, then replayed as a whole, without a Python call for each kernel.

Small students are bound by the host: a step is hundreds of kernels of a few microseconds. Whatever changes from step to
step is a tensor on the device here (where the crops lie, the learning rate, the weights of the terms, the average's
decay), so that the same kernels do every step. It is told for many steps at once and the graph counts them itself: all
that the host does for a step is to start it.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.cache.placed import sent
from pipeline.recipe.schedule import weight_at
from pipeline.training.surroundings import Batch
from pipeline.training.turns import TURN

if TYPE_CHECKING:
    from pipeline.training.loop import Loop

SWITCH = "FACULTY_CUDA_GRAPHS"
"""The variable that turns graphs off, by 0."""
WARM = 3
"""Steps without a graph before one is captured: libraries choose their kernels in these."""
NEAR = 0.02
"""Relative difference of the losses at which a graph is not trusted: autocast and summation order make less."""
Unpack = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def obstacle(loop: Loop) -> str:
    """Why a training has no graph; nothing where it may have one."""
    reasons = {
        f"{SWITCH}=0": os.environ.get(SWITCH) == "0",
        "no GPU": loop.device.type != "cuda",
        f"{loop.world} workers exchange gradients": loop.world > 1,
        "train.compile": loop.settings.compile,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


class Graphed:
    """The steps of a training, replayed as soon as the graph is there; as they come where there is none."""

    def __init__(self, loop: Loop) -> None:
        self.loop: Loop = weakref.proxy(loop)  # a circle would hold the device's memory on
        self.why = ""
        """Why there is no graph after all."""
        self.replay: Callable[[], Any] | None = None
        """Does the next step of those that were told."""
        self._stream = torch.cuda.Stream(loop.device) if loop.device.type == "cuda" else None
        self._warm = 0
        self._draws = False
        """Whether a step draws random numbers on the device."""
        self._told = self._done = 0
        self._later: dict[int, list[float]] = {}
        """Numbers of steps that are told next, made while the device is busy."""

    def step(self, step: int, batch: Batch, seed: int) -> Tensor:
        """One step: the terms' values, in the order of `loop.names`, on the device; they stay until those of all steps
        that were told at once have been looked at (`loop.ahead`).
        """
        if self.replay is None:
            with TURN:
                return self._without(step, batch, seed)
        self.tell(step, batch)
        if self._draws:
            with TURN:
                torch.manual_seed(seed)
                self.replay()
        else:
            with TURN.shared():
                self.replay()
        return self.values()

    def _without(self, step: int, batch: Batch, seed: int) -> Tensor:
        """A step before there is a graph, the one with which it comes to be, or one of a training that has none."""
        torch.manual_seed(seed)
        raw, unpack = parts(batch, self.loop.device)
        if self.why:
            return self.loop.eager(step, unpack(raw))
        if self._warm == WARM:
            return self._first(step, batch, seed, raw, unpack)
        self._warm += 1
        before = torch.cuda.get_rng_state(self.loop.device)
        values = self._beside(lambda: self.loop.eager(step, unpack(raw)))
        self._draws |= not torch.equal(before, torch.cuda.get_rng_state(self.loop.device))
        return values

    def _first(self, step: int, batch: Batch, seed: int, raw: Mapping[str, Tensor], unpack: Unpack) -> Tensor:
        """Capture, replay once, and compare: a graph that computes something else is given up."""
        before = self._state()
        try:
            with torch.no_grad():
                expected = torch.stack(list(self.loop.terms(unpack(raw)).values()))
            self._restore(before)  # running means have seen the batch
            self.prepare(batch, raw, unpack)
            torch.manual_seed(seed)  # the same random numbers again
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what they do on streams of their own.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self.body()
            self.tell(step, batch)
            torch.manual_seed(seed)
            graph.replay()
            self.replay = graph.replay
            values = self.values()
            found = values[: len(expected)]
            if torch.allclose(found, expected, rtol=NEAR, atol=1e-5, equal_nan=True):
                return values
            self.why = f"it computed {found.tolist()} instead of {expected.tolist()}"
        except RuntimeError as error:  # what CUDA cannot capture, it says so; out of memory is one too
            self.why = str(error).splitlines()[0]
        self.loop.say(f"plain steps instead of a CUDA graph: {self.why}")
        self.replay, self._told, self._done = None, 0, 0
        self._restore(before)
        torch.manual_seed(seed)
        return self.loop.eager(step, unpack(raw))

    def prepare(self, batch: Batch, raw: Mapping[str, Tensor], unpack: Unpack) -> None:
        """Room for what a step is told and for what it gives."""
        self._ahead = hasattr(batch, "ahead")
        """Whether batches say what is sent of those of later steps too."""
        device, rows, width = self.loop.device, self.loop.look_every, len(self.loop.phase.weights)
        self._unpack = unpack
        self._inputs = {} if self._ahead else {k: v.clone() for k, v in raw.items()}
        self._numbers = torch.zeros((rows, 2 + width), device=device)
        """Of each step told: learning rate, share of the new weights in the average, weights of the terms."""
        told = raw if self._ahead else {}
        self._places = {
            k: torch.zeros((rows, *v.shape), dtype=v.dtype, device=device) for k, v in told.items()
        }
        self._known = torch.zeros((rows, len(self.loop.names)), device=device)
        self._row = torch.zeros(1, dtype=torch.int64, device=device)
        self._current = torch.zeros((1, 2 + width), device=device)
        for group in self.loop.optimiser.param_groups:
            group["lr"] = self._current[0, 0]

    def body(self) -> None:
        """What is captured: the step of the row that it is at."""
        loop = self.loop
        loop.optimiser.zero_grad(set_to_none=True)
        torch.index_select(self._numbers, 0, self._row, out=self._current)
        if self._ahead:
            raw = {k: v.index_select(0, self._row)[0] for k, v in self._places.items()}
        else:
            raw = self._inputs
        tensors = self._unpack(raw)
        terms = loop.terms(tensors)
        weights = dict(zip(loop.phase.weights, self._current[0, 2:].unbind(), strict=True))
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        loop.descend(total)
        if loop.ema is not None:
            averaged, current = loop.averaged()
            off = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(off, self._current[0, 1])
            torch._foreach_add_(averaged, off)
        values = loop.opposed({**terms, "loss": total}, tensors, 0.0)
        self._known.index_copy_(0, self._row, torch.stack(list(values.values())).detach().float()[None])
        self._row.add_(1)

    def tell(self, step: int, batch: Batch) -> None:
        """Make ready on the device what a step needs: its samples, and its numbers with those of the steps after it."""
        if self._done == self._told:
            count = self.loop.ahead(step)
            numbers = [self._later.pop(n, []) or self._of(n) for n in range(step, step + count)]
            self._numbers[:count] = sent(torch.tensor(numbers), self.loop.device)
            if self._ahead:
                for name, rows in batch.ahead(count).items():  # type: ignore[attr-defined]
                    self._places[name][:count] = sent(torch.from_numpy(rows), self.loop.device)
            self._row.zero_()
            self._told, self._done = count, 0
        if not self._ahead:
            raw, _ = parts(batch, self.loop.device)
            for name, tensor in self._inputs.items():
                tensor.copy_(raw[name], non_blocking=True)
        self._done += 1
        if (later := step + self._told) < self.loop.settings.steps:
            self._later[later] = self._of(later)

    def _of(self, step: int) -> list[float]:
        """The numbers of a step."""
        loop = self.loop
        progress = step / loop.settings.steps
        return [
            loop.rate(step),
            1 - loop.decay(step),
            *(weight_at(w, progress) for w in loop.phase.weights.values()),
        ]

    def values(self) -> Tensor:
        """What the last step gave."""
        return self._known[self._done - 1]

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


def parts(batch: Batch, device: torch.device) -> tuple[Mapping[str, Tensor], Unpack]:
    """(what is copied to the device, how the losses' tensors are made of it there)."""
    of_its_own = getattr(batch, "parts", None)
    if of_its_own is None:
        return batch.to(device), dict
    return of_its_own(device)
