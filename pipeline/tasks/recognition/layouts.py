"""Where pictures and labels lie: ordinary layouts, read into one list of items.

Rules: a picture is known by its bytes; a second one with the same bytes is left out, and refused where its label
differs. For classification labels are 0 .. K-1, each with pictures. For verification and retrieval labels are
identities, whatever their numbers. Masks are read in masks.py.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pipeline.data.files import HIDDEN, counted, walk
from pipeline.errors import InputError, reason
from pipeline.tasks.recognition.settings import RecognitionData

MASK = "_mask"
_MARKET = re.compile(r"^(-?\d+)_c(\d+)s\d+_\d+_\d+")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture."""

    id: str
    """16 hexadecimal digits of its bytes' sha256."""
    name: str
    label: str
    """Class, identity or, with masks, the folder."""
    place: str
    """The file; nothing for scikit-learn's digits."""
    key: str = ""
    """Of the array in that file that holds it."""
    row: int = 0
    """Its number in an array."""
    mask: str = ""
    camera: int = 0
    role: str = ""
    """`train`, `test`, `query`, `gallery` where the layout says so."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a layout holds."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    """In order of their numbers."""
    left_out: tuple[str, ...] = field(default=())
    """What of the folder is used, and why pictures were left out; nothing where all are."""


def find(data: RecognitionData, identities: bool = False) -> Found:
    """Read the layout's names, labels and digests; `identities`: those of people, of whom test pictures show others.

    Raises InputError for what the module's rules refuse."""
    readers = {
        "digits": _digits,
        "folders": _folders,
        "market1501": _market,
        "masks": _masks,
        "npz": _npz,
    }
    items, classes = readers[data.layout](data, identities)
    if not items:
        raise InputError(data.root or "data", "at least one picture", "none")
    kept: dict[str, Item] = {}
    left_out = []
    for item in items:
        first = kept.setdefault(item.id, item)
        if first is item:
            continue
        if first.label != item.label:
            raise InputError(
                item.name, f"the label of the same picture {first.name} ({first.label})", item.label
            )
        left_out.append(f"left out {item.name}: duplicate of {first.name}")
    names = tuple(data.classes) or tuple(classes)
    present = {item.label for item in kept.values()}
    for name in names:
        if name not in present:
            raise InputError("data.classes", f"pictures of every class, also of {name!r}", "none of it")
    if unknown := sorted(present - set(names)):
        raise InputError("data.classes", f"labels among {', '.join(names)}", ", ".join(unknown))
    if len(names) < 2 and data.layout != "masks":
        raise InputError(data.root or "data", "at least two classes or identities", f"{len(names)}")
    if data.layout in ("folders", "market1501", "masks"):
        others = walk(Path(data.root)).others
        if left_out or any(count for reason, count in others.items() if reason != HIDDEN):
            left_out.insert(0, counted(data.root, len(kept), others + Counter(copies=len(left_out))))
    return Found(tuple(kept.values()), names, tuple(left_out))


def _digits(data: RecognitionData, identities: bool) -> tuple[list[Item], list[str]]:
    images, labels = digits()
    items = [
        Item(_digest(image), f"digit {i}", str(label), "", row=i)
        for i, (image, label) in enumerate(zip(images, labels))
    ]
    return items, [str(i) for i in range(10)]


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1797 handwritten digits: (n, 8, 8) uint8, its 17 levels spread over 0..255, and labels (n,)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.rint(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int64)


def _folders(data: RecognitionData, identities: bool) -> tuple[list[Item], list[str]]:
    root = _folder(data.root)
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    items = []
    for folder in folders:
        files = walk(folder).pictures
        if not files:
            raise InputError(str(folder), "pictures of this class", "none", "Remove the folder or fill it.")
        items += [_file_item(path, root, folder.name) for path in files]
    return items, [folder.name for folder in folders]


def _market(data: RecognitionData, identities: bool) -> tuple[list[Item], list[str]]:
    root = _folder(data.root)
    roles = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    items = []
    for name, role in roles.items():
        for path in walk(_folder(str(root / name))).pictures:
            person, camera = market_name(path)
            if person == "-1":  # junk detections: neither right nor wrong answers, by the data set's rule
                continue
            items.append(replace(_file_item(path, root, person), camera=camera, role=role))
    return items, sorted({item.label for item in items})


def market_name(path: Path) -> tuple[str, int]:
    """(identity, camera) of a Market-1501 name; identity -1 is junk, 0000 a distractor. Raises InputError."""
    match = _MARKET.match(path.name)
    if match is None:
        raise InputError(str(path), "a name like 0002_c1s1_000451_03.jpg", path.name)
    return match.group(1), int(match.group(2))


def _masks(data: RecognitionData, identities: bool) -> tuple[list[Item], list[str]]:
    root = _folder(data.root)
    items = []
    for path in walk(root).pictures:
        if path.stem.endswith(MASK):
            continue
        mask = path.with_name(f"{path.stem}{MASK}.png")
        if not mask.is_file():
            raise InputError(str(path), f"its mask {mask.name} beside it", "none")
        item = _file_item(path, root, path.parent.relative_to(root).as_posix())
        items.append(replace(item, mask=str(mask)))
    return items, sorted({item.label for item in items})


def _npz(data: RecognitionData, identities: bool) -> tuple[list[Item], list[str]]:
    file = Path(data.root)
    if not file.is_file():
        raise InputError("data.root", "an npz file", f"{data.root!r}, which is none")
    items: list[Item] = []
    sides = [(data.images, data.labels, data.camera, "train" if data.test_images else "")]
    if data.test_images:
        sides.append((data.test_images, data.test_labels or "", data.test_camera, "test"))
    for images_key, labels_key, camera_key, role in sides:
        images = array(str(file.absolute()), images_key)
        labels = _labels(str(file), labels_key, len(images))
        cameras = array(str(file), camera_key) if camera_key else np.zeros(len(images), int)
        if len(cameras) != len(images):
            raise InputError(f"{file}: {camera_key}", f"{len(images)} values", f"{len(cameras)}")
        items += [
            Item(
                _digest(image),
                f"{images_key}[{i}]",
                str(int(label)),
                str(file.absolute()),
                images_key,
                i,
                camera=int(camera),
                role=role,
            )
            for i, (image, label, camera) in enumerate(zip(images, labels, cameras))
        ]
    present = {int(item.label) for item in items}
    if not identities:
        count = len(data.classes) or max(present) + 1
        if outside := sorted(n for n in present if n >= count):
            raise InputError(f"{file}: {data.labels}", f"labels 0..{count - 1}", f"{outside[0]}")
        numbers = [str(n) for n in range(count)]
        if missing := sorted(set(range(count)) - present):
            raise InputError(
                f"{file}: {data.labels}", f"pictures of every class 0..{count - 1}", f"none of {missing[0]}"
            )
        if data.classes:
            items = [replace(item, label=data.classes[int(item.label)]) for item in items]
            numbers = list(data.classes)
        return items, numbers
    return items, [str(n) for n in sorted(present)]


def _labels(file: str, key: str, count: int) -> np.ndarray:
    labels = array(file, key)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{file}: {key}", f"({count},) integers", f"{labels.shape} {labels.dtype}")
    if labels.min() < 0:
        raise InputError(f"{file}: {key}", "labels from 0", f"{labels.min()}")
    return labels


def array(file: str, key: str) -> np.ndarray:
    """One array of an npz file. Raises InputError for an unknown key or for pickled objects."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if key not in stored.files:
                raise InputError(f"{file}", f"one of the arrays {', '.join(stored.files)}", repr(key))
            found = stored[key]
    except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(file, "plain arrays in an npz file", reason(error)) from error
    if not found.ndim or not len(found):
        raise InputError(f"{file}: {key}", "an array of something", f"shape {found.shape}")
    return found


def as_rgb(picture: Any, where: str) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 as (H, W, 3). Raises InputError for other arrays."""
    picture = np.asarray(picture)
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (1, 3):
        raise InputError(where, "(H, W), (H, W, 1) or (H, W, 3) uint8", f"{picture.shape} {picture.dtype}")
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def _file_item(path: Path, root: Path, label: str) -> Item:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return Item(digest, path.relative_to(root).as_posix(), label, str(path.absolute()))


def _digest(array: np.ndarray) -> str:
    header = f"{array.shape}{array.dtype}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def _folder(path: str) -> Path:
    root = Path(path)
    if not path or not root.is_dir():
        raise InputError("data.root", "a folder", f"{path!r}, which is none")
    return root
