"""A recipe over pictures in folders of classes, its shards, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import natural_picture
from PIL import Image

from pipeline.cache.manifest import Manifest
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.tasks.recognition import pictures as picturing
from pipeline.tasks.recognition.recipe import Recognition


def recipe(root: Path, **changes: Any) -> Recognition:
    base: dict[str, Any] = {
        "name": "r",
        "task": "classification",
        "gap": 2,
        "output": str(root / "runs"),
        "cache": {"root": str(root / "cache"), "shard_mb": 0.004},
        "data": {
            "layout": "folders",
            "root": str(root / "data"),
            "size": 16,
            "views": {"count": 3, "shift": 2},
        },
        "teacher": {"train": {"steps": 2}},
        "method": {"name": "kd"},
        "tracking": {"enabled": False},
    }
    for key, value in changes.items():
        base[key] = {**base[key], **value} if isinstance(value, dict) and key in base else value
    return Recognition.model_validate(base)


def class_folders(root: Path) -> Path:
    """Three classes of eight pictures of various sizes."""
    for number, name in enumerate(("cat", "dog", "owl")):
        for i in range(8):
            path = root / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(16 + i, 20, 10 * number + i)).save(path)
    return root


def shards(settings: Recognition) -> tuple[Store, dict[str, Manifest], picturing.Plan]:
    store = Store.open(settings.cache.root)
    plan = picturing.plan(settings, store)
    receipts = dict(plan.kept) | {t.key: t.run() for t in plan.steps}
    return store, {name: plan.manifest(name, receipts) for name in picturing.SPLITS}, plan


def refused(call: Any, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)
