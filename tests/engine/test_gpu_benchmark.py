"""The GPU benchmark's rows come about; what they say needs a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from road_kit import REPOSITORY

from benchmarks import gpu
from benchmarks.gpu_sides import Size


def test_every_row_is_made_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [
        (what, name, options, 2, 8, amp, target) for what, name, options, _, _, amp, target in gpu.STEPS[:2]
    ]
    monkeypatch.setattr(gpu, "STEPS", tuple(tiny))
    monkeypatch.setattr(gpu, "TOGETHER", (("fsrcnn", "fsrcnn", {}, 8, 3, ">= 1.5"),))
    monkeypatch.setattr(gpu, "TEACHERS", (("EDSR", "edsr", {"features": 8, "blocks": 1}),))
    found = list(gpu.rows("cpu", Size(few=2, many=6, pictures=2, side=200, rounds=1, shards=3)))
    assert [each["what"].split(",")[0] for each in found] == [
        "step of compact 24x8",
        "step of fsrcnn",
        "step of PISR with fsrcnn",
        "step of RKD",
        "step of HORKD",
        "3 trainings of fsrcnn on one GPU in sum / one bare CUDA graph alone",
        "teach",
    ]
    assert all(each["theirs"] > 0 and each["note"].startswith("CPU") for each in found)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.strip() == "benchmarks gpu: needs a CUDA device"
