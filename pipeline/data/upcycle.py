"""Upcycled views: further LR pictures made of what there is, which no HR belongs to; teachers say what they look like.

After DUKD (Zhang et al., "Data Upcycling Knowledge Distillation for Image Super-Resolution", arXiv 2309.14162):

    zoom_in     a piece of a tile's HR of the size of its LR, taken as LR: the scene nearer by `scale`
    zoom_out    LR shrunk once more by `scale` (MATLAB's bicubic): the scene farther away

Ours:

    mixed       w a + (1 - w) b of a tile's LR and another one's of the same picture, moved, w in [0.3, 0.7]
    recoloured  a tile's LR with its channels permuted, nearer to black or white by 0.6 to 1, inverted or not

A view is a pure function of its seed, picture, tile, kind and number: nothing of other pictures is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.chain import generator
from pipeline.data.degrade import downscale, modcrop
from pipeline.data.tiles import Grid, Tile, filled, tile_id

VERSION = 1
"""Of what is drawn and done."""
NEEDS_HR = ("zoom_in",)
MIX = (0.3, 0.7)
LIGHT = (0.6, 1.0)


@dataclass(frozen=True, slots=True)
class Upcycled:
    """Which view: its kind, its number among those of its kind, and the seed of all."""

    kind: str
    number: int
    seed: int

    @property
    def identity(self) -> str:
        """Everything that shapes it but the picture."""
        return f"upcycled {VERSION} {self.kind} {self.number} {self.seed}"


def upcycled(
    view: Upcycled, picture: str, tiles: Sequence[Tile], grid: Grid, lr: np.ndarray
) -> Iterator[tuple[str, Tile, str]]:
    """(id, tile without HR, what was done) for each tile of the picture with this sha256.

    `lr` is the whole LR picture, (h, w, 3) uint8. Raises ValueError where a view needs HR and a tile has none.
    """
    if view.kind == "zoom_out":
        side = grid.lr_size
        shrunk = downscale(modcrop(filled(lr, max(side, grid.scale)), grid.scale), grid.scale)
        lr = filled(shrunk, side)
    for number, tile in enumerate(tiles):
        rng = generator(view.seed, picture, tile.y, tile.x, f"{view.kind} {view.number}")
        seen, made = _KINDS[view.kind](tiles, number, grid, lr, rng)
        name = f"{tile_id(picture, tile.y, tile.x)}:{view.kind}{view.number}"
        yield name, Tile(tile.y, tile.x, np.ascontiguousarray(seen), None), f"{view.kind} {made}"


def _zoom_in(
    tiles: Sequence[Tile], number: int, grid: Grid, _: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    hr, side = tiles[number].hr, grid.lr_size
    if hr is None:
        raise ValueError("zoom_in needs HR")
    y, x = (int(v) for v in rng.integers(0, grid.size - side + 1, 2))
    return hr[y : y + side, x : x + side], f"{y} {x}"


def _zoom_out(
    tiles: Sequence[Tile], number: int, grid: Grid, shrunk: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """A window of the shrunken picture that the tile lies in."""
    tile, side, corner = tiles[number], grid.lr_size, []
    for start, length in ((tile.y, shrunk.shape[0]), (tile.x, shrunk.shape[1])):
        begin, last = start // grid.scale, length - side
        low = min(max(-(-(begin + side) // grid.scale) - side, 0), last)
        high = max(min(begin // grid.scale, last), low)
        corner.append(int(rng.integers(low, high + 1)))
    y, x = corner
    return shrunk[y : y + side, x : x + side], f"{y} {x}"


def _mixed(
    tiles: Sequence[Tile], number: int, grid: Grid, _: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """With another tile in one of its eight positions, or, of a picture of one tile, with the tile itself, moved."""
    alone = len(tiles) == 1
    other = 0 if alone else (number + int(rng.integers(1, len(tiles)))) % len(tiles)
    move = int(rng.integers(1 if alone else 0, 8))
    weight = float(rng.uniform(*MIX))
    own, others = tiles[number].lr.astype(np.float64), moved(tiles[other].lr, move).astype(np.float64)
    return _levels(weight * own + (1 - weight) * others), f"{weight:.3f} {other} {move}"


def _recoloured(
    tiles: Sequence[Tile], number: int, grid: Grid, _: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    channels = rng.permutation(3)
    gain, white, inverted = float(rng.uniform(*LIGHT)), bool(rng.integers(2)), bool(rng.integers(2))
    x = tiles[number].lr[..., channels].astype(np.float64)
    x = 255 - gain * (255 - x) if white else gain * x
    made = f"{''.join('RGB'[c] for c in channels)} {'white' if white else 'black'} {gain:.3f}"
    return _levels(255 - x if inverted else x), f"{made}{' inverted' * inverted}"


def moved(x: np.ndarray, move: int) -> np.ndarray:
    """A square (side, side, 3) in one of its eight positions: bit 0 mirrors left and right, bit 1 top and bottom, bit 2
    transposes after that.
    """
    x = x[:, ::-1] if move & 1 else x
    x = x[::-1] if move & 2 else x
    return x.transpose(1, 0, 2) if move & 4 else x


def _levels(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


_KINDS: dict[str, Callable[..., tuple[np.ndarray, str]]] = {
    "zoom_in": _zoom_in,
    "zoom_out": _zoom_out,
    "mixed": _mixed,
    "recoloured": _recoloured,
}
KINDS = tuple(_KINDS)
