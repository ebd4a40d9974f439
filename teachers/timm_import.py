"""Imports timm whether torchvision works, is broken or is absent.

timm's models need of torchvision one class for `isinstance`; its data half, which is imported with them, names
transforms and data sets that are of no use here. So where the real one cannot be imported, names are lent for the time
of the import (as for spandrel) and then taken away again.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from pipeline.errors import FacultyError
from teachers.spandrel_import import _lock, torchvision_works

MODULES = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.utils",
)


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class FrozenBatchNorm2d(nn.Module):
    """Stands for torchvision's, of which no network here has one."""


class _Lent(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        class Absent:
            def __init__(self, *args: object, **kwargs: object) -> None:
                raise RuntimeError(
                    f"{self.__class__.__name__} needs a torchvision that works with this torch"
                )

        Absent.__name__ = name
        return Absent


@contextlib.contextmanager
def lent_torchvision() -> Iterator[None]:
    """Puts stand-ins for what timm names into sys.modules, then takes them out."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    lent = {name: _Lent(name) for name in MODULES}
    for name, module in lent.items():
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        parent, _, inner = name.rpartition(".")
        if parent:
            setattr(lent[parent], inner, module)
    lent["torchvision.transforms.functional"].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    lent["torchvision.transforms"].InterpolationMode = InterpolationMode  # type: ignore[attr-defined]
    lent["torchvision.ops.misc"].FrozenBatchNorm2d = FrozenBatchNorm2d  # type: ignore[attr-defined]
    sys.modules.update(lent)
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def import_timm() -> ModuleType:
    """The module `timm`, in this process. Raises FacultyError where it is not installed."""
    with _lock:
        try:
            if "timm" in sys.modules or torchvision_works():
                return importlib.import_module("timm")
            with lent_torchvision():
                return importlib.import_module("timm")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "timm":
                raise
            raise FacultyError(
                "this backbone is one of timm's, and timm is not installed: pip install 'faculty[recognition]', or "
                "take one of the small ones (resnet8, resnet14, resnet20)"
            ) from error


__all__ = ["import_timm"]
