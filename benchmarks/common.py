"""Pictures, caches and timing that several benchmarks share."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

PICTURES = Path(__file__).parent.parent / "demo" / "pictures" / "train"


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each side, measured in turn, so that a machine that slows down slows all of them."""
    for _ in range(warmup):
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def row(
    what: str, ours: float, theirs: float, target: str, *, unit: str = "", note: str = "", digits: int = 3
) -> dict[str, Any]:
    """A row whose ratio is ours / theirs; `target` is `<= x` or `>= x`."""
    ratio = ours / theirs
    sign, bound = target.split()
    met = ratio <= float(bound) if sign == "<=" else ratio >= float(bound)
    result = {
        "what": f"{what}{', ' + unit if unit else ''}",
        "ours": float(f"{ours:.4g}"),
        "theirs": float(f"{theirs:.4g}"),
        "ratio": round(ratio, digits),
        "target": target,
        "met": met,
    }
    return {**result, "note": note} if note else result


def noise_pictures(folder: Path, count: int, side: int) -> Path:
    """`count` smooth random pictures of `side` pixels: PNG files for benchmarks that need many."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")
    return folder
