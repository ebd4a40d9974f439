"""Half precision in training: what a device has of it, and the context that networks and losses run in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from teachers.precision import has_bf16

Amp = Literal["off", "bf16", "fp16"]


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
