"""What gets a GPU where the recipe leaves it open, and what happens where its memory is full. None is needed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from command_kit import run
from road_kit import REPOSITORY, picture, recipe, recipe_file, teacher

import students
from pipeline.engine.shares import MOST, share, shared_out, trials_at_once
from pipeline.errors import FacultyError
from pipeline.recipe.recipe import Distill
from pipeline.steps.batches import HALVED, Halving

CODE = """
import torch
from torch import nn


class Narrow(nn.Module):
    # Has memory for so many tiles of 24 pixels.

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        if len(x) > self.most and x.shape[-1] == 24:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(x)} pictures.")
        return nn.functional.interpolate(x, scale_factor=2, mode="bicubic").clamp(0, 1)


def narrow(most=3):
    return Narrow(most)
"""
ON_RAY = """
import ray
from pipeline.engine.ray_engine import RayEngine

ray.init(address="local", num_cpus=2, num_gpus={gpus}, include_dashboard=False, log_to_driver=False)
engine = RayEngine()
found = sorted(engine.map(lambda item, device: (item, device), [1, 2, 3], gpus="auto"))
never = sorted(engine.map(lambda item, device: device, [1], gpus=0.0))
print(found, never, engine.device_kind("auto"), engine.device_kind(0.0), engine.devices())
"""


def test_a_share_is_a_whole_gpu_unless_there_are_more_takers_than_gpus() -> None:
    assert share("auto", 0, 3) == 0 and share(0.25, 0, 3) == 0.25 and share(0.0, 8, 3) == 0
    assert [share("auto", 1, n) for n in (1, 2, 3, 4, 9)] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / MOST]
    assert [share("auto", 8, n) for n in (1, 8, 9, 24, 99)] == [1, 1, 1 / 2, 1 / 3, 1 / MOST]
    assert share("auto", 2, 9, workers=2) == 1  # NCCL wants a GPU for each


def test_trainings_and_trials_are_counted_with_it() -> None:
    assert shared_out(Distill(), 0, 6).gpus_per_worker == 0
    assert shared_out(Distill(), 2, 6).gpus_per_worker == 1 / 3
    assert shared_out(Distill(workers=4), 8, 6).gpus_per_worker == 1
    assert shared_out(Distill(gpus_per_worker=0), 8, 1).gpus_per_worker == 0
    abreast, settings = trials_at_once(Distill(), None, {"CPU": 16, "GPU": 1})
    assert (abreast, settings.gpus_per_worker) == (4, 1 / 4)
    abreast, settings = trials_at_once(Distill(), 2, {"CPU": 16, "GPU": 1})
    assert (abreast, settings.gpus_per_worker) == (2, 1 / 2)
    assert trials_at_once(Distill(), None, {"CPU": 2})[1].gpus_per_worker == 0


@pytest.mark.ray
@pytest.mark.parametrize("gpus", (0, 1))
def test_work_goes_to_the_gpus_that_ray_has(gpus: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_RAY.format(gpus=gpus)], cwd=REPOSITORY, capture_output=True, text=True
    )
    kind = "cuda" if gpus else "cpu"
    assert done.returncode == 0, done.stderr
    seen = f"[(1, '{kind}'), (2, '{kind}'), (3, '{kind}')] ['cpu'] {kind} cpu 2 CPU cores, "
    assert done.stdout.strip().splitlines()[-1].startswith(seen + ("1 GPU" if gpus else "no GPU"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "narrowness.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "code")
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    return tmp_path


def narrow(most: int) -> dict:
    return {"factory": "narrowness:narrow", "options": {"most": most}, "name": "narrow", "precision": "fp32"}


def outputs(root: Path) -> list[np.ndarray]:
    """The cached pictures, by shard."""
    files = sorted((root / "cache" / "outputs").rglob("*.arrow"))
    tables = [pyarrow.ipc.open_file(file).read_all() for file in files]
    return [np.stack(table["sr"].to_pylist()) for table in tables]


def test_a_teacher_without_memory_for_its_batch_goes_on_with_smaller_ones(place: Path) -> None:
    file = recipe_file(place, teachers=[narrow(3)], teach={"batch": 8})
    done = run("teach", file, "--inline")
    assert done.code == 0, done.err
    assert done.err.count("narrow: the GPU's memory holds no larger batch, so it does 2 tiles at a time") == 1
    halved = outputs(place)
    (place / "other").mkdir()
    (place / "other" / "pictures").symlink_to(place / "pictures")
    wide = recipe_file(place / "other", teachers=[narrow(99)], teach={"batch": 2})
    done = run("teach", wide, "--inline")
    assert done.code == 0 and "holds no larger" not in done.err
    assert len(halved) == 6
    for one, other in zip(halved, outputs(place / "other"), strict=True):
        assert np.array_equal(one, other)


def test_a_teacher_without_memory_for_one_tile_says_what_to_do(place: Path) -> None:
    done = run("teach", recipe_file(place, teachers=[{**narrow(0), "gate": "off"}]), "--inline")
    assert done.code == 1 and "Traceback" not in done.err
    assert (
        "one sample does not fit into the GPU's memory" in done.err and "(data.tile, data.size)" in done.err
    )


def test_slices_cover_all_rows_in_order() -> None:
    batches = Halving("covering", 8, 11)
    seen, tried = [], []
    for rows in batches:
        with batches.tried():
            tried.append(rows.stop - rows.start)
            if rows.stop - rows.start > 2:
                raise torch.OutOfMemoryError
        if not batches.again:
            seen += list(range(11))[rows]
    assert seen == list(range(11)) and tried[:3] == [8, 4, 2] and batches.said == {HALVED: 2}
    assert Halving("covering", 8, 11).batch == 2 and Halving("covering", 1, 11).batch == 1
    with pytest.raises(FacultyError, match="covering: one sample does not fit.*data.tile.*gpus_per_actor"):
        for _ in (one := Halving("covering", 1, 11)):
            with one.tried():
                raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_gpu_gets_even_slices_without_a_small_rest() -> None:
    def sizes(count: int, batch: int = 32) -> list[int]:
        return [len(range(count)[rows]) for rows in Halving(f"even {count} {batch}", batch, count, even=True)]

    assert sizes(36) == [36] and sizes(40) == [40] and sizes(41) == [21, 20] and sizes(100) == [34, 34, 32]
    assert sizes(5, 1) == [1] * 5 and sizes(3) == [3] and sizes(0) == []
    full = Halving("full", 32, 36, even=True)
    for rows in full:
        with full.tried():
            if len(range(36)[rows]) > 9:
                raise torch.OutOfMemoryError
    assert full.said == {HALVED: 9} and Halving("full", 32, 36, even=True).batch == 9


def test_a_training_without_memory_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = type(students.build("fsrcnn", 2))
    forward = network.forward

    def heavy(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, x)

    monkeypatch.setattr(network, "forward", heavy)
    done = run("distill", recipe_file(place, teachers=[teacher("edsr")]), "--inline")
    assert done.code == 1
    for part in ("mtkd-fsrcnn-s0: a batch of 4 does not fit", "Tried to allocate 20.00 GiB", "train.batch"):
        assert part in done.err
    assert recipe(place).train.batch == 4
