"""Pictures of a data set as shards: decoded once, resized to the HR size, labels, cameras and masks beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt, write_shard
from pipeline.cache.manifest import Manifest, committed, write_receipt
from pipeline.cache.store import Store
from pipeline.data.decode import decode
from pipeline.steps.values import Samples
from pipeline.tasks.recognition.layouts import Item, array, as_rgb, digits, find
from pipeline.tasks.recognition.masks import READING, read_mask
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.splits import numbered, split

VERSION = 1
SPLITS = ("train", "val", "test")
ROLES = {"": 0, "train": 0, "test": 0, "query": 1, "gallery": 2}


@dataclass(frozen=True, slots=True)
class PictureTask:
    """Decode these pictures into one shard."""

    cache: str
    folder: str
    key: str
    items: tuple[Item, ...]
    labels: tuple[int, ...]
    size: tuple[int, int]

    def run(self, device: str = "cpu") -> Receipt:
        """Returns the committed shard's receipt. The same pictures give the same bytes."""
        pairs = [_load(item, self.size) for item in self.items]
        columns: dict[str, Any] = {
            "id": [item.id for item in self.items],
            "hr": np.stack([hr for hr, _ in pairs]),
            "label": np.array(self.labels, np.int64),
            "camera": np.array([item.camera for item in self.items], np.int64),
            "role": np.array([ROLES[item.role] for item in self.items], np.int64),
        }
        if self.items[0].mask:
            columns["mask"] = np.stack([mask for _, mask in pairs if mask is not None])
        store = Store.open(self.cache)
        receipt = write_shard(
            store,
            f"{self.folder}/{self.key}.arrow",
            columns,
            metadata={"kind": "pictures", "key": self.key, "units": "grey levels 0..255; mask 0 or 255"},
        )
        write_receipt(store, receipt)
        return receipt


@dataclass(frozen=True, slots=True)
class Plan:
    """A data set's splits and which shards are to be made."""

    folder: str
    classes: tuple[str, ...]
    """Of the training set, in order of their numbers."""
    left_out: tuple[str, ...]
    shards: dict[str, tuple[str, ...]]
    """Split -> keys."""
    fingerprints: dict[str, str]
    kept: dict[str, Receipt]
    steps: tuple[PictureTask, ...]

    @property
    def note(self) -> str:
        """Nothing stands behind the progress line."""
        return ""

    def samples(self, receipts: Mapping[str, Receipt], keep: Callable[[str, Manifest], Manifest]) -> Samples:
        """The pictures as splits."""
        splits = {name: keep(self.folder, self.manifest(name, receipts)) for name in SPLITS}
        return Samples(self.folder, splits, self.classes)

    def manifest(self, split: str, receipts: Mapping[str, Receipt]) -> Manifest:
        """The manifest of one split."""
        shards = tuple(receipts[key] for key in self.shards[split])
        inputs = {"split": split, "name": split, "classes": list(self.classes), "folder": self.folder}
        return Manifest("pictures", self.fingerprints[split], inputs, shards)


def plan(recipe: Recognition, store: Store) -> Plan:
    """Find the recipe's pictures and what is missing of them in the cache. Raises InputError (layouts.py)."""
    found = find(recipe.data, recipe.identities)
    parts = split(found, recipe.data, recipe.identities)
    numbers, trained = numbered(parts, found.classes)
    facts = {"version": VERSION, "size": list(recipe.hr_size), "masks": recipe.masks}
    folder = f"pictures/{recipe.hr_size[0]}x{recipe.hr_size[1]}-{fingerprint(facts)}"
    kept = committed(store, folder)
    bytes_each = recipe.hr_size[0] * recipe.hr_size[1] * (4 if recipe.masks else 3)
    limit = max(int(recipe.cache.shard_mb * 1e6 / bytes_each), 1)
    shards: dict[str, tuple[str, ...]] = {}
    prints: dict[str, str] = {}
    tasks = []
    for name in SPLITS:
        content = [_facts(item, numbers) for item in parts[name]]
        prints[name] = fingerprint({"folder": folder, "pictures": content})
        keys = []
        for begin in range(0, len(parts[name]), limit):
            chosen = parts[name][begin : begin + limit]
            keys.append(key := fingerprint(content[begin : begin + limit]))
            if key not in kept:
                labels = tuple(numbers[item.label] for item in chosen)
                tasks.append(PictureTask(store.uri, folder, key, tuple(chosen), labels, recipe.hr_size))
        shards[name] = tuple(keys)
    classes = tuple(sorted(numbers, key=lambda c: numbers[c])[:trained])
    return Plan(folder, classes, found.left_out, shards, prints, kept, tuple(tasks))


def _facts(item: Item, numbers: dict[str, int]) -> list[Any]:
    mask = f"{READING}-{_mask_digest(item.mask)}" if item.mask else ""
    return [item.id, numbers[item.label], item.camera, item.role, mask]


def _mask_digest(path: str) -> str:
    from pipeline.cache.fingerprint import file_sha256

    return file_sha256(path)[:16]


def _load(item: Item, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) uint8 and, where there is one, the mask (H, W, 1) of 0 and 255."""
    if item.place and not item.key:
        picture = decode(item.place)
    else:
        source = _held(item.place, item.key) if item.key else digits()[0]
        picture = as_rgb(source[item.row], item.name)
    mask = None
    if item.mask:
        defect = read_mask(item.mask, *picture.shape[:2])
        mask = (_resized(defect.astype(np.uint8) * 255, size, Image.Resampling.BOX) > 127).astype(
            np.uint8
        ) * 255
        mask = mask[:, :, None]
    return _resized(picture, size, Image.Resampling.BICUBIC), mask


@lru_cache(maxsize=2)
def _held(file: str, key: str) -> np.ndarray:
    return array(file, key)


def _resized(picture: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    """Antialiased; untouched where it has the size already."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), how))
