"""What a super-resolution method costs in multiply-adds, its phases before the student and its teachers included."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.cost import multiply_adds
from pipeline.data.tiles import Grid
from pipeline.methods.taps import Until, layer_of
from pipeline.recipe.fusion import Aggregate
from pipeline.recipe.methods import PISR
from pipeline.recipe.recipe import Recipe, Student
from pipeline.recipe.settings import Train
from pipeline.steps.forecast import BACKWARD, Effort
from pipeline.steps.values import Prepared
from pipeline.tasks.super_resolution.jobs import one_teacher
from pipeline.tasks.super_resolution.privileged import decoder_of
from pipeline.tasks.super_resolution.work import fusion_cost, passes
from students import build
from students.colour import colours_of
from teachers.privileged import Encoder, Privileged

SIDE = 48
"""LR pixels a side of the picture that networks are counted on; steps and tiles follow by their area."""


def effort(recipe: Recipe, prepared: Prepared) -> Effort:
    """Of the recipe's method, on these samples and teachers."""
    tiles = prepared.samples.train.rows
    lr_side = Grid(scale=recipe.scale, size=recipe.data.tile, margin=recipe.data.margin).lr_size
    area = tiles * lr_side**2 / SIDE**2
    """All training tiles in pictures of SIDE x SIDE."""
    teaching = fusing = 0.0
    if recipe.method.target == "teacher":
        teaching = area * (one_teacher(recipe, prepared).network.multiply_adds or 0)
    elif recipe.method.target == "fused":
        teaching = area * sum(t.network.multiply_adds or 0 for t in prepared.teachers)
        if isinstance(recipe.fusion, Aggregate):
            macs = fusion_cost(recipe, len(prepared.teachers))
            fusing = macs * (BACKWARD * seen(recipe.fusion.train) * recipe.fusion.train.steps + area)
    step = passes(recipe) * BACKWARD * counted(made(recipe.student, recipe.scale)) * seen(recipe.train)
    helper = (0.0, 0.0)
    if isinstance(recipe.method, PISR):
        teacher = _privileged(recipe)
        step += _guide(recipe, teacher) * seen(recipe.train)
        if not recipe.method.checkpoint:
            helper = _helper(_on_hr(teacher, recipe), recipe.method.pretrain, recipe.train)
    elif (assistant := getattr(recipe.method, "assistant", None)) is not None:
        macs = counted(made(Student(name=assistant.name, options=assistant.options), recipe.scale))
        helper = _helper(macs, assistant.train, recipe.train)
        helper = helper[0], helper[1] + macs * area
    return Effort(step, *helper, teaching=teaching, fusing=fusing)


def made(student: Student, scale: int) -> nn.Module:
    """An untrained network."""
    return build(student.name, scale, **student.options)


def counted(network: nn.Module, side: int = SIDE) -> int:
    """Multiply-adds for what it is trained on: luma alone, where it enlarges luma alone."""
    colours = colours_of(network.decoder if isinstance(network, Privileged) else network)
    return multiply_adds(network, (1, colours, side, side))


def seen(train: Train) -> float:
    """What a step looks at, in pictures of SIDE x SIDE."""
    return train.batch * train.patch**2 / SIDE**2


def _helper(macs: int, own: Train | None, train: Train) -> tuple[float, float]:
    """(multiply-adds for each step of the student, multiply-adds of a length of its own) of what is trained first."""
    if own is None:
        return BACKWARD * macs * seen(train), 0.0
    return 0.0, BACKWARD * macs * seen(own) * own.steps


def _privileged(recipe: Recipe) -> nn.Module:
    """PISR's teacher, untrained."""
    assert isinstance(recipe.method, PISR)
    decoder = decoder_of(recipe)()
    if recipe.method.teacher == "larger":
        return decoder
    return Privileged(Encoder(recipe.scale, colours=colours_of(decoder)), decoder)


def _on_hr(teacher: nn.Module, recipe: Recipe) -> int:
    """Multiply-adds of PISR's teacher for the picture that it sees."""
    return counted(teacher, SIDE * (recipe.scale if isinstance(teacher, Privileged) else 1))


def _guide(recipe: Recipe, teacher: nn.Module) -> int:
    """Multiply-adds of PISR's teacher as far as it runs in a step of the student."""
    method = recipe.method
    assert isinstance(method, PISR)
    if method.vid == 0 and method.relational == 0:
        return 0
    guide = _Guide(teacher, layer_of(decoder_of(recipe)(), method.layer))
    privileged = isinstance(teacher, Privileged)
    side, colours = SIDE * (recipe.scale if privileged else 1), colours_of(decoder_of(recipe)())
    return multiply_adds(guide, (1, colours, side, side))


class _Guide(nn.Module):
    """The teacher up to the layer whose features are compared."""

    def __init__(self, teacher: nn.Module, layer: str) -> None:
        super().__init__()
        self.teacher = teacher
        self.until = Until(teacher.decoder if isinstance(teacher, Privileged) else teacher, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.until(self.teacher.code(x) if isinstance(self.teacher, Privileged) else x)
