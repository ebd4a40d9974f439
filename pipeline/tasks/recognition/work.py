"""What there is to do for a recognition recipe, counted before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.cost import multiply_adds
from pipeline.steps.forecast import BACKWARD, Work
from pipeline.tasks.recognition.elsewhere import found_elsewhere
from pipeline.tasks.recognition.recipe import Recognition

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

ITEM_BYTES = 2
"""Outputs are float16."""
CLASSES = 10
"""Assumed: how many there are, the data say."""


def teacher_costs(task: RecognitionTask, recipe: Recognition) -> list[int]:
    """Multiply-adds of the recipe's teachers for one picture."""
    shape, found = (1, 3, *recipe.hr_size), []
    for teacher in recipe.seen_by:
        if (public := found_elsewhere(teacher, recipe, ())) is not None:
            found.append(public.facts["multiply_adds"] or 0)
        else:
            found.append(multiply_adds(task.build(teacher.network, recipe.hr_size, CLASSES), shape))
    return found


def work(
    task: RecognitionTask,
    recipe: Recognition,
    pictures: int,
    height: int,
    width: int,
    teachers: Sequence[int],
) -> Work:
    """What a recipe does to `pictures` of height x width pixels; the student is that of the first gap."""
    size, views = recipe.input_size(recipe.gaps[0]), recipe.data.views.count
    classes = len(recipe.data.classes) or CLASSES
    student = multiply_adds(task.build(recipe.student, size, CLASSES), (1, 3, *size))
    widths = [teacher.network.embedding + classes for teacher in recipe.seen_by]
    hr_height, hr_width = recipe.hr_size
    learns = recipe.method.name != "scratch"
    return Work(
        pictures=pictures,
        pixels=height * width,
        tiles=pictures,
        tile_bytes=(4 if recipe.masks else 3) * hr_height * hr_width,
        output_bytes=ITEM_BYTES * views * sum(widths) * learns,
        fused_bytes=ITEM_BYTES * views * sum(widths) * (learns and len(widths) > 1),
        teacher_ops=sum(teachers) * views * learns,
        fusion_training_ops=0.0,
        fusion_ops=0.0,
        step_ops=BACKWARD * recipe.train.batch * student,
        steps=recipe.train.steps,
        shard_bytes=recipe.cache.shard_mb * 1e6,
    )
