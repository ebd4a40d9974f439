"""Maximum mean discrepancy with a bank of Gaussian kernels (Gretton et al., JMLR 2012, equation 5, biased).

    k(u, v) = (1/5) sum_m exp( -||u - v||^2 / (2 sigma_m^2) ),  sigma_m^2 = median pair distance^2 x {1/4, 1/2, 1, 2, 4}
    L = mean k(t_i, t_j) + mean k(s_i, s_j) - 2 mean k(t_i, s_j)

The biased estimate is the squared distance of two means, so it is never negative and 0 for equal sets. RKD (Feng, Lai,
Xie, TIP 2021) names the term; kernels and bandwidth are a reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.losses.precision import full_precision
from pipeline.losses.relational import off_diagonal

BANK = (0.25, 0.5, 1.0, 2.0, 4.0)
LEAST = 1e-12
"""Least bandwidth: where all features coincide the median is 0."""


@full_precision
def mmd(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar >= 0 in float32 of (B, D) and (B', D); the bandwidth is a constant for the gradient.

    No gradient reaches `teacher`.
    """
    s, t = student.float(), teacher.detach().float()
    both = torch.cat([t, s])
    squares = _squared_distances(both)
    median = off_diagonal(squares.detach()).median().clamp_min(LEAST)
    kernel = sum(torch.exp(-squares / (2 * factor * median)) for factor in BANK) / len(BANK)
    assert isinstance(kernel, Tensor)
    n = len(t)
    value = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    # Rounding may leave a few 1e-8 below zero; the gradient there is left as it is.
    return value + (value.clamp_min(0) - value).detach()


def _squared_distances(x: Tensor) -> Tensor:
    """(n, n), the diagonal exactly 0. By differences, since |a|^2 + |b|^2 - 2ab loses what near vectors differ in."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
