"""Small students of every kind, and weights for them that are no special start."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import students

LUMA = ("carn", "fsrcnn", "idn", "vdsr")
SMALL: dict[str, dict[str, Any]] = {
    "carn": {"features": 8},
    "compact": {"features": 8, "convs": 2},
    "edsr": {"features": 8, "blocks": 2, "res_scale": 0.5},
    "fsrcnn": {"d": 8, "s": 4, "m": 1},
    "idn": {"features": 16, "blocks": 1},
    "rcan": {"features": 16, "groups": 2, "blocks": 2, "reduction": 4},
    "span": {"features": 8},
    "swinir_light": {"dim": 12, "depths": (2, 1), "heads": 2},
    "vdsr": {"features": 8, "depth": 3},
}


def small(name: str, scale: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return students.build(name, scale, **{**SMALL[name], **options})


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Random enough to be no special start, calm enough for values near [0, 1]."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * (0.02 if parameter.ndim > 1 else 0.002)
    return model.eval()


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
