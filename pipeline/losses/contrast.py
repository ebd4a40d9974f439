"""Which of the batch's HR embeddings is this LR picture's own: contrastive distillation without a memory bank.

    L = - mean_i log( exp(s_i . t_i / tau) / sum_j exp(s_i . t_j / tau) ),  s and t of length 1

The bound on mutual information of contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020) in
the form of InfoNCE (van den Oord, Li, Vinyals, 2018, equation 4), the batch's others in the place of a memory bank.
Others of the picture's own class are left out of the sum, as they are there: whoever tells faces or things apart must
not learn to tell two pictures of one apart.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.losses.feature import unit
from pipeline.losses.precision import full_precision

TEMPERATURE = 0.1


@full_precision
def contrast(
    student: Tensor, teacher: Tensor, kinds: Tensor | None = None, temperature: float = TEMPERATURE
) -> Tensor:
    """Scalar >= 0 in float32 of two (B, D); no gradient reaches `teacher`. A batch of one, or of one class, is 0.

    kinds: (B,) classes; None: every other item counts.
    """
    alike = unit(student) @ unit(teacher.detach()).T / temperature
    own = torch.arange(len(alike), device=alike.device)
    if kinds is not None:
        same = (kinds[:, None] == kinds) & (own[:, None] != own)
        alike = alike.masked_fill(same, -torch.inf)
    return F.cross_entropy(alike, own)
