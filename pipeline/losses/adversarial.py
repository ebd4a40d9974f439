"""The adversarial term of RKD: a discriminator tells HR features from LR ones, the student makes that hard.

    L_D   = - mean log sigmoid(D(f_T)) - mean log(1 - sigmoid(D(f_S)))
    L_adv = - mean log sigmoid(D(f_S))                     (non-saturating: Goodfellow et al., 2014, section 3)

A reconstruction: RKD (Feng, Lai, Xie, TIP 2021) says that there is a discriminator; its form is not public.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline.losses.feature import unit
from pipeline.losses.precision import full_precision


class Discriminator(nn.Module):
    """(B, width) -> (B,) logits, positive for HR: width -> width/2 -> width/4 -> 1 with LeakyReLU(0.2).

    Looks at directions (unit vectors): the lengths alone would give LR away.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = max(width // 2, 1), max(width // 4, 1)
        self.layers = nn.Sequential(
            nn.Linear(width, half),
            nn.LeakyReLU(0.2),
            nn.Linear(half, quarter),
            nn.LeakyReLU(0.2),
            nn.Linear(quarter, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(unit(features)).squeeze(1)


@full_precision
def discriminator_loss(discriminator: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """Scalar in float32, for the discriminator alone: no gradient reaches the features, both (B, D)."""
    hr, lr = discriminator(teacher.detach()).float(), discriminator(student.detach()).float()
    return F.softplus(-hr).mean() + F.softplus(lr).mean()


@full_precision
def deceive(discriminator: nn.Module, student: Tensor) -> Tensor:
    """Scalar in float32, for the student alone: the discriminator's weights get no gradient."""
    frozen = {name: value.detach() for name, value in discriminator.state_dict().items()}
    return F.softplus(-functional_call(discriminator, frozen, (student,)).float()).mean()
