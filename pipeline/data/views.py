"""The tiles of a picture as a chain of random degradations shows them: the same HR, several LR."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.cache.fingerprint import fingerprint
from pipeline.data.chain import VERSION, degraded, generator
from pipeline.data.degrade import degrade, modcrop
from pipeline.data.presets import steps_of
from pipeline.data.tiles import Grid, Tile, filled, positions, tile_id
from pipeline.recipe.degradation import Chain

SURROUNDINGS = 8
"""LR pixels around a tile that go through the chain with it, so that blurs know what lies beyond its border."""


@dataclass(frozen=True, slots=True)
class View:
    """One LR picture of a tile."""

    id: str
    tile: Tile
    made: str
    """What the chain did: steps and what they drew."""


def name_of(degradation: str | Chain, scale: int) -> str | dict[str, object]:
    """What shapes LR, for fingerprints: a name, or everything that the chain does."""
    if isinstance(degradation, str):
        return degradation
    steps = [step.model_dump(mode="json") for step in steps_of(degradation, scale)]
    return {"chain": VERSION, "steps": steps, "views": degradation.views, "seed": degradation.seed}


def short(degradation: str | Chain, scale: int) -> str:
    """A chain in 16 characters, for the places of scores; empty for bicubic."""
    return "" if isinstance(degradation, str) else fingerprint(name_of(degradation, scale))


def views(hr: np.ndarray, picture: str, grid: Grid, chain: Chain) -> Iterator[View]:
    """Every view of every tile of an (H, W, 3) uint8 picture with this sha256, in the order of `positions`."""
    scale, side = grid.scale, grid.size
    hr = filled(modcrop(hr, scale) if min(hr.shape[:2]) >= scale else hr, side)
    steps = steps_of(chain, scale)
    around = SURROUNDINGS * scale
    padded = np.pad(hr, ((around, around), (around, around), (0, 0)), "symmetric")
    large = grid.lr_size + 2 * SURROUNDINGS
    inner = np.s_[SURROUNDINGS : SURROUNDINGS + grid.lr_size, SURROUNDINGS : SURROUNDINGS + grid.lr_size]
    for y, x in positions(hr.shape[0], hr.shape[1], grid):
        wide = padded[y : y + side + 2 * around, x : x + side + 2 * around]
        for number in range(chain.views):
            rng = generator(chain.seed, picture, y, x, number)
            lr, made = degraded(wide, (large, large), steps, rng)
            tile = Tile(y, x, np.ascontiguousarray(lr[inner]), hr[y : y + side, x : x + side])
            yield View(f"{tile_id(picture, y, x)}:{number}", tile, made)


def whole(hr: np.ndarray, picture: str, degradation: str | Chain, scale: int) -> np.ndarray:
    """The LR picture of a whole mod-cropped one: the first view of a chain, for scores."""
    if isinstance(degradation, str):
        return degrade(hr, degradation, scale)
    size = hr.shape[0] // scale, hr.shape[1] // scale
    return degraded(hr, size, steps_of(degradation, scale), generator(degradation.seed, picture, 0, 0, 0))[0]
