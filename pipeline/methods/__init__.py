"""Methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.methods.base import PhaseBuilder
from pipeline.methods.baseline import kd, scratch
from pipeline.methods.mtkd import mtkd
from pipeline.methods.pisr import pisr


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method: its phases, and what it reads from the cache beside LR and HR, in words."""

    phases: Callable[[Any, Any, Any], list[PhaseBuilder]]
    target: str
    summary: str


METHODS: dict[str, MethodEntry] = {
    "scratch": MethodEntry(scratch, "none", "the student alone, L1 against HR"),
    "kd": MethodEntry(kd, "teacher", "one teacher, L1 on outputs"),
    "mtkd": MethodEntry(mtkd, "fused", "several teachers fused, wavelet distillation (ECCV 2024)"),
    "pisr": MethodEntry(
        pisr, "none or fused", "a teacher that sees HR: its start and its features (ECCV 2020)"
    ),
}
