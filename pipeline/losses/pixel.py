"""Pixel losses between two pictures (N, C, H, W), as scalars in float32, also under autocast."""

from __future__ import annotations

import torch
from torch import Tensor


def l1(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error.

    `mask` (N,) bool keeps some pictures of the batch (those that have a ground truth): the mean is over
    theirs alone, and 0, with a zero gradient, where there are none.
    """
    return _mean(_difference(prediction, target, mask).abs(), mask)


def charbonnier(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, epsilon: float = 1e-3
) -> Tensor:
    """Mean of sqrt(error^2 + epsilon^2), an L1 that is smooth at zero (Charbonnier et al., ICIP 1994).

    `epsilon` is in the pictures' units, [0, 1]; `mask` as in `l1`.
    """
    return _mean(torch.sqrt(_difference(prediction, target, mask).square() + epsilon**2), mask)


PIXEL = {"l1": l1, "charbonnier": charbonnier}
"""By the names that recipes have for them."""


def gradient(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences of neighbouring pixels, down and across, summed: what edges are made of,
    apart from colour. 0 for pictures that differ by a constant.
    """
    error = _single(prediction) - _single(target)
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def _difference(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    difference = _single(prediction) - _single(target)
    # Selected, not multiplied by 0: a non-finite value in a masked picture reaches neither loss nor gradient.
    return difference if mask is None else torch.where(_column(mask, difference), difference, 0.0)


def _mean(errors: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return errors.mean()
    kept = torch.where(_column(mask, errors), errors, 0.0)
    return kept.sum() / (mask.sum() * errors[0].numel()).clamp(min=1)


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _column(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (like.ndim - 1))
