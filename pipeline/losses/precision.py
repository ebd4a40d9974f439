"""Losses in full precision, also inside autocast, where products of matrices would be rounded to 8 or 11 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def full_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run `loss` with autocast turned off on the devices of its tensors."""

    @wraps(loss)
    def run(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        kinds = {x.device.type for x in args if isinstance(x, Tensor)}
        with torch.autocast(next(iter(kinds), "cpu"), enabled=False):
            return loss(*args, **kwargs)

    return run
