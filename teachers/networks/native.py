"""How a network of our own tells its checkpoints from others and is built to fit one of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

State = Mapping[str, Tensor]


def as_is(state: State) -> State:
    return state


@dataclass(frozen=True, slots=True)
class Native:
    """One network: the marks of its checkpoints and how to build the module that loads them strictly.

    Sizes (blocks, features, groups) are read from the tensors' shapes; what shapes cannot tell (value range,
    fixed factors) is stated by each network.
    """

    architecture: str
    marks: tuple[str, ...]
    """Keys that every checkpoint of this network holds and that no other network's holds together."""
    scales: Callable[[State], tuple[int, ...]]
    """The scales whose tensors a checkpoint holds, ascending."""
    build: Callable[[State, int], nn.Module]
    """The module for one scale; its `load_state_dict(state, strict=True)` must accept the checkpoint."""
    value_range: Callable[[State], float]
    """What white is in the network's own units: 1 or 255, for input and output alike."""
    minimum_side: int = 1
    """Smallest LR height or width in pixels."""
    ambiguous: bool = False
    """Only one of the scales that fit is right, and the tensors do not tell which."""
    adapt: Callable[[State], State] = as_is
    """Turns other published spellings of the checkpoint into the module's keys."""

    def recognises(self, state: State) -> bool:
        return all(mark in state for mark in self.marks)


def unit_range(state: State) -> float:
    return 1.0


def byte_range(state: State) -> float:
    return 255.0


def shuffle_scale(convolution_weight: Tensor, colours: int = 3) -> int:
    """The scale of a last convolution (colours * scale**2, C, k, k) that feeds a pixel shuffle."""
    return math.isqrt(convolution_weight.shape[0] // colours)


def count(state: State, pattern: str, start: int = 0) -> int:
    """How many of `pattern.format(start)`, `pattern.format(start + 1)`, ... are keys, up to the first gap."""
    number = start
    while pattern.format(number) in state:
        number += 1
    return number - start
