"""What there is to do for a recognition recipe, counted before it is run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from pipeline.cost import multiply_adds
from pipeline.recipe.recognition_methods import HORKD
from pipeline.steps.forecast import BACKWARD, Effort, Work
from pipeline.steps.values import Prepared
from pipeline.tasks.recognition.elsewhere import found_elsewhere
from pipeline.tasks.recognition.fusion import FUSED
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.teachers import chosen

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
    """What a recipe does to `pictures` of height x width pixels; a step is the mean of those of its gaps."""
    sizes, views = [recipe.input_size(gap) for gap in recipe.trained_gaps], recipe.data.views.count
    classes = len(recipe.data.classes) or CLASSES
    student = fmean(multiply_adds(task.build(recipe.student, s, CLASSES), (1, 3, *s)) for s in sizes)
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
        step_ops=round(BACKWARD * recipe.train.batch * student),
        steps=recipe.train.steps,
        shard_bytes=recipe.cache.shard_mb * 1e6,
    )


def effort(task: RecognitionTask, recipe: Recognition, prepared: Prepared) -> Effort:
    """Multiply-adds of the recipe's method at its first gap, on these samples and teachers."""
    method, train, classes = recipe.method, recipe.train, task.answers(prepared.samples.classes)
    size = recipe.input_size(recipe.gaps[0])
    step = BACKWARD * train.batch * multiply_adds(task.build(recipe.student, size, classes), (1, 3, *size))
    if method.name == "scratch":
        return Effort(step)
    views = prepared.samples.train.rows * recipe.data.views.count
    costs, specs, labels = teacher_costs(task, recipe), recipe.seen_by, [t.label for t in prepared.teachers]
    alone = chosen(recipe, prepared)
    read = [i for i, label in enumerate(labels) if alone.label in (label, FUSED)]
    running = sum(costs[i] for i in read)
    training = 0.0
    for i in read:
        if prepared.teachers[i].job is not None and (own := specs[i].train) is not None:
            training += BACKWARD * costs[i] * own.batch * own.steps
    online = recipe.cache.online
    step += running * train.batch * online
    helper = fixed = 0.0
    if isinstance(method, HORKD) and method.assistant:
        network = task.build(recipe.student, recipe.hr_size, classes)
        macs, apart = multiply_adds(network, (1, 3, *recipe.hr_size)), method.assistant_train
        each = (apart or train).batch * (BACKWARD * macs + running * online)
        helper, fixed = (each, 0.0) if apart is None else (0.0, each * apart.steps)
        fixed += macs * views
    teaching = running * views * (not online)
    return Effort(step, helper, fixed, teaching=teaching, training=training)
