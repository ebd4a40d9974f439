"""Pictures of 16 bits a channel at their full depth, which Pillow alone cuts to 8 for all but grey.

Pillow's decoders undo compression, filters and interlacing for 16-bit colours and then keep one byte of each value: the
first or the second, as the layout that they are told says. So a file is decoded twice, with the byte order that is
right and with the other one, and gives the high bytes and the low ones.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
from PIL import Image

WHITE = 65535
_BITS, _PHOTOMETRIC, _ORIENTATION, _PLANAR = 258, 262, 274, 284
_EXTRA, _PREMULTIPLIED = 338, 1
_GREY = ("I;16", "I;16L", "I;16B")
_NATIVE = "L" if sys.byteorder == "little" else "B"
# What tifffile undoes without a further package.
_PLANES_PACKED_AS = ("raw", "tiff_deflate", "tiff_adobe_deflate", "packbits")


def is_deep(picture: Image.Image) -> bool:
    """Whether `deep_layers` reads this open, undecoded picture: PNG or TIFF, 16 bits a channel, grey or RGB, each with
    or without alpha.
    """
    if picture.format == "PNG":
        return picture.mode in _GREY or ";16B" in str(picture.tile)  # type: ignore[attr-defined]
    return (
        picture.format == "TIFF" and not _bits_or_planes(picture) and picture.mode in (*_GREY, "RGB", "RGBA")
    )


def obstacle(picture: Image.Image) -> str:
    """Why a picture of 16-bit planes cannot be read, beyond its depth; nothing for others."""
    return _bits_or_planes(picture) if picture.format == "TIFF" else ""


def _bits_or_planes(picture: Any) -> str:
    tags = picture.tag_v2
    bits = tags.get(_BITS, (8,))
    bits = bits if isinstance(bits, tuple) else (bits,)
    if set(bits) != {16}:
        return f"{max(bits)} bits a channel"
    if tags.get(_PLANAR, 1) == 2 and len(bits) > 1:
        packed = picture.info.get("compression", "raw")
        if len(bits) != 3 or packed not in _PLANES_PACKED_AS or tags.get(_ORIENTATION, 1) != 1:
            return f"16 bits a channel in {len(bits)} separate planes ({packed})"
    return ""


def deep_layers(picture: Image.Image, data: bytes) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Decode a picture for which `is_deep` holds: (H, W, 3) uint16 RGB, alpha (H, W) uint16 or None, whether grey.

    `data` is the whole file. Grey is replicated. Raises what Pillow and tifffile raise on damaged files.
    """
    if picture.mode in _GREY:
        pixels = _grey(picture)
    elif picture.format == "TIFF" and picture.tag_v2.get(_PLANAR, 1) == 2:  # type: ignore[attr-defined]
        pixels = _planes(picture, data)
    else:
        pixels = _twice(picture, data)
    channels = pixels.shape[2]
    alpha = pixels[:, :, -1] if channels in (2, 4) else None
    colour = pixels[:, :, : channels - (alpha is not None)]
    key = picture.info.get("transparency")
    if alpha is None and picture.format == "PNG" and key is not None:  # one colour that stands for nothing
        alpha = np.where((colour == np.asarray(key)).all(2), 0, WHITE).astype(np.uint16)
    grey = colour.shape[2] == 1
    if grey:
        colour = colour.repeat(3, 2)
    if alpha is not None and picture.format == "TIFF" and _premultiplied(picture):
        whole = colour * (WHITE / np.maximum(alpha, 1)[:, :, None])
        colour = np.rint(np.minimum(whole, WHITE)).astype(np.uint16)
    return np.ascontiguousarray(colour), alpha, grey


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """uint16 -> uint8 of the same shape, value / 257 rounded, so that white stays white."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, ...) -> the same upright, by the value 1..8 of EXIF's orientation; as it is for any other value."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values[:, ::-1] if orientation in (2, 3, 6, 7) else values)


def _premultiplied(picture: Any) -> bool:
    return tuple(picture.tag_v2.get(_EXTRA, ())) == (_PREMULTIPLIED,)


def _grey(picture: Any) -> np.ndarray:
    picture.load()
    values = np.array(picture).astype(np.uint16)
    if (
        picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == 0
    ):  # white is zero, and Pillow leaves it so
        values = WHITE - values
    return values[:, :, None]


def _planes(picture: Image.Image, data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        values = file.pages[0].asarray()
    wanted = (3, picture.height, picture.width)
    if values.shape != wanted or values.dtype != np.uint16:
        raise ValueError(f"planes of {values.shape} {values.dtype} instead of {wanted}")
    return np.ascontiguousarray(values.transpose(1, 2, 0))


def _twice(picture: Image.Image, data: bytes) -> np.ndarray:
    if "LA;16B" in str(picture.tile):  # type: ignore[attr-defined]  # four bytes a pixel, like 8-bit RGBA: one pass gives them all
        pairs = _decoded(data, "RGBA", "RGBA")
        return (pairs[:, :, 0::2].astype(np.uint16) << 8) | pairs[:, :, 1::2]
    raw = next(a for a in _arguments(picture.tile[0]) if isinstance(a, str))  # type: ignore[attr-defined]
    raw = raw.replace("RGBa", "RGBA")  # as stored: Pillow would divide by alpha byte by byte
    layout, order = raw[:-1], raw[-1].replace("N", _NATIVE)
    high = _decoded(data, picture.mode, raw).astype(np.uint16)
    return (high << 8) | _decoded(data, picture.mode, layout + {"L": "B", "B": "L"}[order])


def _decoded(data: bytes, mode: str, raw: str) -> np.ndarray:
    """(H, W, C) uint8: the file, its pixels laid out as `raw` says."""
    with Image.open(io.BytesIO(data)) as fresh:
        picture: Any = fresh
        picture._mode = mode
        picture.tile = [
            tile._replace(
                args=tuple(raw if isinstance(a, str) else a for a in tile.args)
                if isinstance(tile.args, tuple)
                else raw
            )
            for tile in picture.tile
        ]
        picture.info.pop("transparency", None)
        picture.load()
        return np.array(picture)


def _arguments(tile: Any) -> tuple[Any, ...]:
    return tile.args if isinstance(tile.args, tuple) else (tile.args,)
