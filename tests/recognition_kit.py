"""Small recognition recipes, runs of them, spaces of sweeps over them, and the pictures for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from conftest import natural_picture
from PIL import Image

from pipeline.progress import Quiet
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.steps.values import Outcome, Result
from pipeline.tasks.recognition.recipe import Recognition

ALL = ["scratch", "kd", "rkd", "horkd"]
BUDGET = {"steps": 6, "batch": 8, "lr": 1e-3, "ema": 0.9, "evaluate_every": 3, "log_every": 3}
EVERY_TERM = {"name": "rkd", "adversarial": 0.1, "feature": 1.0, "pairwise": 1.0, "mmd": 1.0}
"""Beside those that have a weight by default."""
LARGE = {"layout": "digits", "size": 16, "views": {"count": 2, "shift": 1}}


def content(root: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "r",
        "task": "classification",
        "gap": 2,
        "output": str(root / "runs"),
        "cache": {"root": str(root / "cache"), "shard_mb": 0.05},
        "data": {"layout": "digits", "size": 8, "views": {"count": 2, "shift": 1}},
        "teacher": {
            "network": {"name": "resnet8", "options": {"width": 8}, "embedding": 12},
            "train": BUDGET,
        },
        "student": {"name": "resnet8", "options": {"width": 4}, "embedding": 8},
        "method": EVERY_TERM,
        "train": BUDGET,
        "distill": {"cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(base.get(key), dict) and key != "method"
        base[key] = {**base[key], **value} if merge else value
    return base


def recipe(root: Path, **changes: Any) -> Recognition:
    return Recognition.model_validate(content(root, **changes))


def run(root: Path, engine: Any = None, **changes: Any) -> Run:
    return Run(recipe(root, **changes), engine or InlineEngine("cpu"), Quiet())


def space_file(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


def figures(outcome: Outcome, name: str) -> dict[str, float]:
    """A model's metrics on the test pictures."""
    (found,) = scored(outcome)[name].sets.values()
    return dict(found)


def scored(outcome: Outcome) -> dict[str, Result]:
    """Every model's results, by name."""
    return {result.name: result for result in outcome.results}


def picture_folder(root: Path, classes: int, each: int, side: int = 16, masks: bool = False) -> str:
    for c in range(classes):
        for i in range(each):
            path = root / "data" / f"class{c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(side, side, 100 * c + i)).save(path)
            if masks:
                mask = np.zeros((side, side), np.uint8)
                mask[side // 4 : side // 2, side // 4 : side // 2] = 255 * (c > 0)
                Image.fromarray(mask).save(path.with_name(f"{i}_mask.png"))
    return str(root / "data")
