"""Large pictures in overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import InputError


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one side; the last tile is flush with the end."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - 2 * overlap), length - tile]


def tiled(
    fn: Callable[[Tensor], Tensor], lr: Tensor, scale: int, tile: int | tuple[int, int], overlap: int
) -> Tensor:
    """Runs `fn` ((N, C, h, w) -> (N, C', scale*h, scale*w)) on tiles and joins them.

    Tiles are `tile` LR pixels a side, or (height, width), or the picture's side where that is smaller. Each keeps what
    lies at least `overlap` LR pixels away from its cut edges; edges of the picture are not cut. So the result equals
    `fn(lr)` everywhere when no output pixel looks further than `overlap` pixels; where a network looks further,
    or pools over the whole picture, results differ slightly.

    Raises InputError when `tile` is not larger than twice `overlap`.
    """
    rows, columns = (tile, tile) if isinstance(tile, int) else tile
    if overlap < 0 or min(rows, columns) <= 2 * overlap:
        raise InputError("tile", f"more than twice the overlap of {overlap} pixels", str(tile))
    height, width = lr.shape[-2:]
    if height <= rows and width <= columns:
        return fn(lr)
    out: Tensor | None = None
    for y in starts(height, rows, overlap):
        for x in starts(width, columns, overlap):
            part = lr[..., y : y + rows, x : x + columns]
            h, w = part.shape[-2:]
            result = fn(part)
            if out is None:
                shape = (*result.shape[:-2], height * scale, width * scale)
                out = torch.empty(shape, dtype=result.dtype, device=result.device)
            # the kept part: up to the picture's edge, or `overlap` away from the cut; later tiles overwrite
            top, left = (overlap if y else 0), (overlap if x else 0)
            bottom = h if y + h == height else h - overlap
            right = w if x + w == width else w - overlap
            kept = result[..., top * scale : bottom * scale, left * scale : right * scale]
            out[..., (y + top) * scale : (y + bottom) * scale, (x + left) * scale : (x + right) * scale] = (
                kept
            )
    assert out is not None
    return out
