"""Pictures to upcycle, and the views that are found in a set of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from road_kit import Road, picture

from pipeline.cache.rows import Rows

ALL = {"zoom_in": 2, "zoom_out": 1, "mixed": 1, "recoloured": 1}
DUKD = {"name": "dukd"}


def make_place(root: Path) -> Path:
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 60, 64, seed)
    picture(root / "small" / "s.png", 30, 30, 9)
    picture(root / "Bench" / "one.png", 64, 72, 60)
    return root


def lr_of(road: Road, manifest: Any) -> dict[str, bytes]:
    rows = Rows(road.run.planner.store, manifest)
    numbers = np.arange(len(rows))
    return dict(zip(rows.ids().to_pylist(), (x.tobytes() for x in rows.take("lr", numbers)), strict=True))


def plain(ids: Any) -> set[str]:
    return {i for i in ids if i.count(":") == 2}


def kinds(ids: Any) -> set[str]:
    return {i.split(":")[3] for i in ids if i.count(":") == 3}
