"""A few held-out crops that are looked at all through a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.steps.seen import Strip

SIDE = 64
"""HR pixels a side of a crop, where tiles are as large."""
TIMES = 8
"""By which differences are multiplied, so that they are seen."""
STUDENT = "student"


def chosen(tiles: np.ndarray) -> tuple[int, ...]:
    """Of (N, H, W, 3) tiles the one with the most detail in each half: mostly, of two pictures."""
    detail = [float(tile.astype(np.float32).var()) for tile in tiles]
    halves = (range(0, -(-len(tiles) // 2)), range(-(-len(tiles) // 2), len(tiles)))
    return tuple(max(half, key=detail.__getitem__) for half in halves if half)


def strip(rows: Sequence[Mapping[str, np.ndarray]], reference: str, scale: int) -> Strip:
    """Pictures of whole tiles by what they are called, (H, W, 3) uint8, a row a crop; the difference is drawn here.

    Smaller ones are enlarged without smoothing. `reference` is the one that `student` is compared with; `student` and
    the difference are the last columns.
    """
    drawn, off = [], f"off {reference}, x{TIMES}"
    for row in rows:
        large = {name: _enlarged(picture, row[STUDENT].shape[0]) for name, picture in row.items()}
        wrong = np.abs(large[STUDENT].astype(np.int16) - large[reference].astype(np.int16)) * TIMES
        large[off] = np.minimum(wrong, 255).astype(np.uint8)
        drawn.append(np.concatenate([_centre(p, scale) for p in large.values()], axis=1))
    return Strip(np.concatenate(drawn), (*rows[0], off))


def _enlarged(picture: np.ndarray, side: int) -> np.ndarray:
    times = side // picture.shape[0]
    return picture.repeat(times, 0).repeat(times, 1)


def _centre(picture: np.ndarray, scale: int) -> np.ndarray:
    """Its middle; the cut falls between pixels of LR."""
    side = min(SIDE // scale * scale, *picture.shape[:2])
    y, x = ((length - side) // 2 // scale * scale for length in picture.shape[:2])
    return picture[y : y + side, x : x + side]
