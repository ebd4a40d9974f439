"""Which files of a folder are pictures, and by what reason the others are none."""

from __future__ import annotations

import os
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

# Their readers only recognise the file, or start another program to draw it.
_NO_DECODER = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_COMPANIONS = frozenset({"thumbs.db", "desktop.ini"})
HIDDEN, NO_PICTURE, BROKEN, AGAIN = "hidden", "not pictures", "unreadable", "folders linked again"


@cache
def suffixes() -> frozenset[str]:
    """Every suffix, lower case with its dot, of a format that Pillow decodes by itself here."""
    known = Image.registered_extensions()  # also registers the formats
    readable = (set(Image.OPEN) | {"MPO"}) - _NO_DECODER
    return frozenset(suffix for suffix, kind in known.items() if kind in readable)


@dataclass(slots=True)
class Listing:
    """The files under a folder."""

    pictures: list[Path] = field(default_factory=list)
    """By suffix, sorted."""
    others: Counter[str] = field(default_factory=Counter)
    """Reason -> how many files (of hidden folders: one each) are not among them."""


def walk(folder: Path) -> Listing:
    """List the picture files under a folder. Linked folders are followed, each real folder once."""
    found = Listing()
    seen: set[str] = set()
    waiting = deque([(str(folder), False)])
    while waiting:
        place, linked = waiting.popleft()
        try:
            real = os.path.realpath(place)
        except OSError:  # a link of the system's that leads nowhere any more
            found.others[BROKEN] += 1
            continue
        if real in seen:
            found.others[AGAIN] += 1
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(place))
        except OSError:
            found.others[BROKEN] += 1
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _COMPANIONS:
                found.others[HIDDEN] += 1
            elif _is_folder(entry):
                # Links wait until all real folders are done, so that these keep their own names.
                if linked or entry.is_symlink():
                    waiting.append((entry.path, True))
                else:
                    waiting.appendleft((entry.path, False))
            elif Path(entry.name).suffix.lower() not in suffixes():
                found.others[NO_PICTURE] += 1
            elif os.path.isfile(entry.path):
                found.pictures.append(Path(entry.path))
            else:
                found.others[BROKEN] += 1
    found.pictures.sort()
    return found


def there(path: str | Path) -> bool:
    """Whether a path leads to something; one that cannot even be asked for does not."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def counted(where: str, used: int, left_out: Counter[str]) -> str:
    """One line: how many files were found, used and left out, by reason."""
    line = f"{where}: {used + left_out.total()} files found, {used} used"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)
    return f"{line}; left out: {reasons}" if reasons else line


def matters(left_out: Counter[str]) -> bool:
    """Whether anything but hidden files was left out."""
    return any(count for reason, count in left_out.items() if reason != HIDDEN)
