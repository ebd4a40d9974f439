"""The sides of the benchmarks on a GPU: `train` with all that it does, and the bare step on one batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import row
from pipeline.cache.store import Store
from pipeline.methods.base import Phase
from pipeline.recipe.schedule import weight_at
from pipeline.recipe.settings import Train
from pipeline.training.loop import train
from pipeline.training.parts import Opponent


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: a GPU's, or as little as a test of this file needs."""

    few: int = 100
    many: int = 600
    pictures: int = 12
    shards: int = 48
    side: int = 960
    rounds: int = 3


def against_graph(
    what: str,
    make: Callable[[Train], Phase],
    sampler: Any,
    folder: Path,
    device: torch.device,
    size: Size,
    cut: dict[str, Any],
    target: str,
) -> dict[str, Any]:
    """`train` with all it does, marginal, against the bare step on one batch, the faster of eager and graph."""

    def settings(steps: int) -> Train:
        return Train(steps=steps, evaluate_every=10**6, log_every=100, **cut)

    def ours(steps: int) -> float:
        phase = make(settings(steps))
        where = Store.open(tempfile.mkdtemp(dir=folder))
        started = now(device)
        train(phase, sampler, folder=where, fingerprint="f", seed=0, device=device)
        return now(device) - started

    ours(size.few)
    marginal = [(ours(size.many) - ours(size.few)) / (size.many - size.few) for _ in range(size.rounds)]
    bare = [bare_step(make(settings(size.many)), sampler, device, size, graph) for graph in (False, True)]
    note = f"bare eager {bare[0] * 1e3:.3f} ms, graph {bare[1] * 1e3:.3f} ms"
    name = f"{what} / bare, the faster of eager and CUDA graph"
    return row(name, median(marginal) * 1e3, min(bare) * 1e3, target, unit="ms", note=note)


def bare_step(phase: Phase, sampler: Any, device: torch.device, size: Size, graph: bool) -> float:
    """Seconds a step: forward, backward, Adam on one batch on the device; no sampling, no average, no checks."""
    batch = sampler.batch(0).to(device)
    for module in (*phase.modules.values(), *phase.frozen.values()):
        module.to(device=device, memory_format=torch.channels_last).train()
    parameters = [p for m in phase.modules.values() for p in m.parameters() if p.requires_grad]
    graph = graph and device.type == "cuda"
    optimiser = torch.optim.Adam(parameters, lr=2e-4, fused=True, capturable=graph)
    opponent = Opponent(phase.adversary, device, 1, graph) if phase.adversary else None
    bf16 = phase.settings.amp == "bf16" and device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=not graph):
            terms = phase.losses(phase.modules, batch)
        total = torch.stack([weight_at(phase.weights[k], 0.5) * v for k, v in terms.items()]).sum()
        total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if opponent is not None:
            opponent.step(batch, 0.0)

    run = step
    if graph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(5):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            step()
        run = captured.replay
    for _ in range(min(20, size.few)):
        run()
    times = []
    count = max(size.many // 3, 1)
    for _ in range(size.rounds):
        started = now(device)
        for _ in range(count):
            run()
        times.append((now(device) - started) / count)
    return median(times)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
