"""Views of a picture and the resolution gap, as pure functions: the same on every machine, in every process.

A view is a shift (borders mirrored), and perhaps a flip, a zoom and another light. It is drawn from (seed, the
picture's id, the view's number) and not from the place in a file. The LR picture is made from the HR view, so teacher
and student see the same view at any gap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.degrade import downscale_tensor, upscale_tensor
from pipeline.tasks.recognition.settings import GAPS, Views


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


class Move(NamedTuple):
    """What makes a view of a picture."""

    down: int = 0
    """Shift of the content in HR pixels."""
    right: int = 0
    flipped: bool = False
    zoom: float = 1.0
    """Magnification about the middle; 1 leaves pixels as they are."""
    contrast: float = 1.0
    """About the picture's mean."""
    brightness: float = 0.0
    """Added, in grey levels."""


def draw(views: Views, picture: str, number: int) -> Move:
    """A picture's view; number 0 is the picture as it is."""
    if number == 0:
        return Move()
    digest = hashlib.sha256(f"{views.seed}:{picture}:{number}".encode()).digest()
    span = 2 * views.shift + 1
    down = int.from_bytes(digest[:4], "big") % span - views.shift
    right = int.from_bytes(digest[4:8], "big") % span - views.shift
    u = [int.from_bytes(digest[i : i + 4], "big") / 2**31 - 1 for i in (12, 16, 20)]  # in [-1, 1)
    return Move(
        down,
        right,
        views.flip and bool(digest[8] & 1),
        (1 + views.zoom) ** u[0],
        (1 + views.light) ** u[1],
        128 * views.light * u[2],
    )


def see(pictures: np.ndarray, moves: Sequence[Move], *, light: bool = True) -> np.ndarray:
    """(n, H, W, C) uint8 under its moves, one each; borders are mirrored. `light` False, for masks: only where."""
    result = np.empty_like(pictures)
    height, width = pictures.shape[1:3]
    for i, move in enumerate(moves):
        picture = pictures[i]
        if move.zoom != 1.0:
            picture = _zoomed(picture, move)
        elif move.down or move.right:
            picture = picture[_mirrored(height, -move.down)][:, _mirrored(width, -move.right)]
        if light and (move.contrast != 1.0 or move.brightness):
            mean = picture.mean(dtype=np.float32)
            lit = (picture - mean) * np.float32(move.contrast) + (mean + np.float32(move.brightness))
            picture = _bytes(lit)
        result[i] = picture[:, ::-1] if move.flipped else picture
    return result


def _zoomed(picture: np.ndarray, move: Move) -> np.ndarray:
    """Bilinear, one axis after the other: output pixel p shows (p - middle) / zoom + middle - shift."""
    values = picture.astype(np.float32)
    for axis, shift in ((0, move.down), (1, move.right)):
        side = picture.shape[axis]
        middle = (side - 1) / 2
        at = (np.arange(side) - middle) / move.zoom + middle - shift
        low = np.floor(at).astype(np.int64)
        part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        near, far = (np.take(values, _mirror(index, side), axis) for index in (low, low + 1))
        values = near + (far - near) * part
    return _bytes(values)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(values, 0, 255) + np.float32(0.5)).astype(np.uint8)


def _mirrored(side: int, shift: int) -> np.ndarray:
    """Indices shift .. shift + side - 1, mirrored."""
    return _mirror(np.arange(shift, shift + side), side)


def _mirror(index: np.ndarray, side: int) -> np.ndarray:
    """Indices mirrored about the edges (half-sample, as in the degradation)."""
    index = index % (2 * side)
    return np.minimum(index, 2 * side - 1 - index)
