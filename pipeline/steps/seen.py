"""What a network made of a few held-out crops while it learned: some moments, kept beside its checkpoints."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.cache import records
from pipeline.cache.store import Store
from pipeline.data.decode import DAMAGE
from pipeline.recipe.settings import Budget

SHARES = (8, 4, 2)
"""One of each of these parts of a training is a moment that is kept, beside the first evaluation and the last."""
_NAME, _COLUMNS = re.compile(r"seen-(\d{8})\.png"), "columns"


@dataclass(frozen=True, slots=True)
class Strip:
    """Crops below each other, each as a row of cells of one size."""

    picture: np.ndarray
    """(crops * side, columns * side, 3) uint8."""
    columns: tuple[str, ...]
    """What each cell of a row shows."""

    @property
    def side(self) -> int:
        """Pixels a side of a cell."""
        return self.picture.shape[1] // len(self.columns)

    def column(self, name: str) -> np.ndarray:
        """(crops * side, side, 3) uint8. Raises ValueError for an unknown name."""
        at = self.columns.index(name) * self.side
        return self.picture[:, at : at + self.side]


def moments(settings: Budget) -> tuple[int, ...]:
    """The steps whose evaluations are kept; early ones are nearer to each other, as most is learned then."""
    every, steps = settings.evaluate_every, settings.steps
    found = {every, steps, *(-(-steps // (share * every)) * every for share in SHARES)}
    return tuple(sorted({min(step, steps) for step in found}))


def keep(store: Store, step: int, strip: Strip) -> None:
    """Write one moment into a training's folder."""
    buffer, info = io.BytesIO(), PngInfo()
    info.add_text(_COLUMNS, "|".join(strip.columns))
    Image.fromarray(strip.picture).save(buffer, "PNG", pnginfo=info)
    store.write_bytes(f"seen-{step:08d}.png", buffer.getvalue())


def kept(store: Store) -> list[tuple[int, Strip]]:
    """(step, strip) of all that were kept, oldest first. A damaged one is named, set aside and left out."""
    found = []
    for rel in sorted(rel for rel, _ in store.list() if _NAME.fullmatch(rel)):
        try:
            with Image.open(io.BytesIO(store.read_bytes(rel))) as image:
                picture = np.asarray(image.convert("RGB"))
                columns = tuple(image.text[_COLUMNS].split("|"))  # type: ignore[attr-defined]
            if picture.shape[1] % len(columns):
                raise ValueError(f"{picture.shape[1]} pixels for {len(columns)} columns")
        except DAMAGE as error:
            why = str(error) or type(error).__name__
            records.set_aside(store, rel, why, then="its report goes without it")
            continue
        found.append((int(rel[5:13]), Strip(picture, columns)))
    return found
