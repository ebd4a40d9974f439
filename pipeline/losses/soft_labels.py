"""Soft labels: the teacher's class probabilities at a temperature (Hinton, Vinyals, Dean, 2015, equation 1).

    L = tau^2 KL( softmax(z_T / tau) || softmax(z_S / tau) )

The factor tau^2 keeps the gradient's size as the temperature changes.
"""

from __future__ import annotations

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


def same_classes(student: int, teacher: int) -> None:
    """Raise InputError where a student's class count is not its teacher's."""
    if student != teacher:
        raise InputError(
            "teacher",
            f"as many classes as the student's {student}",
            f"{teacher}",
            "Train the teacher on these classes (teacher.train), or set the weight of soft labels to 0.",
        )
