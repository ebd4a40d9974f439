"""What there is to do for a super-resolution recipe, counted before it is run."""

from __future__ import annotations

from dataclasses import replace

from pipeline.cost import multiply_adds
from pipeline.data.tiles import Grid, positions
from pipeline.errors import InputError
from pipeline.recipe.fusion import Aggregate
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import upcycle_of
from pipeline.steps.forecast import BACKWARD, Work
from pipeline.tasks.super_resolution.teacher_facts import opened, operations
from students import build, deployed

ITEM_BYTES = {"uint8": 1, "float16": 2}


def passes(recipe: Recipe) -> int:
    """How often a step runs the student on its samples: dukd's consistency takes a second time."""
    return 2 if getattr(recipe.method, "consistency", 0) != 0 else 1


def work(
    recipe: Recipe,
    pictures: int,
    height: int,
    width: int,
    teacher_macs: list[int],
    student_macs: int,
    fusion_macs: int = 0,
) -> Work:
    """What a recipe does to `pictures` HR pictures of height x width pixels.

    `teacher_macs` and `student_macs` are multiply-adds for a 48 x 48 LR input, `fusion_macs` the aggregation network's.
    """
    grid = Grid(scale=recipe.scale, size=recipe.data.tile, margin=recipe.data.margin)
    lr_side, item = grid.lr_size, ITEM_BYTES[recipe.cache.dtype]
    hr_bytes = 3 * grid.size**2
    tiles = pictures * len(positions(height, width, grid))
    per_lr_pixel = 1 / 48**2
    target = recipe.method.target == "fused"
    training, running = 0.0, 0.0
    if isinstance(recipe.fusion, Aggregate) and target:
        t = recipe.fusion.train
        training = fusion_macs * per_lr_pixel * BACKWARD * t.steps * t.batch * t.patch**2
        running = fusion_macs * per_lr_pixel * tiles * lr_side**2
    return Work(
        pictures=pictures,
        pixels=height * width,
        tiles=tiles,
        tile_bytes=hr_bytes + 3 * lr_side**2,
        output_bytes=len(teacher_macs) * hr_bytes * item,
        fused_bytes=hr_bytes * item if target else 0,
        teacher_ops=round(sum(teacher_macs) * per_lr_pixel * lr_side**2),
        fusion_training_ops=training,
        fusion_ops=running,
        step_ops=round(
            passes(recipe)
            * BACKWARD
            * recipe.train.batch
            * student_macs
            * per_lr_pixel
            * recipe.train.patch**2
        ),
        steps=recipe.train.steps,
        shard_bytes=recipe.cache.shard_mb * 1e6,
    )


def with_views(once: Work, recipe: Recipe) -> Work:
    """The work of a recipe whose degradation makes several LR of a tile, or that upcycles tiles, which have no HR."""
    views = getattr(recipe.data.degradation, "views", 1)
    upcycle = upcycle_of(recipe)
    more = sum(upcycle.counts.values()) if upcycle else 0
    tile_bytes = once.tile_bytes
    if more:
        alone = 3 * (recipe.data.tile // recipe.scale) ** 2
        tile_bytes = round((views * tile_bytes + more * alone) / (views + more))
    return replace(
        once,
        tiles=once.tiles * (views + more),
        tile_bytes=tile_bytes,
        fusion_ops=once.fusion_ops * (views + more),
    )


def teacher_costs(recipe: Recipe) -> list[int]:
    """Multiply-adds of the recipe's teachers for a 48 x 48 input; their checkpoints are opened for it."""
    costs = []
    for spec in recipe.teachers:
        teacher = opened(spec, recipe.scale).with_convention(**spec.convention)
        if (count := operations(teacher)) is None:
            found = f"{spec.label}, which does not tell"
            raise InputError("--teacher-macs", "the multiply-adds of every teacher", found, "Give them.")
        costs.append(count)
    return costs


def own_costs(recipe: Recipe, teachers: int) -> tuple[int, int]:
    """Multiply-adds of student and aggregation network for a 48 x 48 input."""
    fuses = isinstance(recipe.fusion, Aggregate) and teachers
    student = build(recipe.student.name, recipe.scale, **recipe.student.options)
    trained = multiply_adds(student, (1, 3, 48, 48))
    return trained, fusion_cost(recipe, teachers) if fuses else 0


def student_cost(recipe: Recipe, side: int) -> int:
    """Multiply-adds of the student as it ships, for an LR input of `side` x `side`."""
    student = build(recipe.student.name, recipe.scale, **recipe.student.options)
    return multiply_adds(deployed(student), (1, 3, side, side))


def fusion_cost(recipe: Recipe, teachers: int) -> int:
    """Multiply-adds of the aggregation network for the outputs of a 48 x 48 input."""
    from pipeline.methods.mtkd import network

    assert isinstance(recipe.fusion, Aggregate)
    side = 48 * recipe.scale
    fusion = network(recipe.fusion, teachers, recipe.scale)
    return multiply_adds(fusion, (1, teachers, 3, side, side))
