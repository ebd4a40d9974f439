"""Students: the networks that Faculty trains. One file a network; `build` makes one by name."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable
from typing import Any

import pydantic
from torch import nn

from pipeline.errors import InputError
from students.carn import CARN
from students.compact import Compact
from students.edsr import EDSR
from students.fsrcnn import FSRCNN
from students.idn import IDN
from students.rcan import RCAN
from students.span import SPAN, LinearBlock
from students.swinir_light import SwinIRLight
from students.vdsr import VDSR

_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "carn": CARN,
    "compact": Compact,
    "edsr": EDSR,
    "fsrcnn": FSRCNN,
    "idn": IDN,
    "rcan": RCAN,
    "span": SPAN,
    "swinir_light": SwinIRLight,
    "vdsr": VDSR,
}

SCALES = (1, 2, 3, 4)


def names() -> tuple[str, ...]:
    """Names that `build` takes, besides `spandrel:<Id>`."""
    return tuple(_NETWORKS)


def options(name: str) -> dict[str, Any]:
    """The hyper-parameters of a registered student with their defaults."""
    return {key: parameter.default for key, parameter in _signature(name).items()}


def build(name: str, scale: int, **options: Any) -> nn.Module:
    """Make an untrained student: NCHW RGB in [0, 1] -> NCHW RGB, `scale` times larger, not clamped.

    `name` is one of `names()` or `spandrel:<Id>` (any super-resolution architecture of spandrel, for instance
    `spandrel:PLKSR`); `options` are its hyper-parameters. The weights come from torch's global generator.
    Raises InputError for an unknown name, scale or option, or for a value that the option does not take.
    """
    if scale not in SCALES:
        raise InputError(f"student {name}", "scale 1, 2, 3 or 4", repr(scale))
    if name.startswith("spandrel:"):
        from students.by_spandrel import build_spandrel

        return build_spandrel(name.removeprefix("spandrel:"), scale, options)
    return network(name)(scale, **_checked(name, options))


def start(name: str) -> int:
    """Which start a student trains from, counted from 1: raised where its weights at step 0 became others, so that a
    training from earlier ones is not taken for one of today's."""
    return int(getattr(_NETWORKS.get(name), "START", 1))


def deployed(model: nn.Module) -> nn.Module:
    """A copy for use and for counting cost: every block that trains as several linear branches is one convolution."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for key, child in module.named_children():
            if isinstance(child, LinearBlock):
                setattr(module, key, child.deployed())
    return model


def network(name: str) -> Callable[..., nn.Module]:
    """The class of a registered student. Raises InputError for another name."""
    if name in _NETWORKS:
        return _NETWORKS[name]
    raise InputError("student", f"one of {', '.join(_NETWORKS)} or spandrel:<Id>", repr(name))


def _signature(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(network(name)).parameters
    return {key: p for key, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _checked(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options converted to their annotated types (a YAML list becomes a tuple)."""
    allowed = _signature(name)
    hints = typing.get_type_hints(network(name).__init__, include_extras=True)
    checked = {}
    for key, value in options.items():
        where = f"student {name}, option {key}"
        if key not in allowed:
            raise InputError(where, f"one of {', '.join(allowed)}", "an unknown option")
        try:
            checked[key] = pydantic.TypeAdapter(hints[key]).validate_python(value)
        except pydantic.ValidationError as error:
            reasons = {e["msg"].removeprefix("Input should be ") for e in error.errors()}
            raise InputError(where, " or ".join(sorted(reasons)), repr(value)) from None
    return checked
