"""On a GPU: a training step against the same captured by hand as a CUDA graph on one batch, and the teach stage's
shard against the bare forward pass. Both sides in one process, only ratios count. `python -m benchmarks gpu`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import noise_pictures, row
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.methods.base import Phase
from pipeline.methods.mtkd import mtkd
from pipeline.methods.pisr import TEACHER, pisr, teacher
from pipeline.progress import Quiet
from pipeline.recipe.methods import MTKD, PISR
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Train
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.super_resolution.teach import TeachTask, read
from pipeline.training.loop import train
from students import build


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: a GPU's, or as little as a test of this file needs."""

    few: int = 100
    many: int = 700
    pictures: int = 12
    side: int = 960
    rounds: int = 3


STEPS: tuple[tuple[str, str, dict[str, Any], int, int, str, str], ...] = (
    ("compact 24x8", "compact", {"features": 24, "convs": 8}, 16, 48, "off", "<= 1.15"),
    ("fsrcnn", "fsrcnn", {}, 16, 24, "off", "<= 1.15"),
    ("compact 64x16", "compact", {}, 32, 64, "bf16", "<= 1.05"),
    ("SPAN", "span", {}, 16, 48, "off", "<= 1.05"),
    ("EDSR-baseline", "edsr", {}, 16, 48, "bf16", "<= 1.05"),
)
"""(what, student, options, batch, LR patch, amp, target)."""


def rows(device: str = "cuda", size: Size | None = None) -> list[dict[str, Any]]:
    """Every row; on a CPU without graphs, for tests of this file alone."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks gpu: needs a CUDA device")
    size, where = size or Size(), torch.device(device)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        run = tiles_of(Path(folder), size)
        found = [_step(run, Path(folder), where, size, *asked) for asked in STEPS]
        found.append(_pisr(run, Path(folder), where, size))
        found.append(_teach(run, where, size))
    return [{**each, "note": f"{card}; {each.get('note', '')}".rstrip("; ")} for each in found]


@dataclass(frozen=True, slots=True)
class Cached:
    """Tiles and where they lie."""

    store: Store
    tiles: Any

    def sampler(self, patch: int, batch: int) -> Sampler:
        """HR stands in for the target, which has its shape."""
        sources = {name: Source(self.store, self.tiles, name) for name in ("lr", "hr")}
        sources["target"] = sources["hr"]
        return Sampler(sources, scale=2, patch=patch, batch=batch, seed=0, margin=4)


def tiles_of(folder: Path, size: Size) -> Cached:
    """A cache of tiles of 192 HR pixels."""
    pictures = noise_pictures(folder / "pictures", size.pictures, size.side)
    recipe = Recipe.model_validate(
        {
            "name": "bench",
            "scale": 2,
            "data": {"train": [str(pictures)], "tile": 192, "holdout": 0.0},
            "cache": {"root": str(folder / "cache"), "shard_mb": 8},
            "method": {"name": "scratch"},
        }
    )
    run = Run(recipe, InlineEngine("cpu"), Quiet())
    samples = run.planner.samples(run.task.samples(run.planner), "tiles")
    return Cached(run.planner.store, samples.train)


def _step(
    cached: Cached,
    folder: Path,
    device: torch.device,
    size: Size,
    what: str,
    name: str,
    options: dict[str, Any],
    batch: int,
    patch: int,
    amp: str,
    target: str,
) -> dict[str, Any]:
    student = partial(build, name, 2, **options)
    return _against_graph(
        f"step of {what}, batch {batch}, patch {patch}, amp {amp}",
        lambda settings: mtkd(MTKD(name="mtkd"), settings, student)[0]({}),
        cached.sampler(patch, batch),
        folder,
        device,
        size,
        {"batch": batch, "patch": patch, "amp": amp},
        target,
    )


def _pisr(cached: Cached, folder: Path, device: torch.device, size: Size) -> dict[str, Any]:
    """PISR's second phase: its teacher runs in the step."""
    student, settings = partial(build, "fsrcnn", 2), PISR(name="pisr")

    def make(train: Train) -> Phase:
        (first,) = teacher(settings, train, student, 2)
        return pisr(settings, train, student)[-1]({TEACHER: first({}).modules[TEACHER]})

    what, cut = "step of PISR with fsrcnn, batch 16, patch 24", {"batch": 16, "patch": 24}
    return _against_graph(what, make, cached.sampler(24, 16), folder, device, size, cut, "<= 1.15")


def _against_graph(
    what: str,
    make: Callable[[Train], Phase],
    sampler: Sampler,
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
        started = _now(device)
        train(phase, sampler, folder=where, fingerprint="f", seed=0, device=device)
        return _now(device) - started

    ours(size.few)
    marginal = [(ours(size.many) - ours(size.few)) / (size.many - size.few) for _ in range(size.rounds)]
    bare = [_bare(make(settings(size.many)), sampler, device, size, graph) for graph in (False, True)]
    note = f"bare eager {bare[0] * 1e3:.3f} ms, graph {bare[1] * 1e3:.3f} ms"
    name = f"{what} / bare, the faster of eager and CUDA graph"
    return row(name, median(marginal) * 1e3, min(bare) * 1e3, target, unit="ms", note=note)


def _bare(phase: Phase, sampler: Sampler, device: torch.device, size: Size, graph: bool) -> float:
    """Seconds a step: forward, backward, Adam on one batch on the device; no sampling, no average, no checks."""
    batch = sampler.batch(0).to(device)
    for module in (*phase.modules.values(), *phase.frozen.values()):
        module.to(device=device, memory_format=torch.channels_last)
    parameters = [p for m in phase.modules.values() for p in m.parameters() if p.requires_grad]
    graph = graph and device.type == "cuda"
    optimiser = torch.optim.Adam(parameters, lr=2e-4, fused=True, capturable=graph)
    bf16 = phase.settings.amp == "bf16" and device.type == "cuda"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=not graph):
            terms = phase.losses(phase.modules, batch)
        total = torch.stack([float(phase.weights[k]) * v for k, v in terms.items()]).sum()
        total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

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
        started = _now(device)
        for _ in range(count):
            run()
        times.append((_now(device) - started) / count)
    return median(times)


def _teach(cached: Cached, device: torch.device, size: Size) -> dict[str, Any]:
    """A shard through EDSR-baseline as an actor does it, read and committed, against the forward pass alone."""
    network = build("edsr", 2).to(device, memory_format=torch.channels_last).eval()
    receipt = cached.tiles.shards[0]
    task = TeachTask(cached.store.uri, receipt, "outputs/bench", 2, "uint8", 32)

    @torch.inference_mode()
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return network(x).float().clamp(0, 1)

    lr = torch.from_numpy(read(cached.store, receipt).columns["lr"][:32].copy())
    x = lr.to(device).permute(0, 3, 1, 2).float().div(255)

    def ours() -> None:
        task.run(forward, str(device))

    def theirs() -> None:
        for begin in range(0, receipt.rows, 32):
            forward(x[: min(32, receipt.rows - begin)])

    found = {}
    for name, side in (("ours", ours), ("theirs", theirs)):
        side()
        times = []
        for _ in range(size.rounds):
            started = _now(device)
            side()
            times.append(_now(device) - started)
        found[name] = receipt.rows / median(times)
    what = "teach, EDSR-baseline bf16, one shard read, computed and committed / bare forward"
    return row(what, found["ours"], found["theirs"], ">= 0.9", unit="tiles/s")


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
