"""Views of a picture and the resolution gap, as pure functions: the same on every machine, in every process.

A view is a shift (borders mirrored) and perhaps a flip, drawn from (seed, the picture's id, the view's number) and not
from the place in a file. The LR picture is made from the HR view, so teacher and student see the same view at any gap.
"""

from __future__ import annotations

import hashlib

import numpy as np

from pipeline.data.degrade import downscale_tensor, upscale_tensor
from pipeline.recognition.recipe import Views

GAPS: dict[int, tuple[int, ...]] = {
    1: (),
    2: (2,),
    3: (3,),
    4: (4,),
    6: (3, 2),
    8: (4, 2),
    12: (4, 3),
    16: (4, 4),
}
"""Gap -> the steps in which it is made: MATLAB's antialiased bicubic, which is exact up to 4, step by step above."""


def shrink(pictures: np.ndarray, gap: int) -> np.ndarray:
    """(n, H, W, C) uint8 -> (n, H/gap, W/gap, C) uint8."""
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    for step in GAPS[gap]:
        planes = downscale_tensor(planes, step)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def enlarge(pictures: np.ndarray, gap: int) -> np.ndarray:
    """(n, h, w, C) uint8 -> (n, h*gap, w*gap, C) uint8."""
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    for step in GAPS[gap]:
        planes = upscale_tensor(planes, step)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))


def draw(views: Views, picture: str, number: int) -> tuple[int, int, bool]:
    """(down, right, flipped) of a picture's view; (0, 0, False) of view 0.

    Shifts are in HR pixels, -shift..shift.
    """
    if number == 0:
        return 0, 0, False
    digest = hashlib.sha256(f"{views.seed}:{picture}:{number}".encode()).digest()
    span = 2 * views.shift + 1
    down = int.from_bytes(digest[:4], "big") % span - views.shift
    right = int.from_bytes(digest[4:8], "big") % span - views.shift
    return down, right, views.flip and bool(digest[8] & 1)


def see(pictures: np.ndarray, moves: list[tuple[int, int, bool]]) -> np.ndarray:
    """(n, H, W, C) of any type under its moves, one each: (down, right, flipped) moves the content that way."""
    result = np.empty_like(pictures)
    height, width = pictures.shape[1:3]
    for i, (down, right, flipped) in enumerate(moves):
        picture = pictures[i]
        if down or right:
            picture = picture[_mirrored(height, -down)][:, _mirrored(width, -right)]
        result[i] = picture[:, ::-1] if flipped else picture
    return result


def _mirrored(side: int, shift: int) -> np.ndarray:
    """Indices shift .. shift + side - 1, mirrored about the edges (half-sample, as in the degradation)."""
    index = np.arange(shift, shift + side) % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)
