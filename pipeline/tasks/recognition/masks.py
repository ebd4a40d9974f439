"""Masks of defects, read by one rule: above 127 of 255 is defect, grey edges below are not.

Of maps of labels, whose largest value is 1 or which have a coloured palette, every label but 0 is defect. An empty mask
is a picture without a defect.
"""

from __future__ import annotations

import numpy as np

from pipeline.data.decode import opened
from pipeline.data.deep import deep_layers, is_deep
from pipeline.errors import InputError

ABOVE = 127
READING = 2
"""Version of the rule."""


def read_mask(path: str, height: int, width: int) -> np.ndarray:
    """(height, width) bool of a mask for a picture of that size. Raises InputError for another size and for damage."""
    above = ABOVE
    with opened(path) as (data, file):
        if is_deep(file):
            mask, above = deep_layers(file, data)[0][:, :, 0], ABOVE * 257
        elif file.mode == "P" and not _is_grey(file.getpalette() or []):
            mask, above = np.asarray(file), 0
        else:
            mask = np.asarray(file.convert("L"))
    if mask.shape != (height, width):
        raise InputError(
            path, f"a mask of its picture's {width}x{height} pixels", f"{mask.shape[1]}x{mask.shape[0]}"
        )
    return mask > (0 if mask.max() == 1 else above)


def _is_grey(palette: list[int]) -> bool:
    """Whether red, green and blue of each entry are equal."""
    return palette[0::3] == palette[1::3] == palette[2::3]
