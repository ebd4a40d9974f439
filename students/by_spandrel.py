"""Any super-resolution architecture of spandrel as a student, untrained, by its name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError, reason
from teachers.spandrel_import import import_spandrel

_SCALE = ("scale", "upscale", "upscale_factor", "upscaling_factor", "up_scale")
_CHANNELS = ("num_in_ch", "num_out_ch")


class SpandrelStudent(nn.Module):
    """(B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w), with the padding that the architecture asks for."""

    def __init__(self, net: nn.Module, scale: int, requirements: Any) -> None:
        super().__init__()
        self.net, self.scale, self.requirements = net, scale, requirements

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        pad = importlib.import_module("spandrel.__helpers.size_req").pad_tensor
        # A copy where nothing was padded: some of the networks (RCAN) write into their input.
        padded, y = pad(x, self.requirements)
        y = self.net(y if padded else y.clone())
        return y[..., : height * self.scale, : width * self.scale]

    def spandrel_state_dict(self) -> dict[str, Tensor]:
        """The state dict under spandrel's own keys."""
        return self.net.state_dict()


def build_spandrel(name: str, scale: int, options: dict[str, Any]) -> SpandrelStudent:
    """An untrained network of the architecture `name`: its id (`PLKSR`) or its class (`RealPLKSR`).

    `options` are the class' own arguments, the scale and the three colours apart. The fresh state dict is loaded
    by spandrel once, so that a network which cannot be opened again, or has another scale, is refused at once.
    Raises InputError naming the allowed architectures or options.
    """
    registry = import_spandrel().MAIN_REGISTRY
    support, kind = _find(registry, name, scale)
    where = f"student spandrel:{name}"
    parameters = inspect.signature(getattr(kind.__init__, "__wrapped__", kind.__init__)).parameters
    allowed = [key for key in parameters if key not in ("self", *_SCALE)]
    for key in options:
        if key not in allowed:
            raise InputError(f"{where}, option {key}", f"one of {', '.join(allowed)}", "an unknown option")
    values = {key: scale for key in _SCALE if key in parameters}
    required = {key for key, p in parameters.items() if p.default is p.empty} - {"self", *_SCALE}
    values |= {key: 3 for key in _CHANNELS if key in required} | options
    if missing := sorted(required - values.keys()):
        raise InputError(
            where, f"a value for {', '.join(missing)}", "none", f"Options: {', '.join(allowed)}."
        )
    try:
        net = kind(**values)
        state = net.state_dict()
        found = next((a for a in registry.architectures("detection") if a.detect(state)), None)
        if found is not support:
            raise ValueError(
                f"its state dict is read as {found.architecture.id if found else 'nothing known'}"
            )
        descriptor = support.architecture.load(dict(state))
        student = SpandrelStudent(net, scale, descriptor.size_requirements).eval()
        with torch.no_grad():
            size = tuple(student(torch.zeros(1, 3, 16, 16)).shape)
    except Exception as error:  # third-party constructors fail in their own ways on a wrong value
        raise InputError(where, f"hyper-parameters that fit ({options})", reason(error)) from error
    if descriptor.scale != scale or size != (1, 3, 16 * scale, 16 * scale):
        remedy = "Its `upsampler` option decides." if "upsampler" in allowed else ""
        found_text = f"scale {descriptor.scale}, 16x16 pixels to {size}"
        raise InputError(where, f"a network from RGB to RGB of scale {scale}", found_text, remedy)
    return student.train()


def _find(registry: Any, name: str, scale: int) -> tuple[Any, type[nn.Module]]:
    """The registry's entry and the network's class. RealCUGAN has one class a scale: the one that fits."""
    for support in registry:
        module = importlib.import_module(type(support.architecture).__module__)
        kinds = [getattr(module, key) for key in module.__all__ if key != type(support.architecture).__name__]
        named = [kind for kind in kinds if kind.__name__ == name]
        if named:
            return support, named[0]
        if support.architecture.id == name:
            return support, next((kind for kind in kinds if kind.__name__.endswith(f"{scale}x")), kinds[0])
    known = ", ".join(sorted(str(support.architecture.id) for support in registry))
    raise InputError("student", f"spandrel:<Id> with one of {known}", f"spandrel:{name}")
