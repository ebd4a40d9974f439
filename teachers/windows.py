"""Windows of a picture and their cosine transform, as the aggregation network uses them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def dct_matrix(size: int, orthonormal: bool = True) -> Tensor:
    """The DCT-II as float64: 2 cos(pi (2n + 1) u / (2 size)) at (u, n), rows of unit length if orthonormal."""
    u, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = 2.0 * torch.cos(torch.pi * (2.0 * n + 1.0) * u / (2.0 * size))
    return matrix / matrix.norm(dim=1, keepdim=True) if orthonormal else matrix


@lru_cache(maxsize=16)
def released_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """(windows, window^2, window^2): 0, or -100 between frequencies that the released code keeps apart.

    It numbers the nine regions that a cyclic shift brings together, takes the DCT of the numbers as it does
    of features, and separates coefficients that differ. Without a shift every pixel gets the number 8, which
    separates the mean from all other frequencies (its training never takes the path without a mask: the
    configured picture size is HR's, the tokens are LR's). Sums that cancel count as zero here; there they do
    up to rounding.
    """
    edges = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    regions = torch.zeros(height, width, dtype=torch.float64)
    for number, (rows, columns) in enumerate((r, c) for r in edges for c in edges):
        regions[rows, columns] = number
    matrix = dct_matrix(window, orthonormal=False)
    numbers = partition(regions[None, :, :, None], window)
    spectrum = (torch.kron(matrix, matrix) @ numbers).squeeze(-1).round(decimals=6)  # (windows, window^2)
    apart = spectrum[:, None, :] != spectrum[:, :, None]
    with torch.inference_mode(False):  # cached: later calls may be training
        return torch.zeros(apart.shape).masked_fill(apart, -100.0)


def transform(matrix: Tensor, x: Tensor) -> Tensor:
    """`matrix` over the tokens of (n, tokens, dim), in float32: bfloat16 would lose small coefficients."""
    with torch.autocast(x.device.type, enabled=False):
        return torch.matmul(matrix, x.to(matrix.dtype))


def partition(x: Tensor, window: int) -> Tensor:
    """(B, h, w, c) to (windows, window^2, c)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def merge(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `partition`."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def relative_positions(window: int) -> Tensor:
    """(window^2, window^2) indices into the bias table: which difference of two tokens' places."""
    place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    rows, columns = place[:, :, None] - place[:, None, :] + window - 1
    return rows * (2 * window - 1) + columns


def pad(x: Tensor, multiple: int) -> Tensor:
    """Reflects (B, C, H, W) at the lower and right border up to multiples, as often as it takes."""
    for dim in (-2, -1):
        size = x.shape[dim]
        wanted = math.ceil(size / multiple) * multiple
        if wanted > size:
            index = torch.arange(wanted, device=x.device) % max(2 * size - 2, 1)
            x = x.index_select(dim, torch.minimum(index, 2 * size - 2 - index))
    return x
