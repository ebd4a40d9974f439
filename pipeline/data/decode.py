"""Strict reading of picture files: every pixel decoded, 8-bit RGB or refused with the reason."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.errors import InputError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 2**28
_REMEDY = "Convert it to an 8-bit RGB picture, or set the policy for bad pictures to quarantine."
_FOUND = {
    "1": "a 1-bit picture",
    "CMYK": "CMYK colours",
    "I": "32-bit grey",
    "F": "floating-point grey",
    "LAB": "Lab colours",
    "HSV": "HSV colours",
}

# What Pillow raises on damaged files: its parsers, and its C decoders' OSError.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error, Image.DecompressionBombError)

# Pillow's own limit is lower and only warns up to twice its value; the check in `_unsuitable` decides here.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture file that was decoded in full."""

    name: str
    """Path relative to the scanned folder, with forward slashes."""
    path: str
    sha256: str
    """Of the file's bytes: the picture's identity."""
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A picture file that was left out, and why."""

    path: str
    reason: str


def decode(path: str | Path) -> np.ndarray:
    """Return the picture as (H, W, 3) uint8 RGB, as stored (an EXIF orientation is not applied).

    Grey is replicated, palettes are resolved, an alpha channel is dropped if it is opaque everywhere. Raises
    InputError, naming the file, for anything else: damaged or truncated files, 16-bit, 1-bit, CMYK,
    transparency, several frames, more than `MAX_PIXELS`, files that are no pictures.
    """
    return _decode(_read(Path(path)), str(path))


def scan(
    source: str | Path, *, min_side: int = 1, on_bad: Literal["raise", "quarantine"] = "raise"
) -> tuple[list[Picture], list[Quarantined]]:
    """Decode every picture file under a folder, or one file: the good ones and those left out, by name.

    A file whose bytes equal an earlier one's is always left out. A bad file, or one with a side below
    `min_side`, is left out under "quarantine"; under "raise" the first by name raises its InputError. Raises
    InputError if no good picture is found.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(str(source), "a folder of pictures or a picture file", "nothing there")
    root, paths = (source.parent, [source]) if source.is_file() else (source, sorted(_pictures(source)))
    good: dict[str, Picture] = {}
    left_out: list[Quarantined] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: _examine(path, root, min_side), paths)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Picture):
                first = good.setdefault(result.sha256, result)
                if first is not result:
                    left_out.append(Quarantined(str(path), f"duplicate of {first.name}"))
            elif on_bad == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                raise result
            else:
                left_out.append(Quarantined(str(path), f"expected {result.expected}, found {result.found}"))
    if not good:
        names = " ".join(f"*{suffix}" for suffix in sorted(SUFFIXES))
        found = f"bad ones alone ({len(left_out)})" if left_out else f"no {names}"
        raise InputError(str(source), "at least one good picture", found)
    return list(good.values()), left_out


def _pictures(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _examine(path: Path, root: Path, min_side: int) -> Picture | InputError:
    try:
        data = _read(path)
        height, width, _ = _decode(data, str(path)).shape
    except InputError as error:
        return error
    if min(height, width) < min_side:
        return InputError(str(path), f"at least {min_side} pixels a side", f"{width}x{height}", "Remove it.")
    digest = hashlib.sha256(data).hexdigest()
    return Picture(path.relative_to(root).as_posix(), str(path), digest, height, width)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), "a readable picture file", error.strerror or str(error)) from error


def _decode(data: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data)) as probe:
            if probe.format == "PNG":
                probe.verify()  # Pillow checks a PNG's checksums here alone, and the picture is spent afterwards
        with Image.open(io.BytesIO(data)) as picture:
            if found := _unsuitable(picture):
                raise InputError(where, "an 8-bit RGB or grey picture", found, _REMEDY)
            picture.load()
            if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
                rgba = picture.convert("RGBA")
                if rgba.getchannel("A").getextrema() != (255, 255):
                    raise InputError(where, "an 8-bit RGB or grey picture", "transparent pixels", _REMEDY)
                return np.asarray(rgba)[:, :, :3].copy()
            return np.array(picture.convert("RGB"))
    except _DAMAGE as error:
        remedy = "Replace it, or set the policy for bad pictures to quarantine."
        raise InputError(where, "a complete picture", str(error).replace("\n", " "), remedy) from error


def _unsuitable(picture: Image.Image) -> str:
    """Say what is wrong with a picture that is open but not decoded yet; nothing if it will do."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        return f"{width}x{height}, more than {MAX_PIXELS} pixels"
    # Pillow reads 16-bit RGB files as 8-bit "RGB" without a word; only the decoder's raw mode tells.
    if picture.mode.startswith("I;16") or any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
        return "16 bits a channel"
    # Cameras store a preview as a second frame in MPO files; the first is the picture.
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format != "MPO":
        return f"{frames} frames"
    if picture.mode not in ("RGB", "L", "P", "LA", "PA", "RGBA"):
        return _FOUND.get(picture.mode, f"mode {picture.mode}")
    return ""
