"""The GPU's way through a shard gives what the CPU's way gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from road_kit import Road, picture, recipe
from torch import Tensor

from pipeline.errors import FacultyError
from pipeline.steps.batches import HALVED, Halving
from pipeline.tasks.super_resolution.streaming import through
from pipeline.tasks.super_resolution.teach import TeachTask


@pytest.fixture
def task(tmp_path: Path) -> TeachTask:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 112, seed)
    road = Road(recipe(tmp_path))
    samples, _ = road.teach()
    receipt = samples.train.shards[0]
    return TeachTask(road.run.planner.store.uri, receipt, "outputs/x", 2, "uint8", 3)


def enlarging(x: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bicubic")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_both_ways_agree(task: TeachTask, device: str, dtype: str) -> None:
    from dataclasses import replace

    task = replace(task, dtype=dtype)
    shard = task.read()
    expected = task.compute(shard, enlarging, "cpu")
    stored = torch.uint8 if dtype == "uint8" else torch.float16
    given = (shard.columns["lr"], shard.columns["hr"], 2, stored)
    out, error, pixels = through(
        enlarging, *given, Halving("agreeing", 3, len(expected.ids)), torch.device(device)
    )
    # Interpolation itself may differ in the last place between devices.
    assert out.dtype == expected.pictures.dtype
    assert np.abs(out.astype(float) - expected.pictures).max() <= (1 if device == "cuda" else 0)
    assert pixels == expected.stats["pixels"]
    assert error == pytest.approx(expected.stats["squared_error"], rel=1e-5)


def test_without_hr_there_is_no_error(task: TeachTask) -> None:
    lr = task.read().columns["lr"]
    out, error, pixels = through(
        enlarging, lr, None, 2, torch.uint8, Halving("alone", 4, len(lr)), torch.device("cpu")
    )
    assert (error, pixels) == (0, 0) and out.shape == (len(lr), 48, 48, 3)


def test_wrong_outputs_and_full_memory(task: TeachTask) -> None:
    lr = task.read().columns["lr"]

    def run(network: object, name: str) -> tuple[np.ndarray, Halving]:
        batches = Halving(name, 4, len(lr))
        return through(network, lr, None, 2, torch.uint8, batches, torch.device("cpu"))[0], batches

    with pytest.raises(FacultyError, match="shape .* instead of"):
        run(lambda x: x, "small")
    with pytest.raises(FacultyError, match="not finite"):
        run(lambda x: enlarging(x) * float("nan"), "nan")

    def narrow(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return enlarging(x)

    out, batches = run(narrow, "narrow")
    assert batches.said == {HALVED: 1} and np.array_equal(out, run(enlarging, "wide")[0])
