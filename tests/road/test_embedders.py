"""Embedders without classes as teachers: from a factory, ONNX and timm; judged, learned from, fused, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recognition_kit import EVERY_TERM, content, figures, picture_folder, scored
from torch import nn

from pipeline.cache.rows import Rows
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.reading import checked
from pipeline.road.results import finish, table
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.steps.values import Outcome
from pipeline.tasks.recognition import ensemble, metrics
from pipeline.tasks.recognition.elsewhere import found_elsewhere
from pipeline.tasks.recognition.recipe import Recognition, RecognitionTeacher
from pipeline.tasks.recognition.sampler import Gallery
from teachers.classifier import open_classifier

FACTORY = """
import torch
from torch import nn


class Embedder(nn.Module):
    def __init__(self, width, named):
        super().__init__()
        self.body, self.named = nn.Linear(3 * 4 * 4, width), named

    def forward(self, x):
        e = self.body(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))
        return {"embedding": e} if self.named else e


def embedder(width=12, named=True):
    return Embedder(width, named)


def classifier(classes=2):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, classes))


def maps():
    return nn.Conv2d(3, 3, 3)
"""
RKD = {**EVERY_TERM, "adversarial": 0.0, "soft": 0.0, "distances": 1.0, "angles": 1.0, "contrast": 0.1}


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3 * 8 * 8, 9), nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(x.flatten(1))
        return self.head(hidden.relu()), hidden


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"embedders_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def exported(path: Path) -> str:
    torch.manual_seed(0)
    network = Small().eval()
    names = {"input_names": ["x"], "output_names": ["scores", "hidden"]}
    axes = {"x": {0: "n"}}
    example = (torch.rand(2, 3, 8, 8),)
    torch.onnx.export(network, example, str(path), dynamo=False, dynamic_axes=axes, **names)
    return str(path)


def recipe(root: Path, *teachers: dict[str, Any], **changes: Any) -> Recognition:
    if not (root / "data").exists():
        picture_folder(root, 5, 6)
    data = {"layout": "folders", "root": str(root / "data"), "size": 16, "views": {"count": 2}}
    base = content(root, **{"task": "verification", "data": data, "method": RKD, **changes})
    del base["teacher"]
    base["teachers"] = list(teachers)
    return checked(Recognition, base, "test")


def done(settings: Recognition, *methods: str) -> tuple[Run, Outcome, list[str]]:
    said: list[str] = []

    class Heard(Quiet):
        def say(self, text: str) -> None:
            said.append(text)

    road = Run(settings, InlineEngine("cpu"), Heard())
    return road, road.everything(methods, [0]), said


def columns(road: Run, outcome: Outcome, number: int) -> dict[str, np.ndarray]:
    cached = outcome.prepared.all[number].cached
    assert cached is not None
    rows = Rows(road.planner.store, cached.train)
    every = np.arange(len(rows))
    found = {name: rows.shape(name) for name in ("logits", "embedding")}
    return {name: rows.take(name, every) for name, shape in found.items() if shape is not None}


@pytest.mark.parametrize("task", ["verification", "retrieval"])
def test_a_student_learns_from_an_embedder_s_relations(tmp_path: Path, module: str, task: str) -> None:
    boundary = {"size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "value_range": 1.0}
    spec = {"factory": f"{module}:embedder", "input": boundary}
    road, outcome, said = done(recipe(tmp_path, spec, task=task), "scratch", "rkd", "horkd")
    files = finish(road, outcome, [])
    kept = columns(road, outcome, 0)
    assert kept.keys() == {"embedding"} and kept["embedding"].shape[1:] == (2, 12)
    curves = {job.method: job.result()["curves"]["student"] for job in outcome.jobs}  # type: ignore[index]
    assert {f"train/{t}" for t in ("feature", "pairwise", "distances", "angles", "contrast")} <= set(
        curves["rkd"]
    )
    assert "train/soft" not in curves["rkd"]
    assert {"train/order1", "train/order2", "train/soft"} <= set(curves["horkd"]), "soft from the assistant"
    # Its own figure is that of its embedding, computed here from the network alone, and said on held-out pictures.
    held, test = (Gallery(road.planner.store, outcome.prepared.samples.manifests[s]) for s in ("val", "test"))
    network = outcome.prepared.teachers[0].network.load(road.planner.store)

    def embedded(gallery: Gallery) -> np.ndarray:
        x = torch.from_numpy(gallery.hr(np.arange(len(gallery)))).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return network(x)["embedding"].numpy()

    own = metrics.pairs_of(embedded(test), test.labels)[1].mean()
    assert figures(outcome, "teacher")["rank1"] == pytest.approx(own)
    (line,) = [text for text in said if text.startswith("teacher, held out")]
    assert ("TAR@FAR" if task == "verification" else "mAP") in line
    if task == "verification":
        tar = metrics.verification(embedded(held), held.labels)[0]["tar@far=0.01"]
        assert line.endswith(f"{tar:.4f}")
    assert "teacher (HR)" in table(outcome) and Path(files.report).is_file()


def test_kd_wants_logits_and_says_what_fits(tmp_path: Path, module: str) -> None:
    settings = recipe(tmp_path, {"factory": f"{module}:embedder"}, method={"name": "kd"})
    road = Run(settings, InlineEngine("cpu"), Quiet())
    told = r"method kd: expected a teacher with logits.*found teacher, an embedder.*rkd with soft: 0.*horkd"
    with pytest.raises(InputError, match=told):
        road.everything(["scratch", "kd"], [0])
    assert not list((tmp_path / "runs").rglob("*.safetensors")), "nothing was trained before"
    for method, told in (
        ({"name": "rkd"}, "method rkd.*Set soft: 0, and weigh feature"),
        ({"name": "horkd", "assistant": False, "init": "random"}, "Set soft: 0, or let an assistant"),
    ):
        settings = recipe(tmp_path, {"factory": f"{module}:embedder"}, method=method)
        with pytest.raises(InputError, match=told):
            Run(settings, InlineEngine("cpu"), Quiet()).everything([str(method["name"])], [0])


def test_online_an_embedder_gives_the_losses_of_the_cached_one(tmp_path: Path, module: str) -> None:
    spec = {"factory": f"{module}:embedder"}
    _, cached, _ = done(recipe(tmp_path, spec), "rkd")
    online = recipe(tmp_path, spec, cache={"root": str(tmp_path / "cache"), "online": True})
    _, made, _ = done(online, "rkd")
    one, two = (o.jobs[0].result()["curves"]["student"]["train/distances"] for o in (cached, made))  # type: ignore[index]
    assert one[-1][1] == pytest.approx(two[-1][1], rel=5e-3)  # float16 in the cache


@pytest.mark.parametrize("how", ["concatenate", "whiten"])
def test_several_embedders_are_one(tmp_path: Path, module: str, how: str) -> None:
    teachers = (
        {"factory": f"{module}:embedder", "name": "wide"},
        {"factory": f"{module}:embedder", "name": "narrow", "options": {"width": 5, "named": False}},
    )
    settings = recipe(tmp_path, *teachers, fusion={"embeddings": how})
    road, outcome, _ = done(settings, "rkd")
    wide, narrow, fused = (columns(road, outcome, i)["embedding"].astype(np.float32) for i in range(3))
    assert columns(road, outcome, 2).keys() == {"embedding"}
    joined = np.concatenate(
        [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (wide, narrow)], axis=-1
    ) / np.sqrt(2)
    if how == "concatenate":
        np.testing.assert_allclose(fused, joined, atol=2e-3)
    else:
        assert fused.shape[-1] == 12
        covariance = np.cov(fused.reshape(-1, 12).T)
        variances = np.linalg.eigvalsh(np.cov(joined.reshape(-1, 17).T))[::-1][:12]
        expected = variances / (variances + ensemble.RIDGE * variances[0])
        np.testing.assert_allclose(covariance, np.diag(expected), atol=0.03)
    assert {"teacher-wide", "teacher-narrow", "fused"} <= scored(outcome).keys()
    assert 0 <= figures(outcome, "fused")["auc"] <= 1


@pytest.mark.slow
def test_beside_a_classifier_an_embedder_has_no_part_in_the_soft_labels(tmp_path: Path, module: str) -> None:
    teachers = (
        {"factory": f"{module}:classifier", "name": "says", "options": {"classes": 5}},
        {"factory": f"{module}:embedder", "name": "sees"},
    )
    settings = recipe(tmp_path, *teachers, task="classification", method={"name": "kd"})
    road, outcome, said = done(settings, "kd", "scratch")
    finish(road, outcome, [])
    alone, embedded, fused = (columns(road, outcome, i) for i in range(3))
    labels = [torch.from_numpy(c["logits"]).float().softmax(-1) for c in (alone, fused)]
    torch.testing.assert_close(labels[0], labels[1], atol=2e-3, rtol=0)
    assert embedded.keys() == {"embedding"} and fused["embedding"].shape[-1] == 7 + 12
    # Where accuracy is asked for, an embedder is judged by the nearest other picture.
    assert figures(outcome, "teacher-sees").keys() == {"nearest", "nearest_low", "nearest_high"}
    assert any(text.startswith("teacher-sees, held out: nearest neighbour") for text in said)
    assert "teacher-sees (HR)" in table(outcome)


def test_an_embedder_alone_teaches_a_classifier(tmp_path: Path, module: str) -> None:
    spec = {"factory": f"{module}:embedder", "options": {"named": False}, "embedder": True}
    road, outcome, _ = done(recipe(tmp_path, spec, task="classification"), "rkd")
    assert Path(finish(road, outcome, []).report).is_file()
    assert figures(outcome, "rkd-resnet8-x2-s0")["accuracy"] >= 0
    assert outcome.prepared.teachers[0].network.classes == 0


def test_onnx_gives_the_output_that_is_named(tmp_path: Path) -> None:
    file = exported(tmp_path / "small.onnx")
    torch.manual_seed(0)
    network, x = Small().eval(), torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        scores, hidden = network(x)
    for outputs, expected in (({"embedding": "hidden"}, hidden), ({}, scores)):
        spec = {"checkpoint": file, "outputs": outputs, "input": {"size": 8}}
        settings = recipe(tmp_path, spec)
        found = found_elsewhere(settings.teachers[0], settings, ("a", "b"))
        assert found is not None and found.embeds and found.facts["embedding"] == expected.shape[1]
        opened = open_classifier(found.public, found.data, "here", (8, 8))
        assert opened(x).keys() == {"embedding"}
        torch.testing.assert_close(opened(x)["embedding"], expected, atol=1e-5, rtol=1e-5)


def test_timm_s_networks_are_taken_without_their_head(tmp_path: Path) -> None:
    from teachers.timm_import import import_timm

    torch.manual_seed(0)
    network = import_timm().create_model("resnet10t", num_classes=7).eval()
    whole, bare = tmp_path / "whole.pth", tmp_path / "bare.pth"
    torch.save(network.state_dict(), whole)
    torch.save({k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}, bare)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for file in (whole, bare):
            spec = RecognitionTeacher(timm="resnet10t", checkpoint=str(file), input={"size": 32})
            found = found_elsewhere(spec, recipe(tmp_path, spec.model_dump()), ())
            assert found is not None and found.embeds
            opened = open_classifier(found.public, found.data, "here", (32, 32))
            features = network.forward_head(
                network.forward_features(found.public.boundary(x)), pre_logits=True
            )
            torch.testing.assert_close(opened(x)["embedding"], features)


@pytest.mark.parametrize(
    ("teacher", "changes", "told"),
    [
        ({"factory": "m:maps"}, {}, r"an embedding \(N, width\), found shape"),
        ({"factory": "m:embedder"}, {"task": "segmentation"}, "classes or embeddings, not segmentation"),
        ({"factory": "m:embedder", "embedder": True, "classes": ["a"]}, {}, "this one names `classes`"),
        ({"embedder": True, "train": {}}, {}, "this one has no `checkpoint`, `timm` or `factory`"),
        ({"factory": "m:classifier"}, {"task": "classification"}, "5 answers.*found 2 without names"),
    ],
    ids=str,
)
def test_what_is_no_embedder_is_refused(
    tmp_path: Path, module: str, teacher: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    spec = {k: v.replace("m:", f"{module}:") if k == "factory" else v for k, v in teacher.items()}
    with pytest.raises(InputError, match=told):
        settings = recipe(tmp_path, spec, **changes)
        found_elsewhere(settings.teachers[0], settings, tuple("abcde"))


def test_teachers_of_before_are_dumped_as_before() -> None:
    assert "embedder" not in RecognitionTeacher().model_dump()
    assert "embedder" in RecognitionTeacher(factory="m:f", embedder=True).model_dump()


def test_a_teacher_that_is_not_there_is_refused_before_another_one_is_trained(tmp_path: Path) -> None:
    trained = content(tmp_path)["teacher"]
    for missing in ({"factory": "no_such_module:net"}, {"checkpoint": str(tmp_path / "none.onnx")}):
        recipe = content(tmp_path, teachers=[{**trained, "name": "own"}, {"name": "other", **missing}])
        recipe.pop("teacher")
        run = Run(Recognition.model_validate(recipe), InlineEngine("cpu"), Quiet())
        with pytest.raises(InputError, match="no_such_module|none.onnx"):
            run.everything(["kd"], [0])
        assert not list((tmp_path / "cache").glob("networks/*"))
