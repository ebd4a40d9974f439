"""Scores of networks on the test pictures, with what they cost."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.store import Store
from pipeline.cost import multiply_adds, parameters
from pipeline.report.table import Metric
from pipeline.tasks.recognition import metrics
from pipeline.tasks.recognition.answers import answers_of
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.teach import Source

if TYPE_CHECKING:
    from pipeline.tasks.recognition.task import RecognitionTask

VERSION = 3
RUNS = 20
NEAREST = Metric("nearest", "nearest neighbour", 4)
"""The figure of an embedder that cannot be judged as the others are."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A network's figures."""

    label: str
    identity: str
    values: dict[str, float]
    """metric -> value in [0, 1], with `<metric>_low` and `<metric>_high`."""
    curves: dict[str, Any]
    """`confusion` and `reliability`, `roc` and `band`, or `cmc` and `answered`, as the task has it."""
    parameters: int
    multiply_adds: int | None
    """Of one picture at the network's own input size; None where nobody knows."""
    latency_ms: float
    """Of one picture on the machine that scored it, one thread: the median."""
    dropped: int
    """Strides of the stem that were dropped for small pictures."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Score one network on the test pictures."""

    task: RecognitionTask
    label: str
    recipe: dict[str, Any]
    gap: int
    source: Source
    root: str
    """Store with the weights."""
    pictures: str
    """Manifest of the test pictures, in the cache."""

    @property
    def identity(self) -> str:
        """Of the scores: network, pictures, gap and what the network gets."""
        recipe = self.recipe
        facts = [VERSION, self.source.identity, self.pictures, self.gap, recipe["input"], recipe["task"]]
        if "lr" in recipe and self.gap > 1:
            facts.append(recipe["lr"])
        if "lr_scored" in recipe and self.gap > 1:
            facts.append({"lr_scored": recipe["lr_scored"]})
        return fingerprint(facts)

    def run(self, device: str = "cpu") -> Scored:
        """Compute everything."""
        recipe = self.task.recipe.model_validate(self.recipe)
        cache = Store.open(recipe.cache.root)
        gallery = Gallery(cache, load_manifest(cache, self.pictures))
        net = self.source.load(Store.open(self.root), device)
        unasked = not self.source.classes and self.task.asks == "logits"
        judge = nearest if unasked else self.task.scores_at_the_end
        values, curves = judge(net, gallery, recipe, self.gap, device)
        if self.gap > 1 and not unasked:
            values |= self._under_others(net, gallery, recipe, device)
        shape = (1, 3, *self.source.size)
        # Of an ONNX file no module tells.
        counts = self.source.network if self.source.public else {}
        return Scored(
            label=self.label,
            identity=self.identity,
            values=values,
            curves=curves,
            parameters=counts["parameters"] if counts else parameters(net),
            multiply_adds=counts["multiply_adds"] if counts else multiply_adds(net, shape),
            latency_ms=latency(net, shape, device),
            dropped=net.dropped,
        )

    def _under_others(
        self, net: nn.Module, gallery: Gallery, recipe: Recognition, device: str
    ) -> dict[str, float]:
        """The task's first figure where LR arises in another of the recipe's ways."""
        found = {}
        others = self.task.metrics(recipe)[len(self.task.figures) :]
        for metric, kind in zip(others, recipe.other_degradations, strict=True):
            other = recipe.model_copy(update={"lr": kind})
            values, _ = self.task.scores(net, gallery, other, self.gap, device)
            found[metric.key] = values[self.task.figures[0].key]
        return found


def nearest(
    net: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """Of an embedder where figures are made from logits: whether a picture's nearest other one is of its class."""
    right = metrics.nearest(answers_of(net, gallery, recipe, gap, device, "embedding"), gallery.labels)
    low, high = metrics.interval(right.astype(float))
    return {NEAREST.key: float(right.mean()), f"{NEAREST.key}_low": low, f"{NEAREST.key}_high": high}, {}


@torch.inference_mode()
def latency(net: nn.Module, shape: tuple[int, ...], device: str) -> float:
    """Median time of one forward pass in milliseconds, on one CPU thread, or on the GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = torch.zeros(shape, device=device)
        times = []
        for _ in range(RUNS + 3):
            begun = time.perf_counter()
            net(x)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
        return 1000 * statistics.median(times[3:])
    finally:
        torch.set_num_threads(threads)
