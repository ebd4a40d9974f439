"""Opens the file of a recognition student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.deploy.export import read_network
from pipeline.errors import InputError
from pipeline.tasks.recognition.export import EXPECTED, KIND, rebuilt
from pipeline.tasks.recognition.networks import Recogniser
from pipeline.tasks.recognition.task import RecognitionTask
from pipeline.tasks.registry import task_named


def load_recogniser(path: str | Path) -> tuple[Recogniser, dict[str, Any]]:
    """The network in a file that a run wrote: (in evaluation mode on the CPU, what the file says of it).

    Facts are `task`, `architecture`, `options`, `embedding`, `classes`, `size` (height, width of its input), `gap`,
    `method` and `seed`. Raises InputError for a missing, damaged or foreign file.
    """
    tensors, facts = read_network(path, KIND)
    task = task_named(facts["task"]) if "task" in facts else None
    if not isinstance(task, RecognitionTask):
        raise InputError(str(path), EXPECTED, f"one of task {facts.get('task', 'unknown')}")
    return rebuilt(task, tensors, facts, str(path)), facts
