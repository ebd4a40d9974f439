"""Whether a teacher runs in bf16: by rules that give the same answer on every look, never by a clock.

Outputs are named after the precision they were made in, so an answer that varied with the machine's load would have
them made twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.data.degrade import downscale
from pipeline.metrics import psnr_y
from teachers.descriptor import Convention, Precision, Teacher
from teachers.gate import COLOURFUL, PHOTOGRAPHS, crops, run
from teachers.precision import PROBE_SIDE, has_bf16

log = logging.getLogger(__name__)

PRECISION_LOSS = 0.005
"""dB that bf16 may cost."""
PRECISION_DENSE = 0.5
"""Least share of a network's multiply-adds that bf16 makes faster."""
DENSE = 1024
"""Input times output channels (of a group) from which a layer is faster in bf16: 32 x 32, 16 x 64."""


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """bf16 against fp32 on one device."""

    drop: float
    """dB of PSNR (luma, against HR) lost on the gate's photographs; negative when bf16 is better."""
    dense: float
    """Share of the multiply-adds of convolutions and linear layers that is in those of `DENSE` channels or more."""
    supported: bool
    """Whether the device multiplies in bf16."""

    @property
    def choice(self) -> Precision:
        good = self.drop <= PRECISION_LOSS  # not where it is NaN
        return "bf16" if self.supported and good and self.dense >= PRECISION_DENSE else "fp32"


def precision_gate(teacher: Teacher) -> Precision:
    """The precision to teach in: bf16 where the device has it, most of the network gains by it, and it costs at most
    0.005 dB; else fp32.

    The answer is kept for the process, by checkpoint and device. The teacher's precision is left alone.
    """
    if next(teacher.network.parameters(), None) is None:
        return "fp32"  # a graph's numbers are its own
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else "cpu"
    key = (teacher.info.sha256, teacher.info.scale, teacher.convention, device)
    if key not in _chosen:
        if not has_bf16(teacher.device):
            return "fp32"
        report = measure_precision(teacher)
        log.info("%r: bf16 loses %.4f dB, speeds up %.2f", teacher, report.drop, report.dense)
        _chosen[key] = report.choice
    return _chosen[key]


_chosen: dict[tuple[str, int, Convention, str], Precision] = {}


def measure_precision(teacher: Teacher) -> PrecisionReport:
    """Measures what `precision_gate` decides on."""
    before: Precision = teacher.dtype
    scale = teacher.info.scale
    pictures = [*crops(PHOTOGRAPHS, 144), *crops(COLOURFUL, 120)]
    psnr = {}
    try:
        for dtype in ("bf16", "fp32"):
            teacher.precision(dtype)  # type: ignore[arg-type]
            psnr[dtype] = float(
                np.mean([psnr_y(run(teacher, downscale(hr, scale)), hr, scale) for hr in pictures])
            )
        dense = dense_share(teacher)
    finally:
        teacher.precision(before)
    return PrecisionReport(psnr["fp32"] - psnr["bf16"], dense, has_bf16(teacher.device))


def dense_share(teacher: Teacher) -> float:
    """Of the multiply-adds of its convolutions and linear layers, those in layers of `DENSE` channels or more."""
    counted = {True: 0, False: 0}

    def count(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            inside, outside = module.in_channels // module.groups, module.out_channels // module.groups
            places = out.numel() // out.shape[1]
        else:
            assert isinstance(module, nn.Linear)
            inside, outside, places = module.in_features, module.out_features, out.numel() // out.shape[-1]
        counted[inside * outside >= DENSE] += places * module.weight.numel()

    layers = [m for m in teacher.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.inference_mode():
            teacher(torch.full((1, 3, PROBE_SIDE, PROBE_SIDE), 0.5, device=teacher.device))
    finally:
        for hook in hooks:
            hook.remove()
    return counted[True] / max(sum(counted.values()), 1)
