"""Cutting pictures into equal tiles, larger than a training patch, that random crops can use up to a margin.

Teachers see a tile's border without its surroundings, so crops keep `margin` LR pixels away from it.
Neighbouring tiles overlap by twice that, so that the usable insides leave no gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.degrade import degrade, modcrop
from pipeline.errors import InputError


@dataclass(frozen=True, slots=True)
class Grid:
    """How pictures are cut."""

    scale: int
    size: int
    """Side of a tile in HR pixels, a multiple of the scale."""
    margin: int = 4
    """LR pixels at each edge of a tile that crops avoid."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.size % self.scale:
            raise InputError("tile size", f"a multiple of the scale {self.scale}", str(self.size))
        if self.margin < 0 or 2 * self.margin >= self.lr_size:
            raise InputError("tile margin", f"less than half of {self.lr_size} LR pixels", str(self.margin))

    @property
    def lr_size(self) -> int:
        """Side of a tile in LR pixels."""
        return self.size // self.scale


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of one picture; (y, x) is its corner in HR pixels."""

    y: int
    x: int
    lr: np.ndarray
    """(h, h, 3) uint8."""
    hr: np.ndarray | None
    """(H, H, 3) uint8, H = h * scale; None where only LR is known."""


def positions(height: int, width: int, grid: Grid) -> list[tuple[int, int]]:
    """Return the corners (y, x) of the tiles of a picture, in HR pixels, row by row.

    They are multiples of the scale, evenly spread, the first flush with one edge and the last with the other
    (of the picture cropped to a multiple of the scale), neighbours at most `size - 2 * margin * scale` apart.
    A side shorter than a tile has one position.
    """
    return [(y, x) for y in _starts(height, grid) for x in _starts(width, grid)]


def cut(
    hr: np.ndarray | None, lr: np.ndarray | None, grid: Grid, *, degradation: str = "bicubic"
) -> Iterator[Tile]:
    """Cut a picture, (H, W, 3) uint8, into tiles in the order of `positions`.

    Without `lr`, LR is made from the whole mod-cropped HR picture and then cut, so that tiles know nothing of
    their borders. With both, they must fit. With `lr` alone the tiles have no HR. A picture smaller than a
    tile is mirrored up to its size first. Raises InputError for pictures that do not fit each other.
    """
    scale = grid.scale
    if hr is not None:
        hr = filled(modcrop(hr, scale) if min(hr.shape[:2]) >= scale else hr, grid.size)
        lr = degrade(hr, degradation, scale) if lr is None else filled(lr, grid.lr_size)
        if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
            expected = f"HR of {scale} times its size"
            raise InputError("LR picture", expected, f"LR {lr.shape[:2]} and HR {hr.shape[:2]}")
    elif lr is None:
        raise ValueError("a picture needs HR or LR")
    else:
        lr = filled(lr, grid.lr_size)
    for y, x in positions(lr.shape[0] * scale, lr.shape[1] * scale, grid):
        corner = np.s_[y // scale : y // scale + grid.lr_size, x // scale : x // scale + grid.lr_size]
        yield Tile(y, x, lr[corner], None if hr is None else hr[y : y + grid.size, x : x + grid.size])


def tile_id(picture_sha256: str, y: int, x: int) -> str:
    """Return the name of a tile everywhere: who it is cut from and where."""
    return f"{picture_sha256[:16]}:{y}:{x}"


def columns(tiles: Sequence[tuple[str, Tile]], grid: Grid) -> dict[str, np.ndarray | list[str]]:
    """Return the shard columns of (id, tile) pairs: id, lr, has_hr, and hr unless no tile has it.

    `hr` holds zeros, and `has_hr` 0, in the rows of tiles without HR.
    """
    result: dict[str, np.ndarray | list[str]] = {
        "id": [name for name, _ in tiles],
        "lr": np.stack([tile.lr for _, tile in tiles]),
        "has_hr": np.array([tile.hr is not None for _, tile in tiles], np.uint8),
    }
    if result["has_hr"].any():
        nothing = np.zeros((grid.size, grid.size, 3), np.uint8)
        result["hr"] = np.stack([nothing if tile.hr is None else tile.hr for _, tile in tiles])
    return result


def _starts(length: int, grid: Grid) -> list[int]:
    """Corners along one side, counted on the LR grid so that they are multiples of the scale."""
    spare = max(0, length // grid.scale - grid.lr_size)
    gaps = -(-spare // (grid.lr_size - 2 * grid.margin))
    return [i * spare // gaps * grid.scale for i in range(gaps + 1)] if gaps else [0]


def filled(x: np.ndarray, size: int) -> np.ndarray:
    """Mirror HWC `x` about its bottom and right edges until both sides are at least `size`."""
    below, right = max(0, size - x.shape[0]), max(0, size - x.shape[1])
    return np.pad(x, ((0, below), (0, right), (0, 0)), "symmetric") if below or right else x
