"""Recipes and spaces for sweeps, and what a sweep left behind."""

from __future__ import annotations

from pathlib import Path

import yaml
from road_kit import content, picture, recipe

SPACE = "SPACE = {'method.distill': ('loguniform', 0.1, 10.0), 'train.lr': ('loguniform', 1e-4, 1e-2)}"


def sweep_pictures(folder: Path) -> Path:
    for seed, name in enumerate("abc"):
        picture(folder / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return folder


def settings(root: Path, output: Path, **changes: object) -> object:
    return recipe(root, output=str(output / "runs"), **changes)


def file(root: Path, output: Path, space: str = SPACE, **changes: object) -> Path:
    """A recipe and a space in `output`."""
    (output / "mine.py").write_text(space)
    changes = {"output": str(output / "runs"), "cache": {"root": str(root / "cache")}, **changes}
    (output / "recipe.yaml").write_text(yaml.safe_dump(content(root, **changes)))
    return output / "recipe.yaml"


def folder(output: Path) -> Path:
    (found,) = (output / "runs" / "r" / "sweeps").iterdir()
    return found


def tracked(place: Path) -> tuple[dict, list[dict]]:
    """The sweep's run and its trials', from the tracking store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("r").experiment_id])
    plain = [
        {
            "status": r.info.status,
            "params": r.data.params,
            "tags": r.data.tags,
            "metrics": r.data.metrics,
            "id": r.info.run_id,
        }
        for r in found
    ]
    (parent,) = [r for r in plain if r["tags"].get("faculty.kind") == "sweep"]
    children = [r for r in plain if r["tags"].get("faculty.kind") == "trial"]
    assert all(r["tags"]["mlflow.parentRunId"] == parent["id"] for r in children)
    return parent, children
