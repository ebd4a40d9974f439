"""Pictures as people have them, taken apart into what a network enlarges, and put together again as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from pipeline.cache.store import Store
from pipeline.data.decode import opened, unsuitable
from pipeline.data.deep import deep_layers, is_deep, turned
from pipeline.data.ink import from_ink
from pipeline.deploy.deep_png import deep_png
from pipeline.errors import InputError

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Layers:
    """A picture in its upright position."""

    colour: np.ndarray
    """(H, W, 3) uint8 or uint16 RGB; three equal channels where `grey`."""
    alpha: np.ndarray | None
    """(H, W) of the same type, its greatest value opaque; None without transparency."""
    grey: bool
    icc: bytes | None
    """The colour profile that the values are meant in, as stored."""


def white_of(values: np.ndarray) -> int:
    """The greatest value of an array's type."""
    return int(np.iinfo(values.dtype).max)


def read_layers(path: str | Path) -> Layers:
    """Decode a picture file in full: RGB, grey, black and white, palette, each with or without transparency; CMYK.

    PNG and TIFF files of 16 bits a channel keep their depth. CMYK becomes sRGB, through its own profile where it has
    one. The EXIF orientation is applied. Raises InputError naming the file for anything else: damaged files, other
    depths, animations, more than `MAX_PIXELS` pixels.
    """
    where = str(path)
    with opened(path) as (data, picture):
        known = picture.mode in _MODES or is_deep(picture)
        if found := unsuitable(picture, data) or ("" if known else f"{picture.mode} colours"):
            expected = "a still picture of 8 or 16 bits a channel, RGB, grey or CMYK"
            raise InputError(where, expected, found, "Convert it, or leave it out.")
        icc = picture.info.get("icc_profile")
        if is_deep(picture):
            colour, alpha, grey = deep_layers(picture, data)
            # Pillow turns a TIFF while it decodes it.
            orientation = 1 if picture.format == "TIFF" else picture.getexif().get(_ORIENTATION, 1)
            upright_alpha = None if alpha is None else turned(alpha, orientation)
            return Layers(turned(colour, orientation), upright_alpha, grey, icc)
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        transparent = upright.mode in ("LA", "PA", "RGBA") or "transparency" in upright.info
        grey = upright.mode in ("1", "L", "LA")
        if upright.mode == "CMYK":
            upright, icc = from_ink(upright), None  # its profile is one of inks
        rgba = np.array(upright.convert("RGBA" if transparent else "RGB"))
    return Layers(rgba[:, :, :3], rgba[:, :, 3] if transparent else None, grey, icc)


def write_png(layers: Layers, store: Store, rel: str) -> None:
    """Write a PNG file of the layers' depth, whole or not at all."""
    colour = layers.colour
    if layers.grey:
        colour = np.rint(colour.mean(2, dtype=np.float32)).astype(colour.dtype)
    if layers.alpha is not None:
        colour = np.dstack((colour, layers.alpha))
    if colour.dtype == np.uint16:
        store.write_bytes(rel, deep_png(np.atleast_3d(colour), layers.icc))
        return
    mode = {(True, False): "L", (True, True): "LA", (False, False): "RGB", (False, True): "RGBA"}
    expected = mode[layers.grey, layers.alpha is not None]
    picture = Image.frombytes(
        expected, (colour.shape[1], colour.shape[0]), np.ascontiguousarray(colour).tobytes()
    )
    with store.stage(rel) as path:
        picture.save(path, format="PNG", icc_profile=layers.icc)


def without_ringing(large: np.ndarray, small: np.ndarray, scale: int) -> np.ndarray:
    """Hold each value of `large` (scale*H, scale*W) within the 3x3 neighbours of its pixel in `small` (H, W)."""
    values = torch.from_numpy(small.astype(np.float32))[None]  # exact for 16 bits too
    low, high = (sign * F.max_pool2d(sign * values, 3, stride=1, padding=1)[0].numpy() for sign in (-1, 1))
    low, high = (bound.repeat(scale, 0).repeat(scale, 1).astype(small.dtype) for bound in (low, high))
    return np.clip(large, low, high)


def fill_hidden(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give pixels with alpha 0 the colour of the visible ones around them, so that edges get no dark fringes.

    colour (H, W, 3) and alpha (H, W) of one type, uint8 or uint16. Averages over blocks of 2, 4, 8, ... pixels, the
    smallest block that holds anything visible wins ("pull-push", Gortler et al. 1996).
    """
    if not (alpha == 0).any() or not alpha.any():
        return colour
    weight = alpha[:, :, None].astype(np.float32) / white_of(alpha)
    filled = np.rint(_fill(colour.astype(np.float32) * weight, weight)).astype(colour.dtype)
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
