"""How a set's mean treats a picture that comes out exactly right: its PSNR is infinite.

One such picture (a black one is enough: bicubic reproduces it) would make the mean infinite, whatever the others are.
So a picture that any of the compared models reproduces exactly is left out of the PSNR mean of all of them (means over
different pictures could not be compared) and is named. SSIM, 1 for it, counts it. Where no picture would be left, all
count, and the mean of a model with an exact one is infinite: tables say `exact`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

Pictures = Mapping[str, tuple[float, float]]
"""{picture: (PSNR dB, SSIM)} of one model on one set."""
EXACT = "exact"


def exact_pictures(models: Iterable[Pictures]) -> list[str]:
    """The pictures of a set that one or more of the compared models reproduce exactly, in order."""
    return list(
        dict.fromkeys(name for pictures in models for name, (p, _) in pictures.items() if p == math.inf)
    )


def set_means(pictures: Pictures, exact: Collection[str]) -> dict[str, Any]:
    """{"images": n, "psnr_y": dB, "ssim_y": value}, and {"exact": names} where `exact` holds any of the pictures.

    PSNR is over those that are not in `exact`, over all where none is left.
    """
    counted = [p for name, (p, _) in pictures.items() if name not in exact]
    means: dict[str, Any] = {
        "images": len(pictures),
        "psnr_y": statistics.fmean(counted or [p for p, _ in pictures.values()]),
        "ssim_y": statistics.fmean(s for _, s in pictures.values()),
    }
    if left_out := [name for name in pictures if name in exact]:
        means[EXACT] = left_out
    return means


def exact_note(set_name: str, exact: Collection[str], images: int) -> str:
    """The sentence that names them."""
    names = ", ".join(exact)
    if len(exact) == images:
        return f"{set_name}: every picture is reproduced exactly by some model (infinite PSNR): {names}"
    return (
        f"{set_name}: {len(exact)} of {images} pictures left out of the PSNR mean, because a model reproduces them "
        f"exactly (infinite PSNR): {names}"
    )


def decibels(value: float, digits: int = 2) -> str:
    """PSNR for people: `31.42 dB`, or `exact` where it is infinite."""
    return EXACT if value == math.inf else f"{value:.{digits}f} dB"
