"""Feature regression: a student's features towards its teacher's, both on the unit sphere.

    L = mean_i || n(f_S,i) - n(f_T,i) ||^2,   n(v) = v / ||v||

Part (ii) of the reconstruction of RKD (Feng, Lai, Xie, TIP 2021; its equations are not public), and the first order of
HORKD's (Ge et al., AAAI 2020), where it is the loss of each item by itself.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.precision import full_precision

EPSILON = 1e-6
"""Least norm that is divided by: a vector of zeros has no direction, and stays zeros."""


def unit(x: Tensor) -> Tensor:
    """(B, D) or (B, C, h, w), each vector along dimension 1 scaled to length 1, in float32."""
    return F.normalize(x.float(), dim=1, eps=EPSILON)


@full_precision
def feature_regression(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar in [0, 4], float32: the mean over rows, or pixels of maps, which are compared on the smaller grid.

    (B, D) with (B, D), or (B, C, h, w) with (B, C, h', w'). No gradient reaches `teacher`.
    """
    teacher = teacher.detach().float()
    student = student.float()
    if student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
        grid = min(student.shape[-2], teacher.shape[-2]), min(student.shape[-1], teacher.shape[-1])
        student, teacher = F.adaptive_avg_pool2d(student, grid), F.adaptive_avg_pool2d(teacher, grid)
    return (unit(student) - unit(teacher)).square().sum(dim=1).mean()
