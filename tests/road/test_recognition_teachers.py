"""Several teachers for recognition: cached side by side, fused, learned from together or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from command_kit import run
from recognition_kit import BUDGET, content, scored
from torch.nn import functional as F

from pipeline.cache.rows import Rows
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.reading import checked
from pipeline.road.run import Run
from pipeline.steps.engines import Engine, InlineEngine
from pipeline.steps.values import Outcome
from pipeline.tasks.recognition import ensemble
from pipeline.tasks.recognition.recipe import Recognition

TEACHERS: list[dict[str, Any]] = [
    {
        "name": "wide",
        "network": {"name": "resnet8", "options": {"width": 8}, "embedding": 12},
        "train": BUDGET,
    },
    {
        "name": "narrow",
        "network": {"name": "resnet8", "options": {"width": 4}, "embedding": 6},
        "train": BUDGET,
    },
]


def recipe(root: Path, **changes: Any) -> Recognition:
    base = content(root, **{"teachers": TEACHERS, **changes})
    del base["teacher"]
    return checked(Recognition, base, "test")


def done(recipe: Recognition, methods: list[str], engine: Engine | None = None) -> tuple[Run, Outcome]:
    road = Run(recipe, engine or InlineEngine("cpu"), Quiet())
    return road, road.everything(methods, [0])


def rows(road: Run, outcome: Outcome, number: int, name: str) -> np.ndarray:
    """A helper's cached column of all training pictures and views."""
    outputs = outcome.prepared.all[number].cached
    assert outputs is not None
    cached = Rows(road.planner.store, outputs.train)
    return cached.take(name, np.arange(len(cached))).astype(np.float32)


def test_fused_outputs_are_the_mean_of_the_teachers_labels(tmp_path: Path) -> None:
    road, outcome = done(recipe(tmp_path), ["kd", "rkd", "horkd"])
    assert [o.label for o in outcome.prepared.all] == ["teacher-wide", "teacher-narrow", "fused"]
    first, second, fused = (rows(road, outcome, i, "logits") for i in range(3))

    def labels(z: np.ndarray) -> np.ndarray:
        e = np.exp(z - z.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    assert np.abs(labels(fused) - (labels(first) + labels(second)) / 2).max() < 2e-3  # float16
    a, b, joined = (rows(road, outcome, i, "embedding") for i in range(3))
    assert joined.shape[-1] == 18
    distance = ((joined[0, 0] - joined[1, 0]) ** 2).sum()
    own = [
        ((x[0, 0] / np.linalg.norm(x[0, 0]) - x[1, 0] / np.linalg.norm(x[1, 0])) ** 2).sum() for x in (a, b)
    ]
    assert distance == pytest.approx(np.mean(own), abs=5e-3)
    assert set(scored(outcome)) >= {"teacher-wide", "teacher-narrow", "fused", "assistant"}
    sums = [scored(outcome)[name].parameters or 0 for name in ("teacher-wide", "teacher-narrow", "fused")]
    assert sums[2] == sums[0] + sums[1]


def test_nothing_is_made_again_and_one_more_teacher_makes_itself_alone(tmp_path: Path) -> None:
    first, _ = done(recipe(tmp_path), ["kd"])
    again, _ = done(recipe(tmp_path), ["kd"])
    assert again.planner.shards_written == 0
    assert again.planner.shards_reused == first.planner.shards_written > 0
    third = {"name": "third", "network": {"name": "resnet14", "options": {"width": 4}}, "train": BUDGET}
    more, outcome = done(recipe(tmp_path, teachers=[*TEACHERS, third]), ["kd"])
    assert more.planner.shards_written * 2 == first.planner.shards_written
    assert len(outcome.prepared.all) == 4


def test_one_teacher_in_the_list_is_the_teacher(tmp_path: Path) -> None:
    listed = recipe(tmp_path / "a", teachers=[{k: v for k, v in TEACHERS[0].items() if k != "name"}])
    plain = checked(Recognition, content(tmp_path / "b", teacher=TEACHERS[0]), "test")
    found = [done(r, ["kd"])[1].jobs[0].fingerprint for r in (listed, plain)]
    assert found[0] == found[1]


def test_kd_may_name_one_of_them(tmp_path: Path) -> None:
    one = recipe(tmp_path, method={"name": "kd", "teacher": "narrow"})
    _, outcome = done(one, ["kd"])
    assert outcome.jobs[0].outputs["teacher"] == outcome.prepared.all[1].cached.path("train")
    _, together = done(recipe(tmp_path, method={"name": "kd"}), ["kd"])
    assert together.jobs[0].outputs["teacher"] == together.prepared.all[2].cached.path("train")
    assert together.jobs[0].fingerprint != outcome.jobs[0].fingerprint
    with pytest.raises(
        InputError, match=r"method.teacher: expected one of fused, wide, narrow, found 'broad'"
    ):
        done(recipe(tmp_path, method={"name": "kd", "teacher": "broad"}), ["kd"])


@pytest.mark.parametrize(
    "fusion", [{"kind": "weighted"}, {"kind": "best"}, {"embeddings": "project"}], ids=str
)
def test_every_fusion_runs_and_online_gives_what_the_cache_holds(
    tmp_path: Path, fusion: dict[str, str]
) -> None:
    road, outcome = done(recipe(tmp_path, fusion=fusion), ["rkd"])
    fused = outcome.prepared.fused
    network = fused.network.load(road.planner.store)
    gallery = Rows(road.planner.store, outcome.prepared.samples.train)
    hr = gallery.take("hr", np.arange(8))
    with torch.inference_mode():
        found = network(torch.from_numpy(hr).permute(0, 3, 1, 2).float() / 255)
    cached = rows(road, outcome, 2, "logits")[:8, 0]  # view 0 is the picture as it is
    assert (
        np.abs(found["logits"].softmax(1).numpy() - F.softmax(torch.from_numpy(cached), 1).numpy()).max()
        < 5e-3
    )
    width = 12 if fusion.get("embeddings") == "project" else 18
    assert found["embedding"].shape == (8, width)


def test_fitted_shares_find_the_member_that_is_right() -> None:
    labels = torch.arange(60) % 3
    right = 4.0 * F.one_hot(labels, 3).float()
    noise = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    shares = ensemble.fitted_shares([noise, right], labels, 1.0)
    assert shares.shape == (2, 3) and torch.allclose(shares.sum(0), torch.ones(3)) and shares[1, 0] > 0.9
    # Two equal members share equally; and a mixture is no less likely than any member.
    assert torch.allclose(ensemble.fitted_shares([right, right], labels, 1.0), torch.full((2, 3), 0.5))


def test_best_by_class_takes_each_class_from_the_surest() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    first = torch.tensor([[5.0, 0, 0], [5, 0, 0], [5, 0, 0], [5, 0, 0]])
    second = torch.tensor([[0.0, 5, 0], [0, 5, 0], [0, 5, 0], [0, 5, 0]])
    shares = ensemble.best_shares([first, second], labels, 1.0)
    assert shares[:, 0].tolist() == [1, 0] and shares[:, 1].tolist() == [0, 1]
    assert shares[:, 2].tolist() == [0.5, 0.5]  # no held-out picture of it


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teachers": [TEACHERS[0], {**TEACHERS[1], "name": "wide"}]}, "names must differ"),
        ({"teachers": [TEACHERS[0], {**TEACHERS[0], "name": "other"}]}, "give it a `seed` of its own"),
        ({"fusion": {"kind": "weighted", "weights": {"wide": 1.0}}}, "must name exactly the teachers"),
        ({"cache": {"features": "map"}}, "no common feature maps"),
        ({"task": "verification", "fusion": {"kind": "best"}}, "verification has not"),
    ],
    ids=str,
)
def test_what_cannot_be_fused_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        recipe(tmp_path, **changes)


def test_the_command_shows_every_teacher_and_what_they_are_together(tmp_path: Path) -> None:
    base = content(tmp_path, teachers=TEACHERS, method={"name": "kd"}, compare={"methods": []})
    del base["teacher"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base))
    taught = run("teach", tmp_path / "recipe.yaml", "--inline", "--json", "-")
    assert taught.code == 0, taught.err
    assert list(taught.json["teachers"]) == ["teacher-wide", "teacher-narrow", "fused"]  # type: ignore[index]
    ended = run("run", tmp_path / "recipe.yaml", "--inline")
    assert ended.code == 0, ended.err
    for name in ("teacher-wide (HR)", "teacher-narrow (HR)", "fused (HR)", "kd-resnet8-x2"):
        assert name in ended.out


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_outputs_of_this_process(ray_local: None, tmp_path: Path) -> None:
    from pipeline.engine.ray_engine import RayEngine

    here, inline = done(recipe(tmp_path / "here"), ["kd"])
    there, over_ray = done(recipe(tmp_path / "there"), ["kd"], RayEngine())
    for number in range(3):
        for name in ("logits", "embedding"):
            assert np.array_equal(rows(here, inline, number, name), rows(there, over_ray, number, name))


def test_kd_compares_logits_in_the_way_that_is_asked_for(tmp_path: Path) -> None:
    ways = {"same": "standardised", "apart": "decoupled"}
    variants = {name: {"name": "kd", "logits": way} for name, way in ways.items()}
    settings = recipe(tmp_path, method={"name": "kd"}, compare={"variants": variants})
    _, outcome = done(settings, ["kd", *ways])
    curves = {job.group: job.result()["curves"]["student"]["train/soft"] for job in outcome.jobs}
    assert len(curves) == 3 and len({curve[0][1] for curve in curves.values()}) == 3
    assert "logits" not in settings.model_dump()["method"]  # a plain one is what it was before
    with pytest.raises(InputError, match="decoupled is for classification, not for verification"):
        recipe(tmp_path, task="verification", method={"name": "kd", "logits": "decoupled"})
    for place in ("method", "variants", "settings"):
        two = {"name": "kd", "logits": "standardised"}
        asked = (
            {"method": two}
            if place == "method"
            else {"compare": {place: {"kd" if place == "settings" else "x": two}}}
        )
        with pytest.raises(InputError, match="standardised keeps of two classes which one is likelier"):
            recipe(tmp_path, task="segmentation", data={"layout": "masks", "root": "x", "size": 16}, **asked)
