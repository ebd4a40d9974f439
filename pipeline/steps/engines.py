"""What the planner asks of whoever runs it, and the plain way to do it: in this process, one thing after the other.

The Ray engine (pipeline/engine) does the same over actors and workers. Both call the same functions in
pipeline/tasks, so a result does not tell which engine made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from pipeline.cache.format import Receipt
from pipeline.progress import Line
from pipeline.recipe.recipe import Teach
from pipeline.recipe.settings import Gpus
from pipeline.steps.job import Job, Listener
from pipeline.steps.overlap import Overlapped
from pipeline.steps.values import Network, OutputStep
from pipeline.tracking import NullTracker, RunTracker

T = TypeVar("T")
R = TypeVar("R")
Taught = Callable[[str, Receipt, dict[str, float]], None]


class Engine(Protocol):
    """Runs the stages' functions somewhere. Exceptions come back as they were raised."""

    name: str

    def device_kind(self, gpus: Gpus) -> str:
        """`cuda` or `cpu`: what work that asks for this share of a GPU gets."""
        ...

    def devices(self) -> str:
        """What there is to compute on, for people."""
        ...

    def abreast(self, gpus: Gpus) -> int:
        """How many items of a `map` that ask for this share of a GPU are under way at a time."""
        ...

    def warm(self) -> None:
        """Work is coming: what takes time to start may do so now, beside whatever the caller still does."""
        ...

    def map(self, function: Callable[[T, str], R], items: Sequence[T], *, gpus: Gpus = 0.0) -> Iterator[R]:
        """`function(item, device)` for every item, results in the order in which they finish."""
        ...

    def teach(
        self,
        tasks: Mapping[str, tuple[Network, Sequence[OutputStep]]],
        settings: Teach,
        taught: Taught,
        moved: Callable[[float], None],
    ) -> None:
        """Run every network's steps; `taught(label, receipt, stats)` after each committed shard, and now and then
        `moved(samples)`: those that are computed and not yet committed.
        """
        ...

    def train(
        self, jobs: Sequence[Job], lines: Mapping[str, Line], handles: Mapping[str, dict[str, Any]]
    ) -> None:
        """Run every job to its end. `lines` show steps by label, `handles` say where its curves are recorded."""
        ...

    def close(self) -> None:
        """Release what was started."""
        ...


class InlineEngine:
    """This process alone: no cluster, no fan-out. What `--inline` runs, and what the Ray engine is measured against."""

    name = "inline"

    def __init__(
        self,
        device: str | None = None,
        resume: Callable[[Mapping[str, Any]], RunTracker] | None = None,
    ) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.resume = resume or (lambda handle: NullTracker())

    def device_kind(self, gpus: Gpus) -> str:
        return self.device.split(":")[0]

    def devices(self) -> str:
        gpu = f", {torch.cuda.get_device_name(self.device)}" if self.device.startswith("cuda") else ""
        threads = torch.get_num_threads()
        return f"this process, {threads} CPU thread{'s' * (threads != 1)}{gpu or ', no GPU'}"

    def abreast(self, gpus: Gpus) -> int:
        return 1

    def warm(self) -> None:
        """Nothing to start."""

    def map(self, function: Callable[[T, str], R], items: Sequence[T], *, gpus: Gpus = 0.0) -> Iterator[R]:
        for item in items:
            yield function(item, self.device)

    def teach(
        self,
        tasks: Mapping[str, tuple[Network, Sequence[OutputStep]]],
        settings: Teach,
        taught: Taught,
        moved: Callable[[float], None] = lambda samples: None,
    ) -> None:
        for label, (network, todo) in tasks.items():
            for receipt, stats in Overlapped(network, todo[0].cache, self.device).all(todo, moved):
                taught(label, receipt, stats)

    def train(
        self, jobs: Sequence[Job], lines: Mapping[str, Line], handles: Mapping[str, dict[str, Any]]
    ) -> None:
        for job in jobs:
            tracker = self.resume(handles.get(job.label, {}))
            lines[job.label].to(0)
            try:
                job.run(device=self.device, listener=with_line(tracked(tracker), lines[job.label]))
            finally:
                tracker.close()

    def close(self) -> None:
        """Nothing was started."""


def tracked(tracker: RunTracker) -> Listener:
    """A listener that records a training's values and pictures."""
    return Listener(log=tracker.metrics, picture=partial(tracker.image, "held_out"))


def with_line(listener: Listener, line: Line) -> Listener:
    """The listener, also moving a progress line."""

    def log(values: dict[str, float], step: int) -> None:
        line.to(step, note_of(values))
        if listener.log is not None:
            listener.log(values, step)

    return Listener(log=log, picture=listener.picture, sync=listener.sync, say=lambda text: line.to(0, text))


def note_of(values: dict[str, float]) -> str:
    """The few figures that fit on a progress line."""
    shown = {
        "train/loss": "loss {:.4f}",
        "held_out/fidelity": "held-out fidelity {:.2f} dB",
        "held_out/psnr_y": "held-out {:.2f} dB",
        "held_out/accuracy": "held-out accuracy {:.3f}",
        "held_out/tar@far=0.01": "held-out TAR {:.3f}",
        "held_out/map": "held-out mAP {:.3f}",
        "held_out/rank1": "held-out rank-1 {:.3f}",
        "held_out/iou": "held-out IoU {:.3f}",
    }
    return "  ".join(text.format(values[key]) for key, text in shown.items() if key in values)
