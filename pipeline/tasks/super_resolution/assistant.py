"""A network of our own whose outputs are cached as a teacher's are: an assistant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.cost import multiply_adds
from pipeline.steps.job import Job
from pipeline.training import weights
from students import build, deployed

VERSION = 1


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """What a training made, by value."""

    label: str
    architecture: str
    options: dict[str, Any]
    scale: int
    path: str
    """Its weights, in the cache."""
    sha256: str
    """Follows from its weights."""

    @property
    def multiply_adds(self) -> int:
        """For one 48 x 48 LR tile."""
        return multiply_adds(build(self.architecture, self.scale, **self.options), (1, 3, 48, 48))

    def open(self, cache: str, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The network, ready to run: (B, 3, h, w) in [0, 1] -> (B, 3, scale h, scale w)."""
        net = build(self.architecture, self.scale, **self.options)
        net.load_state_dict(load(weights.read(Store.open(cache), self.path)))
        ready = deployed(net).to(device).eval()

        @torch.inference_mode()
        def enlarge(lr: torch.Tensor) -> torch.Tensor:
            return ready(lr)

        return enlarge

    def identity_on(self, tiles_folder: str, dtype: str) -> dict[str, object]:
        """Everything that shapes its pixels."""
        return {"version": VERSION, "tiles": tiles_folder, "sha256": self.sha256, "dtype": dtype}

    def folder(self, tiles_folder: str, dtype: str) -> str:
        """Where the output shards lie."""
        print_ = fingerprint(self.identity_on(tiles_folder, dtype))
        return f"outputs/{tiles_folder.split('/')[-1]}/assistant-{print_}"


def trained(job: Job) -> TrainedNetwork:
    """The network that a job made."""
    student = job.spec.student
    place = f"{job.folder}/{weights.WEIGHTS}"
    return TrainedNetwork(job.label, student.name, student.options, job.spec.scale, place, job.fingerprint)
