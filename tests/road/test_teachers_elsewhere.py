"""Classifiers made elsewhere as teachers: what is read, what they are given, their classes, their embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recognition_kit import content
from torch import nn
from torch.nn import functional as F

from pipeline.cache.rows import Rows
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.reading import checked
from pipeline.road.run import Run
from pipeline.steps.engines import Engine, InlineEngine
from pipeline.tasks.recognition.elsewhere import found_elsewhere
from pipeline.tasks.recognition.recipe import Recognition, RecognitionTeacher
from teachers.classifier import Boundary, Public, columns_of, open_classifier
from teachers.networks import cifar_resnet

DIGITS = tuple("0123456789")
FACTORY = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body, self.head = nn.Linear(3, 5), nn.Linear(5, classes)

    def forward(self, x):
        e = self.body(x.mean(dim=(-2, -1))).relu()
        return {"logits": self.head(e), "embedding": e}


def own(classes=10):
    return Own(classes)


def plain(classes=10):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, classes))


def certain(classes=10):
    return nn.Sequential(plain(classes), nn.Softmax(dim=1))


def maps():
    return nn.Conv2d(3, 3, 3)
"""


def resnet(classes: int = 10, projected: bool = False, seed: int = 0) -> cifar_resnet.CifarResNet:
    torch.manual_seed(seed)
    shortcuts = [[False, False], [projected, False], [projected, False]]
    network = cifar_resnet.CifarResNet([4, 8, 16], [2, 2, 2], shortcuts, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def saved(path: Path, classes: int = 10, projected: bool = False) -> str:
    """As the public ones are: below `state_dict`, from a network in DataParallel."""
    state = {f"module.{k}": v for k, v in resnet(classes, projected).state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.7}, path)
    return str(path)


def exported(path: Path, classes: int = 10, **options: Any) -> str:
    """The same network in ONNX, its normalisation left to whoever uses it."""
    torch.onnx.export(
        resnet(classes), (torch.rand(2, 3, 8, 8),), str(path), dynamo=False, input_names=["x"], **options
    )
    return str(path)


def recipe(root: Path, *teachers: dict[str, Any], **changes: Any) -> Recognition:
    base = content(root, **{"method": {"name": "kd"}, **changes})
    del base["teacher"]
    base["teachers"] = list(teachers)
    return checked(Recognition, base, "test")


def cached(
    root: Path, *teachers: dict[str, Any], engine: Engine | None = None
) -> list[dict[str, np.ndarray]]:
    """Every teacher's cached outputs of all training pictures and views."""
    road = Run(recipe(root, *teachers), engine or InlineEngine("cpu"), Quiet())
    prepared = road.prepare(["kd"])
    found = []
    for outputs in prepared.all[: len(teachers)]:
        assert outputs.cached is not None
        rows = Rows(road.planner.store, outputs.cached.train)
        every = np.arange(len(rows))
        found.append({name: rows.take(name, every).astype(np.float32) for name in ("logits", "embedding")})
    return found


def answer(x: torch.Tensor, network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, embedding) of the network, independently: normalised, its last layer's input."""
    seen: list[torch.Tensor] = []
    hook = network.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in cifar_resnet.STATISTICS)
    with torch.no_grad():
        logits = network((x - mean) / std)
    hook.remove()
    return logits, seen[0]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("projected", [False, True])
def test_a_cifar_resnet_is_built_as_its_tensors_say(tmp_path: Path, projected: bool) -> None:
    spec = RecognitionTeacher(checkpoint=saved(tmp_path / "net.th", projected=projected))
    found = found_elsewhere(spec, recipe(tmp_path, {"checkpoint": spec.checkpoint}), DIGITS)
    assert found is not None and found.public.kind == "cifar_resnet" and spec.label == "net"
    assert (found.facts["embedding"], found.facts["layer"]) == (16, "linear")
    opened = open_classifier(found.public, found.data, "here", (8, 8))
    x = torch.rand(5, 3, 8, 8)
    out, (logits, embedding) = opened(x), answer(x, resnet(projected=projected))
    torch.testing.assert_close(out["logits"], logits)
    torch.testing.assert_close(out["embedding"], embedding)


def test_onnx_gives_what_the_state_dict_gives(tmp_path: Path) -> None:
    mean, std = cifar_resnet.STATISTICS
    boundary = {"mean": list(mean), "std": list(std)}
    axes = {"dynamic_axes": {"x": {0: "n"}}}
    teachers = (
        {"checkpoint": saved(tmp_path / "net.th"), "name": "state"},
        {"checkpoint": exported(tmp_path / "free.onnx", **axes), "name": "free", "input": boundary},
        {"checkpoint": exported(tmp_path / "fixed.onnx"), "name": "fixed", "input": boundary},
    )
    state, *others = cached(tmp_path, *teachers)
    for other in others:
        for name in ("logits", "embedding"):
            np.testing.assert_allclose(other[name], state[name], atol=1e-4 + 2e-3 * np.abs(state[name]).max())


def test_factories_classes_and_probabilities(tmp_path: Path, module: str) -> None:
    reverse = [str(9 - n) for n in range(10)]
    own, plain, certain, turned = cached(
        tmp_path,
        {"factory": f"{module}:own"},
        {"factory": f"{module}:plain"},
        {"factory": f"{module}:certain", "name": "certain"},
        {"factory": f"{module}:plain", "name": "turned", "classes": reverse},
    )
    assert own["embedding"].shape[-1] == 5 and plain["embedding"].shape[-1] == 7
    np.testing.assert_array_equal(turned["logits"], plain["logits"][..., ::-1])
    soft = torch.from_numpy(plain["logits"]).log_softmax(-1).numpy()
    np.testing.assert_allclose(certain["logits"], soft, atol=5e-3)


def test_a_boundary_resizes_and_scales() -> None:
    x = torch.rand(2, 3, 8, 8)
    made = Boundary((12, 16), (10.0, 20.0, 30.0), (2.0, 4.0, 5.0), 255.0)(x)
    wide = F.interpolate(x, (12, 16), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    assert made.shape == (2, 3, 12, 16)
    torch.testing.assert_close(made[:, 1], (wide[:, 1] * 255 - 20) / 4)
    torch.testing.assert_close(Boundary()(x), x)


@pytest.mark.parametrize(
    ("answers", "own", "found"),
    [(3, (), ()), (3, ("a", "b", "c"), ()), (4, ("c", "x", "a", "b"), (2, 3, 0))],
)
def test_classes_are_matched_by_name(answers: int, own: tuple[str, ...], found: tuple[int, ...]) -> None:
    assert columns_of("here", answers, own, ("a", "b", "c")) == found


@pytest.mark.parametrize(
    ("answers", "own", "told"),
    [
        (5, (), "3 answers, for the data's classes a, b, c, found 5 without names"),
        (3, ("a", "b"), "3 names, one for each answer of the network, found 2"),
        (3, ("a", "b", "d"), "among the network's: a, b, c, found no c in a, b, d"),
    ],
)
def test_classes_that_do_not_match_are_refused_with_both_lists(
    answers: int, own: tuple[str, ...], told: str
) -> None:
    with pytest.raises(InputError, match="here") as caught:
        columns_of("here", answers, own, ("a", "b", "c"))
    assert told in str(caught.value)


def test_what_is_no_classifier_is_refused(tmp_path: Path, module: str) -> None:
    def refused(told: str, **teacher: Any) -> None:
        with pytest.raises((InputError, ValueError), match=told):
            settings = recipe(tmp_path, teacher)
            found_elsewhere(settings.teachers[0], settings, DIGITS)

    refused("logits .N, classes., or a table", factory=f"{module}:maps")
    refused(
        "10 answers, for the data's classes 0, 1, .*found 4 without names",
        factory=f"{module}:plain",
        options={"classes": 4},
    )
    refused("not both", factory=f"{module}:plain", checkpoint="x.th")
    refused("needs `pretrained: true` or a `checkpoint`", timm="resnet18")
    (tmp_path / "text.onnx").write_text("no network")
    refused("text.onnx: expected an ONNX network", checkpoint=str(tmp_path / "text.onnx"))
    refused(
        "names of .*found nothing", checkpoint=exported(tmp_path / "n.onnx"), outputs={"embedding": "nothing"}
    )
    with pytest.raises((InputError, ValueError), match="classes or embeddings, not segmentation"):
        recipe(tmp_path, {"factory": f"{module}:plain"}, task="segmentation")


def test_a_whole_timm_classifier(tmp_path: Path) -> None:
    from teachers.timm_import import import_timm

    torch.manual_seed(0)
    network = import_timm().create_model("resnet10t", num_classes=10).eval()
    file = tmp_path / "timm.pth"
    torch.save(network.state_dict(), file)
    spec = RecognitionTeacher(timm="resnet10t", checkpoint=str(file), input={"size": 32})
    found = found_elsewhere(spec, recipe(tmp_path, spec.model_dump()), DIGITS)
    assert found is not None
    opened = open_classifier(found.public, found.data, "here", (8, 8))
    x = torch.rand(2, 3, 8, 8)
    boundary = found.public.boundary
    assert boundary.size == (32, 32) and boundary.mean == tuple(network.default_cfg["mean"])
    with torch.no_grad():
        torch.testing.assert_close(opened(x)["logits"], network(boundary(x)))
        features = network.forward_head(network.forward_features(boundary(x)), pre_logits=True)
        torch.testing.assert_close(opened(x)["embedding"], features)


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray_they_give_what_they_give_here(ray_local: None, tmp_path: Path) -> None:
    from pipeline.engine.ray_engine import RayEngine

    teachers = (
        {"checkpoint": saved(tmp_path / "net.th"), "name": "net"},
        {"checkpoint": exported(tmp_path / "graph.onnx")},
    )
    here = cached(tmp_path / "here", *teachers)
    there = cached(tmp_path / "there", *teachers, engine=RayEngine())
    for one, other in zip(here, there, strict=True):
        for name in one:
            np.testing.assert_allclose(other[name], one[name], atol=2e-3)


def test_the_public_ones_are_as_good_as_they_are_said_to_be(shared: Path, tmp_path: Path) -> None:
    data = np.load(shared / "data/recognition/cifar10_25k/cifar10_25k.npz")
    x = torch.from_numpy(data["x_test"][::5]).permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(data["y_test"][::5]).long()
    found = {}
    for depth in (20, 56):
        spec = RecognitionTeacher(checkpoint=str(shared / f"weights/recognition/cifar10_resnet{depth}.th"))
        settings = recipe(tmp_path, {"checkpoint": spec.checkpoint}, data={"layout": "digits", "size": 32})
        made = found_elsewhere(spec, settings, DIGITS)
        assert made is not None
        with torch.inference_mode():
            out = open_classifier(made.public, made.data, "here", (32, 32))(x)
        found[depth] = float((out["logits"].argmax(1) == labels).float().mean())
    assert 0.78 < found[20] < 0.85 and 0.80 < found[56] < 0.86
    assert Public("onnx", {}, Boundary()).columns == ()


def test_a_teacher_that_knows_less_than_its_student_is_warned_of(tmp_path: Path) -> None:
    budget = {"steps": 60, "batch": 32, "lr": 3e-3, "ema": 0.9, "evaluate_every": 60, "log_every": 20}
    settings = recipe(tmp_path, {"checkpoint": saved(tmp_path / "net.th"), "name": "poor"}, train=budget)
    said: list[str] = []

    class Heard(Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    reporter = Heard()
    outcome = Run(settings, InlineEngine("cpu"), reporter).everything(["scratch"], [0])
    (line,) = [text for text in said if "held out" in text]
    assert line.startswith("teacher, held out: accuracy 0.")
    (warning,) = [text for text in reporter.warnings if "held out" in text]
    assert "is below the best student's (scratch-resnet8-x2-s0: 0." in warning
    assert {r.role for r in outcome.results} == {"teacher", "student"}, (
        "a row each, none for the held-out look"
    )
