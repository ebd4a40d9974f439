"""Methods by name. `target` says which cached pictures a method reads beside LR and HR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.methods.base import PhaseBuilder
from pipeline.methods.baseline import kd, scratch
from pipeline.methods.mtkd import mtkd


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method: its phases, and the target that it needs from the cache."""

    phases: Callable[[Any, Any, Any], list[PhaseBuilder]]
    target: Literal["none", "teacher", "fused"]
    summary: str


METHODS: dict[str, MethodEntry] = {
    "scratch": MethodEntry(scratch, "none", "the student alone, L1 against HR"),
    "kd": MethodEntry(kd, "teacher", "one teacher, L1 on outputs"),
    "mtkd": MethodEntry(mtkd, "fused", "several teachers fused, wavelet distillation (ECCV 2024)"),
}
