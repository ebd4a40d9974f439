"""On a GPU: a training step against the same captured by hand as a CUDA graph on one batch, trainings side by side
against one such graph, and the teach stage against the bare forward pass. Both sides in one process, only ratios count.
`python -m benchmarks gpu`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.common import noise_pictures, row
from benchmarks.gpu_sides import Size, against_graph, bare_step, now
from benchmarks.recognition import prepared
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.engine.together import train_all
from pipeline.methods.base import Phase
from pipeline.methods.mtkd import mtkd
from pipeline.methods.pisr import TEACHER, pisr, teacher
from pipeline.progress import Quiet
from pipeline.recipe.methods import MTKD, PISR
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Train
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.steps.overlap import Overlapped
from pipeline.tasks.super_resolution.teach import TeachTask, read
from pipeline.training.loop import train
from students import build

STEPS: tuple[tuple[str, str, dict[str, Any], int, int, str, str], ...] = (
    ("compact 24x8", "compact", {"features": 24, "convs": 8}, 16, 48, "off", "<= 1.15"),
    ("fsrcnn", "fsrcnn", {}, 16, 24, "off", "<= 1.15"),
    ("compact 64x16", "compact", {}, 32, 64, "bf16", "<= 1.05"),
    ("SPAN", "span", {}, 16, 48, "off", "<= 1.05"),
    ("EDSR-baseline", "edsr", {}, 16, 48, "bf16", "<= 1.05"),
)
"""(what, student, options, batch, LR patch, amp, target)."""
TOGETHER: tuple[tuple[str, str, dict[str, Any], int, int, str], ...] = (
    ("compact 24x8", "compact", {"features": 24, "convs": 8}, 48, 6, ">= 1.5"),
    ("fsrcnn", "fsrcnn", {}, 24, 12, ">= 3"),
)
"""(what, student, options, LR patch, trainings, target)."""
TEACHERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("EDSR-baseline", "edsr", {}),
    ("RCAN of 16 M", "rcan", {"features": 64, "groups": 10, "blocks": 20}),
)


def rows(device: str = "cuda", size: Size | None = None) -> Iterator[dict[str, Any]]:
    """Every row; on a CPU without graphs, for tests of this file alone."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks gpu: needs a CUDA device")
    size, where = size or Size(), torch.device(device)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cached = tiles_of(folder, size)
        for each in _rows(cached, folder, where, size):
            yield {**each, "note": f"{card}; {each.get('note', '')}".rstrip("; ")}


def _rows(cached: Cached, folder: Path, device: torch.device, size: Size) -> Iterator[dict[str, Any]]:
    for step in STEPS:
        yield _step(cached, folder, device, size, *step)
    yield _pisr(cached, folder, device, size)
    for method in ("rkd", "horkd"):
        yield _recognition(method, folder, device, size)
    for trainings in TOGETHER:
        yield _together(cached, folder, device, size, *trainings)
    for network in TEACHERS:
        yield _teach(cached, device, size, *network)


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
    return against_graph(
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
    return against_graph(what, make, cached.sampler(24, 16), folder, device, size, cut, "<= 1.15")


def _recognition(name: str, folder: Path, device: torch.device, size: Size) -> dict[str, Any]:
    """RKD with its adversary, HORKD with its assistant's cached outputs: ResNet-8 at 8 x 8, batch 64."""
    job = prepared(folder / name, False, name, str(device))

    def make(train: Train) -> Phase:
        torch.manual_seed(0)
        given = job.given(str(device))
        for maker in job.phases(str(device)):
            phase = maker(given)
        return replace(phase, settings=train)

    cut = {"batch": 64}
    sampler = job.sampler(make(Train(steps=1)))
    what = f"step of {name.upper()}, ResNet-8 at 8 px, batch 64"
    return against_graph(what, make, sampler, folder, device, size, cut, "<= 1.15")


def _together(
    cached: Cached,
    folder: Path,
    device: torch.device,
    size: Size,
    what: str,
    name: str,
    options: dict[str, Any],
    patch: int,
    trainings: int,
    target: str,
) -> dict[str, Any]:
    """Steps a second of several trainings in sum, marginal, against those of one bare graph on one batch."""
    student = partial(build, name, 2, **options)
    sampler = cached.sampler(patch, 16)

    def phase(steps: int) -> Phase:
        settings = Train(steps=steps, evaluate_every=10**6, log_every=100, batch=16, patch=patch)
        return mtkd(MTKD(name="mtkd"), settings, student)[0]({})

    def ours(steps: int) -> float:
        phases = [phase(steps) for _ in range(trainings)]

        def one(number: int) -> None:
            where = Store.open(tempfile.mkdtemp(dir=folder))
            train(phases[number], sampler, folder=where, fingerprint="f", seed=number, device=device)

        started = now(device)
        train_all(range(trainings), one, str(device), trainings)  # type: ignore[arg-type]
        return now(device) - started

    few, many = size.few, size.few + max(size.many // 2, 1)
    ours(few)
    marginal = median((ours(many) - ours(few)) / (many - few) for _ in range(size.rounds))
    alone = bare_step(phase(many), sampler, device, size, graph=True)
    row_ = f"{trainings} trainings of {what} on one GPU in sum / one bare CUDA graph alone"
    return row(row_, trainings / marginal, 1 / alone, target, unit="steps/s")


class _Ready:
    """A network that is there."""

    multiply_adds = None

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.forward = forward

    def open(self, cache: str, device: str) -> Any:
        return self.forward


def _teach(
    cached: Cached, device: torch.device, size: Size, what: str, name: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Shards as an actor does them, read, computed and committed side by side, against the forward pass alone."""
    network = build(name, 2, **options).to(device, memory_format=torch.channels_last).eval()
    receipts = cached.tiles.shards

    @torch.inference_mode()
    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return network(x).float().clamp(0, 1)

    lr = torch.from_numpy(read(cached.store, receipts[0]).columns["lr"][:32].copy())
    x = lr.to(device).permute(0, 3, 1, 2).float().div(255)
    overlapped = Overlapped(_Ready(forward), cached.store.uri, str(device))

    def tasks(round_: int, count: int) -> list[TeachTask]:
        chosen = [(receipts[n % len(receipts)], n // len(receipts)) for n in range(count)]
        return [
            TeachTask(cached.store.uri, receipt, f"outputs/{name}-{round_}-{again}", 2, "uint8", 32)
            for receipt, again in chosen
        ]

    count = size.shards
    list(overlapped.all(tasks(0, min(count, 12))))  # type: ignore[arg-type]
    ours, theirs = [], []
    for number in range(1, size.rounds + 1):
        todo = tasks(number, count)
        started = now(device)
        list(overlapped.all(todo))  # type: ignore[arg-type]
        tiles = sum(task.samples.rows for task in todo)
        ours.append(tiles / (now(device) - started))
        batches = max(tiles // 32, 1)
        started = now(device)
        for _ in range(batches):
            forward(x)
        theirs.append(batches * len(x) / (now(device) - started))
    said = f"teach, {what} bf16, shards read, computed and committed / bare forward at batch 32"
    return row(said, median(ours), median(theirs), ">= 0.9", unit="tiles/s")
