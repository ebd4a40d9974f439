"""Pictures as people have them, taken apart into what a network enlarges, and put together again as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from pipeline.cache.store import Store
from pipeline.data.decode import opened, unsuitable
from pipeline.data.depth import depth
from pipeline.errors import InputError

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class Layers:
    """A picture in its upright position."""

    colour: np.ndarray
    """(H, W, 3) uint8 RGB; three equal channels where `grey`."""
    alpha: np.ndarray | None
    """(H, W) uint8, 255 opaque; None without transparency."""
    grey: bool
    icc: bytes | None
    """The colour profile that the values are meant in, as stored."""


def read_layers(path: str | Path) -> Layers:
    """Decode a picture file in full: RGB, grey, black and white, palette, each with or without transparency.

    The EXIF orientation is applied. Raises InputError naming the file for anything else: damaged files, 16 bits a
    channel, CMYK, animations, more than `MAX_PIXELS` pixels.
    """
    where = str(path)
    with opened(path) as (data, picture):
        if (
            found := depth(picture, data)
            or unsuitable(picture, data)
            or ("" if picture.mode in _MODES else f"{picture.mode} colours")
        ):
            raise InputError(
                where, "a still 8-bit picture, RGB or grey", found, "Convert it, or leave it out."
            )
        picture.load()
        icc = picture.info.get("icc_profile")
        upright = ImageOps.exif_transpose(picture)
        transparent = upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info
        grey = upright.mode in ("1", "L", "LA")
        rgba = np.array(upright.convert("RGBA" if transparent else "RGB"))
    return Layers(rgba[:, :, :3], rgba[:, :, 3] if transparent else None, grey, icc)


def write_png(layers: Layers, store: Store, rel: str) -> None:
    """Write a PNG file, whole or not at all."""
    colour = layers.colour
    if layers.grey:
        colour = np.rint(colour.mean(2, dtype=np.float32)).astype(np.uint8)
    if layers.alpha is not None:
        colour = np.dstack((colour, layers.alpha))
    mode = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}
    expected = mode[layers.grey, layers.alpha is not None]
    picture = Image.frombytes(
        expected, (colour.shape[1], colour.shape[0]), np.ascontiguousarray(colour).tobytes()
    )
    with store.stage(rel) as path:
        picture.save(path, format="PNG", icc_profile=layers.icc)


def without_ringing(large: np.ndarray, small: np.ndarray, scale: int) -> np.ndarray:
    """Hold each value of `large` (scale*H, scale*W) within the 3x3 neighbours of its pixel in `small` (H, W), uint8."""
    picture = Image.fromarray(small)
    low, high = (
        np.asarray(picture.filter(kind(3))).repeat(scale, 0).repeat(scale, 1)
        for kind in (ImageFilter.MinFilter, ImageFilter.MaxFilter)
    )
    return np.clip(large, low, high)


def fill_hidden(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give pixels with alpha 0 the colour of the visible ones around them, so that edges get no dark fringes.

    colour (H, W, 3) uint8, alpha (H, W) uint8. Averages over blocks of 2, 4, 8, ... pixels, the smallest block that
    holds anything visible wins ("pull-push", Gortler et al. 1996).
    """
    if not (alpha == 0).any() or not alpha.any():
        return colour
    weight = alpha[:, :, None].astype(np.float32) / 255
    filled = np.rint(_fill(colour.astype(np.float32) * weight, weight)).astype(np.uint8)
    return np.where(alpha[:, :, None] == 0, filled, colour)


def _fill(weighted: np.ndarray, weight: np.ndarray) -> np.ndarray:
    known = weighted / np.maximum(weight, 1e-6)
    if (weight > 0).all():
        return known
    height, width = weight.shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))

    def halved(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, odd, mode="edge")
        return (x[0::2, 0::2] + x[1::2, 0::2] + x[0::2, 1::2] + x[1::2, 1::2]) / 4

    coarse = _fill(halved(weighted), halved(weight)).repeat(2, 0).repeat(2, 1)[:height, :width]
    return np.where(weight > 0, known, coarse)
