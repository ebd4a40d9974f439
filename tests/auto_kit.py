"""`faculty run --auto` in this process on a hurried clock."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_kit import run
from road_kit import content, picture

from pipeline.search import allotment
from pipeline.search.allotment import Pace
from pipeline.search.ladder import Ladder

FIRST = 4
"""Steps of the first rung: the least."""


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second and nothing else takes any, in this process."""
    monkeypatch.setattr(allotment, "LEAST_STEPS", 2)
    monkeypatch.setattr(allotment, "LONGER", 1)
    monkeypatch.setattr(
        allotment, "pace_of", lambda trials: Pace(0.0, 1.0, 0.0) if any(t.curve for t in trials) else None
    )
    monkeypatch.setattr(Ladder, "clock", lambda self: 0.0)
    monkeypatch.setattr("pipeline.search.auto.FIRST", (FIRST, FIRST))


def ladder_pictures(folder: Path) -> Path:
    for seed, name in enumerate("abc"):
        picture(folder / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    picture(folder / "Bench" / "HR" / "one.png", 64, 72, 50)
    return folder


def file(root: Path, output: Path, **changes: object) -> Path:
    changes = {"output": str(output / "runs"), "cache": {"root": str(root / "cache")}, **changes}
    changes.setdefault("data", {"test": [str(root / "Bench")]})
    (output / "recipe.yaml").write_text(yaml.safe_dump(content(root, **changes)))
    return output / "recipe.yaml"


def auto(output: Path, *more: object, minutes: float = 3) -> SimpleNamespace:
    """The command on the recipe in `output`, in this process."""
    result = output / "out.json"
    result.unlink(missing_ok=True)
    options = ("--auto", "--minutes", minutes, "--inline", "--json", result, *more)
    done = run("run", output / "recipe.yaml", *options)
    found = json.loads(result.read_text()) if result.exists() else {}
    err = " ".join(done.err.split())
    return SimpleNamespace(code=done.code, out=done.out, err=err, json=found, auto=found.get("auto", {}))
