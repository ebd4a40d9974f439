"""Relational knowledge of several orders: what a batch's items are to each other, not what each is.

Order 2, pairs (psi_D is a distance over the batch's mean distance; l is Huber's loss with delta 1):
    L_2 = mean_{i!=j} l( psi_D(s_i, s_j) - psi_D(t_i, t_j) )
Order 3, triplets (cosine of the angle at j):
    L_3 = mean_{i,k!=j} l( cos(s_i, s_j, s_k) - cos(t_i, t_j, t_k) )
Group, the whole batch (G is the Gram matrix with its rows scaled to length 1):
    L_g = (1/B^2) || G_S - G_T ||_F^2

Orders 2 and 3 are those of relational knowledge distillation (Park, Kim, Lu, Cho, CVPR 2019, equations 4-8), the group
is similarity-preserving distillation's (Tung, Mori, ICCV 2019). That HORKD (Ge et al., AAAI 2020) is made of these is a
reconstruction: its equations are not public. Order 1 is pipeline/losses/feature.py.

Everything is computed in float32 (float64 stays), also under autocast. Two items at one place have no direction between
them: such a pair counts with distance 0 and its triplets are left out. Below two items (three for angles) a loss is 0.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pipeline.losses.gather import gathered
from pipeline.losses.precision import full_precision

LEAST = 1e-12
"""Squared distances below this count as 0."""
ROUNDED = 1e-13
"""So small a part of the items' own squares is rounding, in float64, and the distance 0."""
ANCHORS = 32
"""Angles are taken at no more items than this: their number is ANCHORS x B^2 instead of B^3."""


@full_precision
def distances(student: Tensor, teacher: Tensor) -> Tensor:
    """Order 2: scalar >= 0 of (B, D) and (B, D'); the mean distances are constants, `teacher` gets no gradient."""
    s, t = _wide(student), _wide(teacher.detach())
    if len(s) < 2:
        return s.sum() * 0
    return F.smooth_l1_loss(off_diagonal(_relative(s)), off_diagonal(_relative(t)))


@full_precision
def angles(student: Tensor, teacher: Tensor, anchors: int = ANCHORS) -> Tensor:
    """Order 3: scalar >= 0 of (B, D) and (B, D'); `teacher` gets no gradient.

    Above `anchors` items the angles are taken at that many, evenly spread over the batch, whose order is random.
    """
    s, t = _wide(student), _wide(teacher.detach())
    rows = len(s)
    if rows < 3:
        return s.sum() * 0
    chosen = torch.arange(min(rows, anchors), device=s.device) * rows // min(rows, anchors)
    mine, theirs = _squares(s), _squares(t)
    apart = (mine.detach()[chosen] > LEAST) & (theirs[chosen] > LEAST)  # (anchors, B)
    count = (apart.sum(1) * (apart.sum(1) - 1)).sum().clamp_min(1)
    return cast(Tensor, _Mismatch.apply(mine, theirs, chosen, apart)) / count


@full_precision
def group(student: Tensor, teacher: Tensor) -> Tensor:
    """The whole batch's structure: scalar >= 0 of (B, D) and (B, D'); `teacher` gets no gradient."""
    s, t = _wide(student), _wide(teacher.detach())
    gram_s, gram_t = (F.normalize(x @ x.T, dim=1, eps=1e-6) for x in (s, t))
    return (gram_s - gram_t).square().mean()


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Orders 2 and 3 over the batch of all workers: scalar of (B, D) and (B, D'); `teacher` gets no gradient.

    The angles count twice, as in relational knowledge distillation's settings for metric learning.
    """
    s, t = gathered(_wide(student)), gathered(_wide(teacher.detach()))
    return distances(s, t) + 2 * angles(s, t)


def pooled_relations(student: Tensor, teacher: Tensor) -> Tensor:
    """`relations` of spatially pooled features, for feature maps of any task, also super-resolution.

    (B, C, H, W) and (B, C', H', W'), any sizes; `teacher` gets no gradient.
    """
    return relations(_wide(student).mean((-2, -1)), _wide(teacher.detach()).mean((-2, -1)))


def off_diagonal(x: Tensor) -> Tensor:
    """The n * (n - 1) entries of (n, n) off its diagonal, row by row; a mask would ask the device how many they are."""
    n = len(x)
    return x.flatten()[1:].view(n - 1, n + 1)[:, :-1].reshape(-1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _relative(x: Tensor) -> Tensor:
    """(B, B) distances over their mean where they are not 0."""
    squares = _squares(x)
    apart = squares > LEAST
    # The gradient at distance 0 is 0.
    lengths = torch.where(apart, squares, torch.ones_like(squares)).sqrt() * apart
    mean = lengths.detach().sum() / apart.sum().clamp_min(1)
    return lengths / mean.clamp_min(LEAST)


def _squares(x: Tensor) -> Tensor:
    """(B, B) squared distances, of x's type. By products, in float64: what near vectors differ in is still there."""
    wide = x.double()
    wide = wide - wide.mean(0).detach()
    products = wide @ wide.T
    own = products.diagonal()
    both = own[:, None] + own
    squares = both - 2 * products
    return (squares * (squares > both * ROUNDED)).to(x.dtype)


def _cosines(squares: Tensor, anchors: Tensor, inverse: Tensor) -> Tensor:
    """(A, B, B) cosines at the anchors, by the law of cosines from the sides' squares; `inverse` as `_inverse` says.

    Nothing of size A x B x D is made, which took most of the time.
    """
    sides = squares[anchors]
    products = (sides[:, :, None] + sides[:, None, :]).sub_(squares)
    return products.mul_((inverse / 2)[:, :, None]).mul_(inverse[:, None, :])


def _inverse(squares: Tensor, anchors: Tensor, apart: Tensor) -> Tensor:
    """(A, B) one over the distance from each anchor, 0 where an item is not `apart` (A, B) from it."""
    sides = squares[anchors]
    return apart / torch.where(apart, sides, torch.ones_like(sides)).sqrt()


class _Mismatch(torch.autograd.Function):
    """Huber's loss between the cosines of two sets of (B, B) squared distances, summed, and its gradient in the first.

    Recorded operations would keep some ten arrays of A x B x B numbers. In closed form, with e the slope of the loss in
    each cosine, that of (i, k) and of (k, i), and r the inverse distances from an anchor j, dL/dd_ik is
    -1/2 sum_j e_ik r_i r_k, and an anchor's row gets sum_k e_ik r_i r_k - r_i^2 sum_k e_ik cos_ik beside it. Where they
    are not apart both cosines are 0, and those of i = k are 1: neither adds anything.
    """

    @staticmethod
    def forward(ctx: Any, squares: Tensor, others: Tensor, anchors: Tensor, apart: Tensor) -> Tensor:
        inverse = _inverse(squares, anchors, apart)
        mine = _cosines(squares, anchors, inverse)
        differences = mine - _cosines(others, anchors, _inverse(others, anchors, apart))
        slope = differences.clamp(-1, 1)
        total = torch.linalg.vecdot(slope, differences.sub_(slope, alpha=0.5)).sum()
        own = torch.linalg.vecdot(slope, mine) * inverse.square()
        through = slope.mul_((inverse / 2)[:, :, None]).mul_(inverse[:, None, :])
        found = -through.sum(0)
        found.index_add_(0, anchors, 2 * through.sum(2) - own)
        ctx.save_for_backward(found)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (found,) = ctx.saved_tensors
        return found * gradients[0], None, None, None
