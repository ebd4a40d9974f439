"""Recipe files of every task, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.recipe.reading import checked, read
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Section
from pipeline.tasks.registry import recipe_type


def load_any(path: str | Path, overrides: tuple[str, ...] = ()) -> Any:
    """Read and validate a recipe; its key `task` says of which kind, super-resolution where there is none.

    `overrides` are `a.b.c=value` with YAML values. Raises InputError naming the recipe's path, the key, what was
    expected and what was found.
    """
    return checked(kind_of(path, overrides), read(path, overrides), str(path))


def kind_of(path: str | Path, overrides: tuple[str, ...] = ()) -> type[Section]:
    """What a recipe's file is meant to be, valid or not. Raises InputError for a file that is no table of settings."""
    try:
        return recipe_type(read(path, overrides))
    except InputError as error:
        if error.where.startswith("task"):
            error = InputError(f"{path}: {error.where}", error.expected, error.found, error.remedy)
        raise error from None


def load_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """As `load_any`, for what works on super-resolution alone. Raises InputError for a recipe of another task."""
    recipe = load_any(path, overrides)
    if not isinstance(recipe, Recipe):
        raise InputError(str(path), "a super-resolution recipe", f"one of task {recipe.task}")
    return recipe
