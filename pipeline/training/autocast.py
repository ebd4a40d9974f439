"""Half precision in training: what a device has of it, and the context that networks and losses run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from teachers.precision import has_bf16

Amp = Literal["off", "bf16", "fp16"]
FINE = 0.1
"""Share of the steps, the last ones, that a training in bf16 does in fp32. A network learns the rounding of its weights
too, which nobody who runs it in fp32 has: FSRCNN, which carries the whole picture through its layers, gave pictures a
grey level too dark, and lost 0.12 dB by that (docs/results.md). fp16 rounds eight times finer."""


def hindrance(device: torch.device, amp: Amp) -> str:
    """Why a training on `device` stays in fp32 although its recipe says otherwise; nothing where it does not."""
    if device.type == "cuda" or amp == "off":
        return ""
    if amp == "fp16":
        return "amp: fp16 is for GPUs; fp32 on this CPU"
    return "" if has_bf16(device) else "amp: bf16, which this CPU does not multiply in; fp32"


def autocast(device: torch.device, amp: Amp, cache: bool) -> AbstractContextManager[object]:
    """The context of a step; `cache`: weights are cast once for all their uses in it."""
    if amp == "off" or hindrance(device, amp):
        return nullcontext()
    dtype = torch.bfloat16 if amp == "bf16" else torch.float16
    return torch.autocast(device.type, dtype, cache_enabled=cache)


def coarse_steps(device: torch.device, amp: Amp, steps: int) -> int:
    """How many of a training's steps are in half precision, the first ones."""
    if amp == "off" or hindrance(device, amp):
        return 0
    return steps - round(FINE * steps) if amp == "bf16" else steps
