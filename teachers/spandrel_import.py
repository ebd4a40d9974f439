"""Imports spandrel whether torchvision works, is broken or is absent.

Two of spandrel's 42 architectures (LaMa and RestoreFormer, neither super-resolution) import three names from
`torchvision.transforms.functional`, and the registry imports every architecture. PyPI's torchvision does not
even import beside a CPU build of torch. So where the real one cannot be imported, those three names are lent for
the time of the import and then taken away again: nobody else sees a torchvision that is not one.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import importlib.machinery
import itertools
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NoReturn

from torch import Tensor

log = logging.getLogger(__name__)
_lock = threading.Lock()


class InterpolationMode(enum.Enum):
    NEAREST = "nearest"
    BILINEAR = "bilinear"


def normalize(x: Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Tensor:
    """(..., C, H, W) minus the mean, over the standard deviation of each channel."""
    shift, factor = (x.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    return x.sub_(shift).div_(factor) if inplace else (x - shift) / factor


def rotate(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError("rotating tensors needs a torchvision that works with this torch")


def torchvision_works() -> bool:
    try:
        importlib.import_module("torchvision.transforms.functional")
    except (
        Exception
    ) as error:  # a broken build raises whatever its loader raises, RuntimeError and OSError among it
        log.debug("torchvision cannot be imported: %s", error)
        return False
    return True


@contextlib.contextmanager
def lent_torchvision() -> Iterator[None]:
    """Puts `torchvision.transforms.functional` with the three names into sys.modules, then takes it out."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "torchvision"}
    for name in before:
        del sys.modules[name]
    lent = [ModuleType(name) for name in names]
    for module, inner in itertools.pairwise(lent):
        module.__path__ = []
        setattr(module, inner.__name__.rpartition(".")[2], inner)
    for module in lent:
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    vars(lent[-1]).update(InterpolationMode=InterpolationMode, normalize=normalize, rotate=rotate)
    sys.modules.update(zip(names, lent))
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def import_spandrel() -> ModuleType:
    """The module `spandrel`, in this process. Safe to call from any thread, as often as wanted."""
    with _lock:
        if "spandrel" in sys.modules or torchvision_works():
            return importlib.import_module("spandrel")
        with lent_torchvision():
            return importlib.import_module("spandrel")
