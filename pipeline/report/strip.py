"""Columns of small pictures beside each other, each under its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.report.pictures import ACCENT, BACKGROUND, GAP, INK, LINE, MARGIN, write

SIDE = 140
"""Aim for the side of a cell, in pixels of the drawing."""


def columns(named: Sequence[tuple[str, np.ndarray]], side: int, marked: str = "") -> np.ndarray:
    """Draw (name, (n * side, side, 3) uint8) columns, their cells apart: (H, W, 3) uint8; `marked` is a name in colour.

    Enlargement is by a whole factor without smoothing.
    """
    zoom = max(1, round(SIDE / side))
    cell, rows = side * zoom, named[0][1].shape[0] // side
    size = (2 * MARGIN + len(named) * (cell + GAP) - GAP, 2 * MARGIN + LINE + rows * (cell + GAP) - GAP)
    drawing = Image.new("RGB", size, BACKGROUND)
    for i, (name, pictures) in enumerate(named):
        x = MARGIN + i * (cell + GAP)
        write(drawing, (x, MARGIN), name, ACCENT if name == marked else INK, cell)
        for row in range(rows):
            part = Image.fromarray(pictures[row * side : (row + 1) * side])
            at = (x, MARGIN + LINE + row * (cell + GAP))
            drawing.paste(part.resize((cell, cell), Image.Resampling.NEAREST), at)
    return np.asarray(drawing)
