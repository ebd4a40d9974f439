"""PNG files of 16 bits a channel, which Pillow writes for grey without transparency alone."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""By channels: grey, grey with alpha, RGB, RGBA (PNG specification, section 11.2.1)."""
_UP = 2
"""The filter that stores each byte's difference to the one above."""


def deep_png(pixels: np.ndarray, icc: bytes | None = None) -> bytes:
    """The file of (H, W, C) uint16 pixels, C of 1 to 4, with a colour profile where there is one."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0)
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0], filtered[:1, 1:] = _UP, rows[:1]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    profile = [_chunk(b"iCCP", b"icc\0\0" + zlib.compress(icc))] if icc else []
    body = [
        _chunk(b"IHDR", head),
        *profile,
        _chunk(b"IDAT", zlib.compress(filtered.tobytes())),
        _chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
