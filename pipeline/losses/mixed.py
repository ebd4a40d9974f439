"""What is learned of a mixed picture: x = lam a + (1 - lam) b, of two pictures of one batch.

    labels:       lam CE(z, y_a) + (1 - lam) CE(z, y_b)                (mixup: Zhang et al., ICLR 2018, equation 2)
    soft labels:  p = lam softmax(z_a / tau) + (1 - lam) softmax(z_b / tau),  as logits tau log p
    ... decoupled: lam DKD(z, p, y_a) + (1 - lam) DKD(z, p, y_b), each label the true class in turn, as in labels
    embeddings:   lam e_a + (1 - lam) e_b

The same for CutMix (Yun et al., ICCV 2019, equation 1), where lam is the share of the picture that is a. A teacher that
runs in the step sees the mixed picture itself ("function matching": Beyer et al., CVPR 2022); a mixture of cached soft
labels stands in for that at no cost. Where the teacher's last layer is linear, mixed embeddings are those that give the
mixed logits, so relations are taken among them as among others.

A batch holds beside its columns `share` (b,), lam of each sample, and `partner/<column>`, what belongs to its b.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.precision import full_precision
from pipeline.losses.soft_labels import decoupled

SHARE = "share"


def partner(column: str) -> str:
    """The name of a column's values for the pictures that are mixed in."""
    return f"partner/{column}"


@full_precision
def mixed_entropy(
    logits: Tensor, own: Tensor, other: Tensor, share: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Scalar in float32: cross-entropy of logits (B, K) with labels (B,), which count `share` (B,), and with others."""
    both, shares = torch.stack([own, other], dim=1), torch.stack([share, 1 - share], dim=1).float()
    target = shares.new_zeros(logits.shape).scatter_add_(1, both, shares)
    return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


@full_precision
def mixed_logits(own: Tensor, other: Tensor, share: Tensor, temperature: float) -> Tensor:
    """Logits (B, K) whose softmax at `temperature` is the mixture of the two's; no gradient reaches them."""
    own, other = (F.log_softmax(z.detach().float() / temperature, dim=1) for z in (own, other))
    # A share of 0 is -inf, of which logaddexp leaves exactly the other.
    lam = share.float()[:, None]
    return temperature * torch.logaddexp(own + lam.log(), other + (1 - lam).log())


def mixed_decoupled(
    student: Tensor,
    teacher: Tensor,
    own: Tensor,
    other: Tensor,
    share: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
) -> Tensor:
    """Scalar: `decoupled` soft labels of logits (B, K), the teacher's already mixed, for labels (B,), which count
    `share` (B,), and for others.
    """
    mine = decoupled(student, teacher, own, temperature, alpha, beta, share)
    return mine + decoupled(student, teacher, other, temperature, alpha, beta, 1 - share)
