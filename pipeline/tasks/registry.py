"""Tasks by name: those of this package, and those that anybody names as `package.module:Class`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipeline.errors import InputError, reason
from pipeline.recipe.settings import Section
from pipeline.tasks.base import Task
from pipeline.tasks.recognition.classification import Classification
from pipeline.tasks.recognition.retrieval import Retrieval
from pipeline.tasks.recognition.segmentation import Segmentation
from pipeline.tasks.recognition.verification import Verification
from pipeline.tasks.super_resolution.task import SuperResolution

DEFAULT = SuperResolution.name
"""Of a recipe without the key `task`."""
TASKS: dict[str, Task] = {
    task.name: task
    for task in (SuperResolution(), Classification(), Verification(), Retrieval(), Segmentation())
}


def task_named(name: str) -> Task:
    """A task by its name, or by the place of its class: `package.module:Class`. Raises InputError for others."""
    if name in TASKS:
        return TASKS[name]
    if not isinstance(name, str) or ":" not in name:
        raise InputError(
            "task", f"one of {', '.join(TASKS)}, or the place of your own as package.module:Class", repr(name)
        )
    return _imported(name)


def task_of(recipe: Any) -> Task:
    """The task of a recipe."""
    return task_named(getattr(recipe, "task", DEFAULT))


def recipe_type(content: Mapping[str, Any]) -> type[Section]:
    """What a recipe's content is meant to be. Raises InputError for a task that there is not."""
    return task_named(content.get("task", DEFAULT)).recipe


@lru_cache
def _imported(place: str) -> Task:
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)()
    except Exception as error:  # whatever somebody's module raises while it is imported
        raise InputError(
            f"task: {place}",
            "a module that can be imported, with a class of that name",
            reason(error),
            "Put its folder on PYTHONPATH, on every machine of a cluster.",
        ) from error
    if not isinstance(found, Task):
        raise InputError(f"task: {place}", "a subclass of pipeline.tasks.base.Task", type(found).__name__)
    return found
