"""What `faculty run --auto` tries for super-resolution, as data: {name: {path of the recipe: value}}, a line each.

A value may be at any path (`method`, `train.lr`, `student.options.features`). What a recipe does not take (MTKD without
teachers, scratch without HR) is left out of its ladder and said.
"""

from __future__ import annotations

from typing import Any

from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import upcycle_of


def _falls(start: float, begin: float, until: float) -> dict[str, Any]:
    """A weight that falls to 0: the distillation comes early, HR late."""
    return {"kind": "linear", "start": start, "end": 0.0, "begin": begin, "until": until}


CANDIDATES: dict[str, dict[str, Any]] = {
    "scratch": {"method": {"name": "scratch"}},
    "kd": {"method": {"name": "kd"}},
    "kd-handover": {"method": {"name": "kd", "distill": _falls(1.0, 0.4, 0.7)}},
    "mtkd": {"method": {"name": "mtkd"}},
    "mtkd-low": {"method": {"name": "mtkd", "low": 0.33}},
    "mtkd-low-fades": {"method": {"name": "mtkd", "low": _falls(0.33, 0.3, 0.8)}},
    "mtkd-low-handover": {"method": {"name": "mtkd", "low": 0.33, "handover": [0.4, 0.7]}},
}
UPCYCLED: dict[str, dict[str, Any]] = {
    "dukd": {"method": {"name": "dukd"}},
}
"""Tried too where the recipe has upcycled views: for one candidate alone all teachers would have to answer them."""
MUON: dict[str, Any] = {"train.optimiser": "muon", "train.lr": 3e-3}
"""Of those called `-muon`: with it many students learn in a third of the steps (docs/results.md)."""
WARMUP = 0.05
"""Of the recipe's steps, those in which that rate is reached."""


def candidates(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Those for this recipe, by name; scratch and the recipe's own method by Muon, too."""
    views = upcycle_of(recipe)
    train = recipe.train
    muon = {**MUON, "train.warmup": max(train.warmup, round(WARMUP * train.steps))}
    hastened = {"scratch-muon": {**CANDIDATES["scratch"], **muon}}
    if recipe.method.name != "scratch":
        hastened[f"{recipe.method.name}-muon"] = muon
    return {**CANDIDATES, **hastened, **(UPCYCLED if views is not None and views.counts else {})}


def settled(recipe: Recipe) -> Recipe:
    """With the views that `dukd` brings, so that those who are tried beside it have them too."""
    data = recipe.data.model_copy(update={"upcycle": upcycle_of(recipe)})
    return recipe.model_copy(update={"data": data})
