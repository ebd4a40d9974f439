"""A sixth task from this file alone, the package untouched: the angle of a slope, whole runs here and over Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from recognition_kit import BUDGET, content
from road_kit import hashes
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.cli import main
from pipeline.deploy.onnx_file import onnx_session
from pipeline.report.table import Metric
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition import drawings
from pipeline.tasks.recognition.answers import answers_of
from pipeline.tasks.recognition.opening import load_recogniser
from pipeline.tasks.recognition.recipe import Recognition, TaskLoss
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.task import RecognitionTask

ANGLES = 8


class AngleRecipe(Recognition):
    task: Literal["test_toy_task:Angle"]  # type: ignore[assignment]


class Angle(RecognitionTask):
    """The direction in which a picture becomes brighter, as a point on the unit circle."""

    name = "angle"
    recipe = AngleRecipe
    figures = (Metric("cosine", "cosine", 4), Metric("within", "within 15 degrees", 4))
    logits = "(batch, 2), cosine and sine of the angle"

    def answers(self, classes: Sequence[str]) -> int:
        return 2

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], settings: TaskLoss) -> Tensor:
        return F.mse_loss(outputs["logits"].float(), circle(batch["label"]))

    def imitate(self, own: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return F.mse_loss(own.float(), teacher)

    def mean_of(self, logits: Sequence[Tensor], shares: Tensor, temperature: float) -> Tensor:
        return torch.stack([z * share for z, share in zip(logits, shares, strict=True)]).sum(0)

    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        found = torch.from_numpy(answers_of(model, gallery, recipe, gap, device, "logits"))
        cosine = F.cosine_similarity(found, circle(torch.from_numpy(gallery.labels)))
        off = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
        shares = [float((off <= limit).float().mean()) for limit in range(181)]
        return {"cosine": float(cosine.mean()), "within": shares[15]}, {"off": shares}

    def drawn(self, run: Any, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        lines = {name: [list(range(181)), found["off"]] for name, found in curves.items()}
        words = ("Pictures whose angle is found to within so many degrees", "degrees", "pictures")
        return {"angles": drawings.curve(lines, *words, logarithmic=False)}


def circle(labels: Tensor) -> Tensor:
    """(n,) numbers of angles -> (n, 2) points."""
    angle = labels.double() * (2 * math.pi / ANGLES)
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()


def recipe_file(root: Path) -> Path:
    generator, y = np.random.default_rng(0), np.arange(240) % ANGLES
    grid = np.linspace(-1, 1, 16)
    slopes = circle(torch.from_numpy(y)).numpy() * generator.uniform(40, 90, (240, 1))
    x = 128 + slopes[:, 0, None, None] * grid + slopes[:, 1, None, None] * grid[:, None]
    noisy = (x + generator.normal(0, 8, x.shape)).clip(0, 255).astype(np.uint8)
    np.savez(root / "slopes.npz", allow_pickle=False, x=noisy, y=y)
    network = {"name": "resnet8", "options": {"width": 4}, "embedding": 8}
    train = {**BUDGET, "steps": 30, "evaluate_every": 15}
    settings = content(root, task="test_toy_task:Angle", train=train, method={"name": "kd"})
    settings |= {"data": {"layout": "npz", "root": str(root / "slopes.npz"), "size": 16}}
    settings["teachers"] = [
        {"name": n, "network": network, "train": train, "seed": i} for i, n in enumerate("ab")
    ]
    del settings["teacher"]
    (root / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return root / "recipe.yaml"


def run(root: Path, *options: str) -> Any:
    root.mkdir()
    assert main(["run", str(recipe_file(root)), "--json", str(root / "out.json"), *options]) == 0
    return json.loads((root / "out.json").read_text())


def test_a_task_of_ones_own_runs_to_its_report(tmp_path: Path) -> None:
    here = run(tmp_path / "a", "--inline")
    assert [set(here) & {"teacher-a", "teacher-b", "fused"}] == [{"teacher-a", "teacher-b", "fused"}]
    assert here["rows"][1]["method"] == "kd" and {"cosine", "within"} <= set(here["rows"][1])
    assert here["fused"]["cosine"] > 0.5 and here["rows"][1]["cosine"] > 0.5
    assert "within so many degrees" in Path(here["report"]).read_text()
    net, _ = load_recogniser(file := here["students"]["kd-resnet8-x2-s0"])
    logits = onnx_session(Path(file).with_suffix(".onnx").read_bytes())(x := torch.rand(2, 3, 8, 8))[0]
    torch.testing.assert_close(logits, net(x)["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray_it_gives_what_it_gives_here(tmp_path: Path, ray_local: None) -> None:
    here, there = run(tmp_path / "a", "--inline"), run(tmp_path / "b")
    assert [r["cosine"] for r in here["rows"]] == [r["cosine"] for r in there["rows"]]
    for pattern in ("outputs/**/*.arrow", "networks/*/weights.safetensors"):
        assert len(hashes(tmp_path / "a/cache", pattern)) >= 3
        assert hashes(tmp_path / "a/cache", pattern) == hashes(tmp_path / "b/cache", pattern)
