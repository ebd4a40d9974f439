"""Fusion per pixel by how well each teacher agrees with LR where the pixel lies.

A faithful picture, shrunk again, gives back the LR picture that it was made of. With e_k the squared error of teacher
k's shrunk output against LR, averaged over the colours and a square of 2 r + 1 LR pixels, its mask is

    m_k = exp(-e_k / (2 s^2)) / sum_j exp(-e_j / (2 s^2)),

enlarged to HR's size, and the target is sum_k m_k T_k: where one invents or shifts colours, the others count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from pipeline.data.degrade import downscale_tensor
from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Mask:
    """How a place's teachers are chosen."""

    radius: int
    """r, of the square in which agreement is judged, in LR pixels; 0 for each LR pixel alone."""
    softness: float
    """s in grey levels: teachers whose errors differ by less count nearly alike."""


def fuse_mask(
    outputs: Sequence[np.ndarray], hr: np.ndarray | None = None, *, weights: Mask, lr: np.ndarray | None
) -> np.ndarray:
    """The teachers by their masks; LR (N, h, w, 3) uint8 is what their (N, scale*h, scale*w, 3) outputs were made of.

    Raises InputError without LR.
    """
    if lr is None:
        raise InputError("fusion mask", "tiles with LR", "tiles without", "Take mean, median or weighted.")
    shares = torch.from_numpy(masks(outputs, lr, weights)).permute(1, 0, 2, 3)  # (N, teachers, h, w)
    size = outputs[0].shape[1:3]
    if shares.shape[-2:] != size:
        shares = F.interpolate(shares, size=size, mode="bilinear", align_corners=False)
    fused = np.zeros(outputs[0].shape, np.float32)
    for teacher, output in enumerate(outputs):
        fused += shares[:, teacher, :, :, None].numpy() * output
    return np.clip(np.floor(fused + 0.5), 0, 255).astype(np.uint8)


def masks(outputs: Sequence[np.ndarray], lr: np.ndarray, weights: Mask) -> np.ndarray:
    """(teachers, N, h, w) float32 shares at LR's size; they sum to 1 over the teachers."""
    errors = []
    scale = outputs[0].shape[1] // lr.shape[1]
    side = 2 * weights.radius + 1
    for output in outputs:
        planes = torch.tensor(output).permute(0, 3, 1, 2)  # a copy: what comes from a cache is read-only
        again = downscale_tensor(planes, scale) if scale > 1 else planes
        off = again.float() - torch.tensor(lr).permute(0, 3, 1, 2).float()
        square = off.square().mean(1, keepdim=True)
        # Beyond the border nothing is counted, as if the square ended there.
        near = F.avg_pool2d(square, side, 1, weights.radius, count_include_pad=False)
        errors.append(near[:, 0])
    return torch.softmax(-torch.stack(errors) / (2 * weights.softness**2), 0).numpy()
