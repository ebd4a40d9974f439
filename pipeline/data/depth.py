"""How many bits a channel a picture file stores: Pillow cuts many deeper ones to 8 without a word."""

from __future__ import annotations

from typing import Any

from PIL import Image

_BITS_PER_SAMPLE = 258
# Bits a pixel, not a channel: 5-5-5 and 5-6-5 colours.
_PACKED = ("BGR;15", "BGR;16", "RGB;15", "RGB;16")


def depth(picture: Image.Image, data: bytes) -> str:
    """`16 bits a channel` for an open, undecoded picture of more than 8; nothing for the others.

    Pictures that Pillow opens as 32-bit or floating-point grey tell by their mode. `data` is the whole file.
    """
    if picture.mode in ("I", "F") and picture.format != "PPM":
        return ""
    reader = _READERS.get(picture.format or "", _raw)
    bits = reader(picture, data)
    return f"{bits} bits a channel" if bits > 8 else ""


def _raw(picture: Image.Image, data: bytes) -> int:
    if picture.mode.startswith("I;16"):
        return 16
    deep = False
    for tile in getattr(picture, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        raw = next((a for a in arguments if isinstance(a, str)), "")
        deep = deep or "BC6" in str(arguments) or (";16" in raw and raw not in _PACKED)
    return 16 if deep else 8


def _tiff(picture: Any, data: bytes) -> int:
    found = picture.tag_v2.get(_BITS_PER_SAMPLE, (8,))
    return max(found if isinstance(found, tuple) else (found,))


def _ppm(picture: Any, data: bytes) -> int:
    for tile in picture.tile:
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if any(isinstance(a, int) and a > 255 for a in arguments) and tile[0] in ("ppm", "ppm_plain"):
            return 16
    return 16 if picture.mode == "I" else 8


def _sgi(picture: Any, data: bytes) -> int:
    return 8 * data[3]


def _jpeg2000(picture: Any, data: bytes) -> int:
    start = data.find(b"\xff\x4f\xff\x51")  # start of the codestream and its size marker
    if start < 0:
        return 8
    count = int.from_bytes(data[start + 40 : start + 42], "big")
    return max(((data[start + 42 + 3 * i] & 0x7F) + 1 for i in range(count)), default=8)


def _avif(picture: Any, data: bytes) -> int:
    start = data.find(b"av1C")
    flags = data[start + 6] if start >= 0 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


_READERS = {"TIFF": _tiff, "PPM": _ppm, "SGI": _sgi, "JPEG2000": _jpeg2000, "AVIF": _avif}
