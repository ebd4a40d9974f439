"""Soft labels: the teacher's class probabilities at a temperature (Hinton, Vinyals, Dean, 2015, equation 1).

    L = tau^2 KL( softmax(z_T / tau) || softmax(z_S / tau) )

The factor tau^2 keeps the gradient's size as the temperature changes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.losses.precision import full_precision


@full_precision
def soft_labels(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Scalar in float32, the mean over rows or pixels; no gradient reaches `teacher`.

    Logits are (B, K), or maps (B, K, h, w): the teacher's map is brought to the student's grid (bilinear).
    Raises InputError where the class counts differ.
    """
    same_classes(student.shape[1], teacher.shape[1])
    student, teacher = student.float(), teacher.detach().float()
    if student.ndim == 4 and student.shape[-2:] != teacher.shape[-2:]:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    mine = F.log_softmax(student / temperature, dim=1)
    theirs = F.log_softmax(teacher / temperature, dim=1)
    divergence = (theirs.exp() * (theirs - mine)).sum(dim=1)
    return divergence.mean() * temperature**2


def standardised(logits: Tensor) -> Tensor:
    """(B, K) or (B, K, h, w) logits with mean 0 and standard deviation 1 over the classes, in float32.

    Soft labels of these ask for the teacher's relations among classes, not for the size of its logits (Sun et al.,
    "Logit Standardization in Knowledge Distillation", CVPR 2024, equation 8).
    """
    logits = logits.float()
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


@full_precision
def decoupled(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    share: Tensor | None = None,
) -> Tensor:
    """Decoupled soft labels (Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7), a scalar.

        tau^2 ( alpha KL(b_T || b_S) + beta KL(q_T || q_S) )

    b: the true class against all others together; q: the others among themselves. Logits are (B, K), labels (B,)
    class numbers; each row counts `share` (B,), 1 where it is None, in a mean over all B. Raises InputError where the
    class counts differ.
    """
    same_classes(student.shape[1], teacher.shape[1])
    true = labels.long().view(-1, 1)
    rest = torch.arange(student.shape[1] - 1, device=true.device).expand(len(true), -1)
    rest = rest + (rest >= true)  # the classes but the true one, without asking the device how many there are

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        """(log b (B, 2), log q (B, K - 1))."""
        scaled = logits.float() / temperature
        own, others = scaled.gather(1, true).squeeze(1), scaled.gather(1, rest)
        binary = torch.stack([own, others.logsumexp(1)], dim=1)
        return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)

    binary, among = (
        (theirs.exp() * (theirs - mine)).sum(1)
        for mine, theirs in zip(split(student), split(teacher.detach()), strict=True)
    )
    rows = alpha * binary + beta * among
    return (rows if share is None else share.float() * rows).mean() * temperature**2


def same_classes(student: int, teacher: int) -> None:
    """Raise InputError where a student's class count is not its teacher's."""
    if student != teacher:
        raise InputError(
            "teacher",
            f"as many classes as the student's {student}",
            f"{teacher}",
            "Train the teacher on these classes (teacher.train), or set the weight of soft labels to 0.",
        )
