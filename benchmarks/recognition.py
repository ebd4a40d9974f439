"""Recognition's step from cached outputs: against the teacher run in every step, and against a bare one in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import in_turn, row
from pipeline.cost import multiply_adds
from pipeline.progress import Quiet
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recognition.jobs import RecognitionJob
from pipeline.tasks.recognition.networks import build
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.training import cpu
from pipeline.training.loop import Loop

SIDE, GAP, BATCH = 32, 4, 64
DEGRADATIONS = ["bicubic", "average", "blur_noise"]
SEEN = 400
"""Batches after which every view was drawn under every degradation."""


def rows() -> list[dict[str, Any]]:
    """KD at a gap of 4, ResNet-14 of width 32 at 32 x 32 as the teacher, ResNet-8 at 8 x 8 as the student."""
    with tempfile.TemporaryDirectory() as folder:
        cached, online = (prepared(Path(folder), online) for online in (False, True))
        robust = prepared(Path(folder), False, mixing={"mixup": 0.2, "cutmix": 1.0}, lr=DEGRADATIONS)
        seconds = in_turn({"online": step_of(online), "cached": step_of(cached)}, rounds=9, warmup=2)
        sides = {"kd": loop_of(cached), "robust": loop_of(robust), "bare": bare_of(cached)}
        steps = in_turn(sides, rounds=300, warmup=20)
    recipe = cached.spec
    own = 3 * multiply_adds(build(recipe.student, recipe.lr_size(GAP), 2), (1, 3, SIDE // GAP, SIDE // GAP))
    extra = multiply_adds(build(recipe.teacher.network, recipe.hr_size, 2), (1, 3, SIDE, SIDE))
    note = (
        "ours is the training loop's step: sampling, soft labels, EMA, finiteness; every view was made before"
    )
    what = "recognition step of KD{} / the student's bare forward, backward, Adam in memory, ResNet-8 at 8 px, batch 64"
    return [
        row(
            "recognition step, teacher run online / its outputs from the cache, ResNet-14 at 32 px, ResNet-8 at 8 px",
            seconds["online"] * 1e3,
            seconds["cached"] * 1e3,
            ">= 5",
            unit="ms",
            note=f"sampling, views and degradation included in both; multiply-adds alone say {(own + extra) / own:.1f}",
        ),
        *(
            row(what.format(how), steps[side] * 1e3, steps["bare"] * 1e3, "<= 1.15", unit="ms", note=note)
            for side, how in (("kd", ""), ("robust", " with mixup, CutMix and three degradations"))
        ),
    ]


def prepared(
    folder: Path, online: bool, method: str = "kd", device: str = "cpu", **settings: Any
) -> RecognitionJob:
    """A student's job on random pictures of two classes, with everything that it reads in the cache."""
    folder.mkdir(exist_ok=True)
    file = folder / "pictures.npz"
    if not file.exists():
        generator = np.random.default_rng(0)
        pictures = generator.integers(0, 256, (512, SIDE, SIDE, 3), np.uint8)
        np.savez(file, allow_pickle=False, x=pictures, y=np.arange(512) % 2)
    few = {"steps": 1, "batch": 8, "evaluate_every": 1}
    recipe = Recognition.model_validate(
        {
            "name": "bench",
            "task": "classification",
            "gap": GAP,
            "output": str(folder / "runs"),
            "cache": {"root": str(folder / "cache"), "online": online},
            "data": {
                "layout": "npz",
                "root": str(file),
                "size": SIDE,
                "views": {"count": 2, "shift": 4, "flip": True},
            },
            "teacher": {"network": {"name": "resnet14", "options": {"width": 32}}, "train": few},
            "method": {"name": method, **({"assistant_train": few} if method == "horkd" else {})},
            "train": {"batch": BATCH},
            "tracking": {"enabled": False},
            **settings,
        }
    )
    run = Run(recipe, InlineEngine(device), Quiet())
    job = run.student(run.prepare([method]), method, GAP, 0)
    assert isinstance(job, RecognitionJob)
    return job


def step_of(job: RecognitionJob) -> Any:
    """One training step of a job, from its sampler to its optimiser."""
    (make,) = job.phases("cpu")
    phase = make({})
    sampler = job.sampler(phase)
    modules = {name: module.train() for name, module in phase.modules.items()}
    optimiser = torch.optim.Adam([p for m in modules.values() for p in m.parameters()], fused=True)
    numbers = iter(range(1000))

    def step() -> None:
        losses = phase.losses(modules, sampler.batch(next(numbers)).to("cpu"))
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def loop_of(job: RecognitionJob) -> Any:
    """One step of the training loop, with all it does: batches are read ahead, and every view was seen before."""
    cpu.prepare()
    (make,) = job.phases("cpu")
    phase = make({})
    sampler, loop = job.sampler(phase).on(torch.device("cpu")), Loop(phase, torch.device("cpu"), 1)
    for number in range(SEEN):
        sampler.batch(number)
    batches = sampler.iterate(SEEN, 10**6)

    def step() -> None:
        number, batch = next(batches)
        loop.step(number, batch, number)
        if len(loop.pending) >= loop.look_every:
            loop.require_finite(sampler, 0, 1)

    return step


def bare_of(job: RecognitionJob) -> Any:
    """Forward, cross-entropy, backward and Adam of the same student on one batch in memory."""
    student = job.build().to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(student.parameters(), fused=True)
    x = torch.rand(BATCH, 3, SIDE // GAP, SIDE // GAP).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 2

    def step() -> None:
        nn.functional.cross_entropy(student(x)["logits"], labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step
