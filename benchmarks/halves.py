"""Training in bf16 on a CPU that multiplies in it, against fp32."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import in_turn, row
from benchmarks.training import cached
from pipeline.cache.sampler import to_device
from pipeline.methods.scratch import scratch
from pipeline.recipe.methods import Scratch
from pipeline.recipe.settings import Train
from pipeline.training.autocast import hindrance
from pipeline.training.loop import Loop
from students import build

NETWORKS = {"compact": {"features": 24, "convs": 8}, "fsrcnn": {}, "edsr": {}}


def rows() -> list[dict[str, Any]]:
    """A step of three students at x2, batch 16 of 24 x 24 LR pixels; nothing where the CPU has no bf16."""
    cpu = torch.device("cpu")
    if hindrance(cpu, "bf16"):
        return []
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sampler = cached(Path(folder), batch=16)
        for name, options in NETWORKS.items():
            sides = {amp: step_of(sampler, name, options, amp) for amp in ("bf16", "off")}
            seconds = in_turn(sides, rounds=20, warmup=3)
            found.append(
                row(
                    f"training step in bf16 (train.amp) / in fp32, {name} x2, batch 16, patch 24",
                    seconds["bf16"] * 1e3,
                    seconds["off"] * 1e3,
                    "<= 0.7",
                    unit="ms",
                    note="the whole step: losses, EMA and optimiser stay in fp32",
                )
            )
    return found


def step_of(sampler: Any, name: str, options: dict[str, Any], amp: str) -> Any:
    """One step of the training loop on a batch in memory."""
    settings = Train(steps=10**6, batch=16, patch=24, amp=amp)  # type: ignore[arg-type]
    phase = scratch(Scratch(name="scratch"), settings, lambda: build(name, 2, **options))[0]({})
    loop = Loop(phase, torch.device("cpu"), 1)
    batch, numbers = to_device(sampler.batch(0), torch.device("cpu")), itertools.count()

    def step() -> None:
        loop.eager(next(numbers), batch)

    return step
