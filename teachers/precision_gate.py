"""Whether bf16 is faster here than fp32, and as good."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.degrade import downscale
from pipeline.metrics import psnr_y
from teachers.descriptor import Convention, Precision, Teacher
from teachers.gate import COLOURFUL, PHOTOGRAPHS, crops, run

log = logging.getLogger(__name__)

PRECISION_LOSS = 0.005  # dB that bf16 may cost
PRECISION_SPEEDUP = 1.1  # by which it must be faster


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """bf16 against fp32 on one device."""

    drop: float
    """dB of PSNR (luma, against HR) lost on the gate's photographs; negative when bf16 is better."""
    speedup: float
    """Seconds of an fp32 call over seconds of a bf16 call."""

    @property
    def choice(self) -> Precision:
        return "bf16" if self.drop <= PRECISION_LOSS and self.speedup >= PRECISION_SPEEDUP else "fp32"


def precision_gate(teacher: Teacher, lr: Tensor | None = None) -> Precision:
    """The precision to teach in: bf16 where it is faster here and costs at most 0.005 dB, else fp32.

    Times are taken on `lr` (N, 3, H, W) in [0, 1], by default two pictures of 64 pixels a side. The answer is
    kept for the process, by checkpoint, device and number of threads. The teacher's precision is left alone.
    """
    if next(teacher.network.parameters(), None) is None:
        return "fp32"  # a graph's numbers are its own
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else "cpu"
    key = (teacher.info.sha256, teacher.info.scale, teacher.convention, device, torch.get_num_threads())
    if key not in _chosen:
        report = measure_precision(teacher, lr)
        log.info("%r: bf16 %.2f times as fast, %.4f dB lost", teacher, report.speedup, report.drop)
        _chosen[key] = report.choice
    return _chosen[key]


_chosen: dict[tuple[str, int, Convention, str, int], Precision] = {}


def measure_precision(teacher: Teacher, lr: Tensor | None = None) -> PrecisionReport:
    """Measures what `precision_gate` decides on."""
    before: Precision = teacher.dtype
    lr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) if lr is None else lr
    scale = teacher.info.scale
    pictures = [*crops(PHOTOGRAPHS, 144), *crops(COLOURFUL, 120)]
    psnr, seconds = {}, {}
    try:
        for dtype in ("fp32", "bf16"):
            teacher.precision(dtype)
            psnr[dtype] = float(
                np.mean([psnr_y(run(teacher, downscale(hr, scale)), hr, scale) for hr in pictures])
            )
            seconds[dtype] = _seconds(teacher, lr)
    finally:
        teacher.precision(before)
    return PrecisionReport(psnr["fp32"] - psnr["bf16"], seconds["fp32"] / seconds["bf16"])


def _seconds(teacher: Teacher, lr: Tensor, repeats: int = 3) -> float:
    """The shortest of a few calls, after one to warm up."""
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        teacher(lr)[0, 0, 0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times[1:])
