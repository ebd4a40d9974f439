"""The settings of one teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from pipeline.recipe.settings import Name, Section, Unquoted


def convention(channels: str | None, value_range: int | None) -> dict[str, Any]:
    """The changes to a network's `Convention` that these settings stand for."""
    changes: dict[str, Any] = {} if channels is None else {"bgr": channels == "bgr"}
    return changes if value_range is None else {**changes, "value_range": float(value_range)}


class TeacherSpec(Section):
    """One pretrained network."""

    checkpoint: str = ""
    """A file (of tensors, or ONNX), or a name from `faculty teachers` such as `swinir-m-x4`."""
    factory: str | None = None
    """Instead: code of one's own, `package.module:function`, which returns a torch.nn.Module from (N, 3, h, w) RGB in
    [0, 1] to (N, 3, scale*h, scale*w). Its file and the options belong to the teacher's identity.
    """
    options: dict[str, Any] = {}
    """Keywords of the factory; files that they name belong to the teacher's identity."""
    name: Name | None = None
    """How reports call it; default: the checkpoint's name without its suffix."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 where the device has it, wide layers do most of the work, and it costs at most 0.005 dB."""
    gate: Annotated[Literal["check", "warn", "off"], Unquoted] = "check"
    """`check` refuses a network that certainly does not do what is said of it and warns of what may be wrong, `warn`
    only warns, `off` does not look.
    """
    channels: Literal["rgb", "bgr"] | None = None
    """Order of channels that the network wants; default: what is known of it."""
    value_range: Literal[1, 255] | None = None
    """What white is for the network; default: what is known of it."""
    self_ensemble: bool = False
    """Teach the mean of what it makes of each tile's eight moves (mirrored, turned): better by some hundredths of a dB,
    at eight times the time, once.
    """

    @model_validator(mode="after")
    def _one_source(self) -> TeacherSpec:
        if bool(self.checkpoint) == bool(self.factory):
            raise ValueError("a teacher needs a `checkpoint` or a `factory`, one of them")
        if self.options and not self.factory:
            raise ValueError("options are those of a `factory`")
        return self

    @property
    def changed(self) -> dict[str, Any]:
        """Of the gate, the channels, the value range and the ensemble, what is not the default."""
        names = ("gate", "channels", "value_range", "self_ensemble")
        return {n: v for n in names if (v := getattr(self, n)) != type(self).model_fields[n].default}

    @property
    def convention(self) -> dict[str, Any]:
        """What of the network's `Convention` the recipe sets."""
        ensemble = {"self_ensemble": True} if self.self_ensemble else {}
        return convention(self.channels, self.value_range) | ensemble

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Sweeps, sheets and records of before know nothing of these keys: at their defaults they are left out."""
        dumped: dict[str, Any] = handler(self)
        kept = self.changed
        later = {name: name in kept for name in ("gate", "channels", "value_range", "self_ensemble")}
        later |= {
            "factory": bool(self.factory),
            "options": bool(self.options),
            "checkpoint": not self.factory,
        }
        return {k: v for k, v in dumped.items() if later.get(k, True)}

    @property
    def label(self) -> str:
        stem = self.factory.partition(":")[2] if self.factory else Path(self.checkpoint).stem
        return self.name or re.sub(r"[^A-Za-z0-9._-]", "-", stem)
