"""Strict reading of picture files: every pixel decoded, 8-bit RGB or refused with the reason."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from pipeline.data.deep import deep_layers, is_deep, obstacle, to_8_bit
from pipeline.data.depth import depth
from pipeline.data.files import counted, matters, suffixes, there, walk
from pipeline.data.ink import from_ink
from pipeline.errors import InputError, reason

MAX_PIXELS = 2**28
COPY, BAD = "copies of others", "bad"
# What is done to a picture that is not 8-bit RGB or grey.
ROUNDED, INK, LAID = "16-bit rounded to 8 bits", "CMYK converted to RGB", "transparent laid on white"
_REMEDY = "Convert it to an 8-bit RGB picture, or leave it out."
_FOUND = {
    "1": "a 1-bit picture",
    "I": "32-bit grey",
    "F": "floating-point grey",
    "LAB": "Lab colours",
    "HSV": "HSV colours",
}

# What Pillow raises on damaged files: its parsers trust lengths, offsets and tags, and name no class of their own.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    LookupError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

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
    grey: bool = field(default=False, compare=False)
    """Stored with one channel."""
    pixels: str = field(default="", compare=False)
    """sha256 of what it decodes to: equal where only the files differ."""
    done: tuple[str, ...] = field(default=(), compare=False)
    """What decoding changed: of `ROUNDED`, `INK`, `LAID`."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A picture file that was left out, and why."""

    path: str
    reason: str
    kind: str = BAD
    """The reason in a word or two, for counting."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found under a folder."""

    source: str
    pictures: list[Picture]
    left_out: list[Quarantined]
    others: Counter[str]
    """Reason -> how many files were not even opened."""

    @property
    def narrowed(self) -> Counter[str]:
        """Reason -> how many files are not among `pictures`."""
        return self.others + Counter(item.kind for item in self.left_out)

    @property
    def line(self) -> str:
        """How many files were found, used and left out, by reason."""
        return counted(self.source, len(self.pictures), self.narrowed)

    @property
    def changed(self) -> str:
        """How many of the pictures were changed by decoding, by what was done; nothing where none was."""
        return changes(self.source, Counter(done for p in self.pictures for done in p.done))

    @property
    def matters(self) -> bool:
        """Whether anything but hidden files was left out."""
        return matters(self.narrowed)

    @property
    def copies(self) -> list[str]:
        """`b.png = a.png` for each picture that was counted although an earlier one has its bytes."""
        first: dict[str, str] = {}
        pairs = [(p.name, first.setdefault(p.sha256, p.name)) for p in self.pictures]
        return [f"{name} = {earlier}" for name, earlier in pairs if name != earlier]


def changes(where: str, counts: Counter[str]) -> str:
    """One line: how many pictures were changed, by what was done; nothing where none was."""
    said = ", ".join(f"{count} {done}" for done, count in sorted(counts.items()) if count)
    return f"{where}: pictures of other kinds: {said}" if said else ""


def decode(path: str | Path) -> np.ndarray:
    """Return the picture as (H, W, 3) uint8 RGB, as stored (an EXIF orientation is not applied, but a
    TIFF's is, by Pillow).

    Grey is replicated, palettes are resolved; 16-bit PNG and TIFF are rounded to 8 bits (value / 257), CMYK is
    converted to sRGB (through its profile where there is one), transparent pixels are laid on white. Raises
    InputError, naming the file, for anything else: damaged or truncated files, other depths, 1-bit, several frames,
    more than `MAX_PIXELS`, files that are no pictures.
    """
    return decode_stored(path)[0]


def decode_stored(path: str | Path) -> tuple[np.ndarray, bool]:
    """Like `decode`, and whether the file stores one channel (grey, with or without alpha)."""
    return _decode(_read(Path(path)), str(path))[:2]


def scan(
    source: str | Path, *, min_side: int = 1, on_bad: Literal["raise", "quarantine"] = "raise"
) -> tuple[list[Picture], list[Quarantined]]:
    """Decode every picture file under a folder, or one file: the good ones and those left out, by name.

    A file whose bytes equal an earlier one's is always left out. A bad file, or one with a side below
    `min_side`, is left out under "quarantine"; under "raise" the first by name raises its InputError. Raises
    InputError if no good picture is found.
    """
    found = survey(source, min_side=min_side, on_bad=on_bad)
    return found.pictures, found.left_out


def survey(
    source: str | Path,
    *,
    min_side: int = 1,
    on_bad: Literal["raise", "quarantine"] = "raise",
    keep_copies: bool = False,
) -> Survey:
    """Like `scan`, with what was not opened; `keep_copies` counts files of equal bytes each, as a test set does."""
    source = Path(source)
    if not there(source):
        raise InputError(str(source), "a folder of pictures or a picture file", "nothing there")
    others: Counter[str] = Counter()
    root, paths = source.parent, [source]
    if source.is_dir():
        listing = walk(source)
        root, paths, others = source, listing.pictures, listing.others
    good: dict[str, Picture] = {}
    left_out: list[Quarantined] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda path: _examine(path, root, min_side), paths)
        for path, result in zip(paths, results, strict=True):
            if isinstance(result, Picture):
                key = result.name if keep_copies else result.sha256
                first = good.setdefault(key, result)
                if first is not result:
                    left_out.append(Quarantined(str(path), f"duplicate of {first.name}", COPY))
            elif on_bad == "raise":
                pool.shutdown(wait=False, cancel_futures=True)
                raise result
            else:
                left_out.append(Quarantined(str(path), f"expected {result.expected}, found {result.found}"))
    if not good:
        names = " ".join(f"*{suffix}" for suffix in sorted(suffixes()))
        found = f"bad ones alone ({len(left_out)})" if left_out else f"no {names}"
        raise InputError(str(source), "at least one good picture", found)
    return Survey(str(source), list(good.values()), left_out, others)


def _examine(path: Path, root: Path, min_side: int) -> Picture | InputError:
    try:
        data = _read(path)
        picture, grey, done = _decode(data, str(path))
    except InputError as error:
        return error
    height, width, _ = picture.shape
    if min(height, width) < min_side:
        return InputError(str(path), f"at least {min_side} pixels a side", f"{width}x{height}", "Remove it.")
    digest = hashlib.sha256(data).hexdigest()
    pixels = hashlib.sha256(f"{height}x{width}".encode() + picture.tobytes()).hexdigest()
    return Picture(path.relative_to(root).as_posix(), str(path), digest, height, width, grey, pixels, done)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(str(path), "a readable picture file", error.strerror or str(error)) from error


@contextmanager
def opened(
    path: str | Path, remedy: str = "Replace it, or leave it out."
) -> Iterator[tuple[bytes, Image.Image]]:
    """The file's bytes and the opened picture. Whatever Pillow raises in the block is an InputError that names the
    file.
    """
    data = _read(Path(path))
    with _guarded(data, str(path), remedy) as picture:
        yield data, picture


@contextmanager
def _guarded(data: bytes, where: str, remedy: str = "Replace it, or leave it out.") -> Iterator[Image.Image]:
    try:
        with Image.open(io.BytesIO(data)) as probe:
            if probe.format == "PNG":
                probe.verify()  # Pillow checks a PNG's checksums here alone, and the picture is spent afterwards
        with Image.open(io.BytesIO(data)) as picture:
            yield picture
    except Image.UnidentifiedImageError as error:  # its text is the address of an object in memory
        raise InputError(
            where, "a complete picture", "a file that no picture format begins", remedy
        ) from error
    except DAMAGE as error:
        raise InputError(where, "a complete picture", reason(error), remedy) from error


def _decode(data: bytes, where: str) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    with _guarded(data, where) as picture:
        if found := _unsuitable(picture, data):
            raise InputError(where, "a picture of 8 or 16 bits a channel, RGB, grey or CMYK", found, _REMEDY)
        if is_deep(picture):
            deep, deep_alpha, grey = deep_layers(picture, data)
            colour, alpha = to_8_bit(deep), None if deep_alpha is None else to_8_bit(deep_alpha)
            done: tuple[str, ...] = (ROUNDED,)
        else:
            picture.load()
            grey, alpha, done = picture.mode in ("L", "LA"), None, ()
            if picture.mode == "CMYK":
                colour, done = np.array(from_ink(picture)), (INK,)
            elif picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
                rgba = np.asarray(picture.convert("RGBA"))
                colour, alpha = rgba[:, :, :3].copy(), rgba[:, :, 3]
            else:
                colour = np.array(picture.convert("RGB"))
        if alpha is None or (alpha == 255).all():
            return colour, grey, done
        # What lies under transparent pixels is arbitrary; on white it is what viewers show.
        share = alpha[:, :, None].astype(np.uint32)
        laid = (colour * share + 255 * (255 - share) + 127) // 255
        return laid.astype(np.uint8), grey, (*done, LAID)


def unsuitable(picture: Image.Image, data: bytes) -> str:
    """What is wrong with an open, undecoded picture whatever it is used for: its size, depth, frames; else nothing."""
    width, height = picture.size
    if width * height > MAX_PIXELS:
        return f"{width}x{height}, more than {MAX_PIXELS} pixels"
    if (found := depth(picture, data)) and not is_deep(picture):
        return obstacle(picture) or found
    # Cameras store a preview as a second frame in MPO files; a PSD's frames are its layers, after the whole.
    if (frames := getattr(picture, "n_frames", 1)) > 1 and picture.format not in ("MPO", "PSD"):
        return f"{frames} frames"
    return ""


def _unsuitable(picture: Image.Image, data: bytes) -> str:
    if found := unsuitable(picture, data):
        return found
    if picture.mode not in ("RGB", "L", "P", "LA", "PA", "RGBA", "CMYK") and not is_deep(picture):
        return _FOUND.get(picture.mode, f"mode {picture.mode}")
    return ""
