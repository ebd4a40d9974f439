"""Methods by name: each in a file of its own, for the tasks that it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.methods import dukd, horkd, kd, pisr, rkd, scratch
from pipeline.methods import mtkd as mtkd_
from pipeline.methods.base import Phase, PhaseBuilder

SUPER_RESOLUTION = "super-resolution"
RECOGNITION = ("classification", "verification", "retrieval", "segmentation")


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """A method: its phases, and what it reads from the cache beside its samples, in words."""

    target: str
    summary: str
    phases: Callable[[Any, Any, Any], list[PhaseBuilder]] | None = None
    """For super-resolution: (settings, training, makes a student) -> phases; None where it does not serve it."""
    recogniser: Callable[..., Phase] | None = None
    """For recognition: (lesson, student) -> its phase at LR; None where it does not serve it."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that it serves."""
        return ((SUPER_RESOLUTION,) if self.phases else ()) + (RECOGNITION if self.recogniser else ())


METHODS: dict[str, MethodEntry] = {
    "scratch": MethodEntry(
        "none", "the student alone on its task", phases=scratch.scratch, recogniser=scratch.recogniser
    ),
    "kd": MethodEntry(
        "teacher", "outputs of one teacher, or of several fused", phases=kd.kd, recogniser=kd.recogniser
    ),
    "mtkd": MethodEntry(
        "fused", "several teachers fused, wavelet distillation (ECCV 2024)", phases=mtkd_.mtkd
    ),
    "pisr": MethodEntry(
        "none or fused", "a teacher that sees HR: its start and its features (ECCV 2020)", phases=pisr.pisr
    ),
    "dukd": MethodEntry(
        "fused or teacher", "upcycled views, label consistency (arXiv 2309.14162)", phases=dukd.dukd
    ),
    "rkd": MethodEntry(
        "teacher", "labels, features, pairs, MMD, an adversary (TIP 2021)", recogniser=rkd.recogniser
    ),
    "horkd": MethodEntry(
        "teacher and assistant",
        "relations of four orders through an assistant (AAAI 2020)",
        recogniser=horkd.recogniser,
    ),
}
PICTURES = {name: entry.phases for name, entry in METHODS.items() if entry.phases is not None}
"""Those of super-resolution, by their phases."""
