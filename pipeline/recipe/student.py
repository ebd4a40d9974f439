"""The network that a run ends with, as a recipe describes it."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pipeline.recipe.settings import Later


class Student(Later):
    """The network that ships."""

    later: ClassVar[tuple[str, ...]] = ("expand",)

    name: str = "fsrcnn"
    """A name from `faculty students`, or `spandrel:<architecture>`."""
    options: dict[str, Any] = {}
    """Hyper-parameters of that network."""
    expand: Annotated[int, Field(ge=1, le=16)] = 1
    """Linear over-parameterisation while it is trained: each convolution is the product of two, with `expand` times its
    larger side between them (SESR, ECBSR, ExpandNets; 2 to 4). The plain network ships; 1 trains it as it is. An
    assistant and PISR's teacher train as they are. Adam moves a product further than a plain kernel at the same
    `train.lr`: a fair comparison tries lower ones for it, and higher ones without it."""

    @property
    def label(self) -> str:
        return re.sub(r"[^A-Za-z0-9._-]", "-", self.name)
