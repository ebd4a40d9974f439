"""Importance weights of samples: each scales its sample's gradient, whatever the losses are.

Losses are means over a batch, L = 1/B sum_i l_i(y_i) with y_i the network's output for sample i. Where the gradient at
y_i is multiplied by w_i on its way back, all parameters get the gradient of 1/B sum_i w_i l_i: exactly, also where
samples meet inside the network (batch norm). A term over the whole batch (relations between samples) is no such mean:
its gradient is weighed by sample as well, which is no longer that of one weighted loss.

Values of losses stay those of the samples as they were drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT = "weight"
"""The batch's tensor of weights (B,); absent where all samples count alike."""


def weighted(
    modules: Mapping[str, nn.Module], name: str, batch: Mapping[str, Tensor]
) -> Mapping[str, nn.Module]:
    """The modules as the losses are to call them: the gradient at the output of `name` times the batch's weights.

    Which tensors a batch has is the same in all steps of a training, so that a CUDA graph may hold either case.
    """
    if WEIGHT not in batch:
        return modules
    return {**modules, name: _Weighted(modules[name], batch[WEIGHT])}


def scale_gradient(y: Tensor, weight: Tensor) -> Tensor:
    """`y` (k B, ...) itself; backward multiplies row i by `weight[i mod B]`.

    k > 1 is for methods that put several pictures of each sample into one call, one batch after the other.
    """
    return _Scale.apply(y, weight.repeat(len(y) // len(weight)))


class _Weighted(nn.Module):
    """A network on its way to the losses."""

    def __init__(self, network: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.network, self.weight = network, weight

    def forward(self, *inputs: Any) -> Tensor:
        return scale_gradient(self.network(*inputs), self.weight)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (weight,) = ctx.saved_tensors
        # The product is rounded once, also where the output is of half precision.
        return (gradient * weight.view(-1, *[1] * (gradient.ndim - 1))).to(gradient.dtype), None
