"""Variational information distillation (VID; Ahn et al., CVPR 2019) as PISR uses it (Lee et al., ECCV 2020, eq. 6-8).

The mutual information between a teacher's features f_T and a student's f_S is bounded from below by the likelihood
of f_T under a distribution whose location and scale are small networks of f_S:

    Laplace:   L = mean[ log(2 b) + |f_T - mu| / b ]
    Gaussian:  L = mean[ log(2 pi v) / 2 + (f_T - mu)^2 / (2 v) ]

with mu = h_mu(f_S) and the scale b (or variance v) from h_b(f_S). At the optimum b is the mean |f_T - mu|, so each
element counts by how well it can be told from the student's features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import FacultyError

SCALE = {"laplace": 0.1, "gaussian": 0.001}
"""Factor of the softplus that gives b or v, from the released code."""
FLOOR = {"laplace": 1e-6, "gaussian": 1e-8}
"""Smallest b or v: the loss and its gradient stay finite in float32."""
LOOK_EVERY = 256
"""Calls between two looks at whether the scale has collapsed; a look waits for the device."""


class VID(nn.Module):
    """The loss, with its two heads; they are trained with the student and thrown away afterwards.

    student_channels, teacher_channels: channels of f_S and f_T.
    distribution: `laplace` (PISR's choice) or `gaussian`.
    scale_per: `element`, a head gives every element its own scale; `channel`, one learned scale per channel.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        distribution: Literal["laplace", "gaussian"] = "laplace",
        scale_per: Literal["element", "channel"] = "element",
    ) -> None:
        super().__init__()
        self.distribution = distribution
        self.location = _head(student_channels, teacher_channels)
        if scale_per == "element":
            self.scale: nn.Module = _head(student_channels, teacher_channels)
        else:
            self.scale = PerChannel(teacher_channels)
        self.calls = 0

    def spread(self, student: Tensor) -> Tensor:
        """The scale b of the Laplace, or the variance v of the Gaussian distribution, at least FLOOR."""
        raw = F.softplus(self.scale(student)) * SCALE[self.distribution]
        return raw.clamp(min=FLOOR[self.distribution])

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """(B, C_S, h, w), (B, C_T, h, w) -> scalar, in float32 also under autocast. f_T gets no gradient.

        Raises FacultyError where the sizes differ, and (looked at now and then) where the scale has collapsed; in a
        CUDA graph it is nan then.
        """
        if student.shape[-2:] != teacher.shape[-2:] or len(student) != len(teacher):
            raise FacultyError(
                f"VID compares features at one place: the student's are {tuple(student.shape)}, the teacher's "
                f"{tuple(teacher.shape)}. Name a method.layer that both have at the same size."
            )
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = _single(student), _single(teacher.detach())
            location, spread = self.location(student), self.spread(student)
            collapse = self._look(spread)
            if self.distribution == "laplace":
                return (torch.log(2 * spread) + (teacher - location).abs() / spread).mean() + collapse
            error = (teacher - location).square()
            return (torch.log(2 * math.pi * spread) / 2 + error / (2 * spread)).mean() + collapse

    def _look(self, spread: Tensor) -> Tensor | float:
        """0; nan where the scale has collapsed in a step that is captured and replayed without this code."""
        self.calls += 1
        captured = _captured(spread)
        if not captured and self.calls % LOOK_EVERY:
            return 0.0
        shares = (spread <= FLOOR[self.distribution]).float().mean()
        if captured:
            return torch.where(shares > 0.5, math.nan, 0.0)
        if (share := shares.item()) > 0.5:
            raise FacultyError(
                f"the {self.distribution} scale of VID has underflowed: {share:.0%} of it lie at the floor "
                f"{FLOOR[self.distribution]:g} and learn no more. Lower train.lr, or take method.distribution: laplace "
                "or method.scale_per: channel."
            )
        return 0.0


def _captured(x: Tensor) -> bool:
    """Whether this step becomes a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class PerChannel(nn.Module):
    """One learned number per channel (C, 1, 1), whatever the features; at the start its softplus is 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((channels, 1, 1), math.log(math.e - 1)))

    def forward(self, features: Tensor) -> Tensor:
        return self.value.expand(len(features), -1, *features.shape[-2:])


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.PReLU(), nn.Conv2d(outputs, outputs, 1))


def _single(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
