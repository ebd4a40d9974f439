"""The pair-wise constraint of RKD: the teacher's cosine geometry, among LR pictures and between LR and HR.

    M^T_ij = n(t_i).n(t_j)    M^S_ij = n(s_i).n(s_j)    M^X_ij = n(s_i).n(t_j)
    L = (1/B^2) ( ||M^S - M^T||_F^2 + ||M^X - M^T||_F^2 )

A reconstruction: RKD (Feng, Lai, Xie, TIP 2021) names the term, its equation is not public.
"""

from __future__ import annotations

from torch import Tensor

from pipeline.losses.feature import unit
from pipeline.losses.precision import full_precision


@full_precision
def pairwise(student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar >= 0 in float32 of two (B, D); no gradient reaches `teacher`. A batch of one keeps its own direction."""
    s, t = unit(student), unit(teacher.detach())
    among = t @ t.T
    return (s @ s.T - among).square().mean() + (s @ t.T - among).square().mean()
