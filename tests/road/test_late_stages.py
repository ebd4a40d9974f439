"""The later stages as functions: distill and score, on what a finished run left."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road_kit import Road, picture, recipe

from pipeline.data.degrade import upscale
from pipeline.deploy.evaluate import bicubic, evaluate
from pipeline.recipe.recipe import Recipe
from pipeline.steps.engines import InlineEngine
from pipeline.steps.values import Prepared
from pipeline.tasks.super_resolution.held_out import HeldOut
from pipeline.tasks.super_resolution.score import Model, ScoreTask, cost
from pipeline.tasks.super_resolution.scoring import Scoring
from pipeline.tasks.super_resolution.scoring import models as compared
from pipeline.tasks.super_resolution.teach import luma_error, psnr, read
from pipeline.tasks.super_resolution.training import job_fingerprint
from students.compact import Compact


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Road, tuple]:
    """A finished run and what it returned."""
    root = tmp_path_factory.mktemp("trained")
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    for seed, name in enumerate(("one", "two")):
        picture(root / "Bench" / f"{name}.png", 64, 72, 60 + seed)
    road = Road(recipe(root, data={"test": [str(root / "Bench")]}))
    return road, road.distill("scratch", "mtkd")


# ---- distill


def test_a_training_is_named_after_what_shapes_its_weights() -> None:
    def name(seed: int = 0, inputs: str = "m", kind: str = "student", **changes: Any) -> str:
        return job_fingerprint(recipe(Path("."), **changes), kind, seed, {"lr": inputs})

    same = {
        name(),
        name(train={"log_every": 1, "evaluate_every": 1, "keep": 9}),
        name(name="x", output="y"),
        name(teach={"batch": 1}),
    }
    assert len(same) == 1
    others = {
        name(seed=1),
        name(inputs="n"),
        name(train={"steps": 7}),
        name(train={"lr": 1.0}),
        name(student={"name": "edsr"}),
        name(method={"name": "scratch"}),
        name(method={"name": "mtkd", "hr": 0.2}),
        name(fusion={"kind": "aggregate", "train": {"patch": 8}}, kind="aggregation"),
        name(fusion={"kind": "aggregate", "train": {"patch": 8}, "dim": 48}, kind="aggregation"),
    }
    assert len(others - same) == 9


def test_a_training_from_another_start_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of runs may hold students that began otherwise, by an earlier version."""

    def name(student: str, kind: str = "student") -> str:
        fusion = {"kind": "aggregate", "train": {"patch": 8}}
        made = recipe(Path("."), student={"name": student}, method={"name": "pisr"}, fusion=fusion)
        return job_fingerprint(made, kind, 0, {"lr": "m"})

    now = {kind: name("compact", kind) for kind in ("student", "assistant", "teacher", "aggregation")}
    others = [name("fsrcnn"), name("spandrel:PLKSR")]
    monkeypatch.setattr(Compact, "START", 1)
    differ = {kind for kind, print_ in now.items() if print_ != name("compact", kind)}
    assert differ == {"student", "assistant", "teacher"}, "an aggregation network is none"
    assert others == [name("fsrcnn"), name("spandrel:PLKSR")]


def test_a_job_travels_by_value_and_is_done_once(trained: tuple[Road, tuple], tmp_path: Path) -> None:
    _, (_, _, _, jobs) = trained
    job = pickle.loads(pickle.dumps(jobs[1]))
    assert job.run() == job.result() == jobs[1].result()
    assert Recipe.model_validate(job.recipe) == job.spec and job.result()["method"] == "mtkd"
    moved = replace(job, recipe={**job.recipe, "output": str(tmp_path)})
    assert moved.result() is None
    again = moved.run()
    assert again == job.result() and moved.output().read_bytes(
        "weights.safetensors"
    ) == job.output().read_bytes("weights.safetensors")


def test_the_held_out_judge_measures_what_it_says(trained: tuple[Road, tuple]) -> None:
    road, (tiles, _, _, jobs) = trained
    store = road.run.planner.store
    judge = HeldOut(store, jobs[1].columns, 2, jobs[1].phases("cpu")[0]({}), "cpu")
    values, strip = judge(torch.nn.Upsample(scale_factor=2, mode="nearest"))
    stats = []
    for receipt in tiles.held_out.shards:
        columns = read(store, receipt).columns
        error, pixels = luma_error(np.asarray(columns["lr"]).repeat(2, 1).repeat(2, 2), columns["hr"], 2)
        stats.append({"squared_error": error, "pixels": pixels})
    assert values["held_out/psnr_y"] == pytest.approx(psnr(stats), abs=1e-6)
    assert strip.columns == ("LR", "target", "HR", "student", "off target, x8")
    assert strip.picture.shape == (2 * 48, 5 * 48, 3) and strip.picture.dtype == np.uint8
    assert np.array_equal(strip.column("LR"), strip.column("student"))  # both are enlarged by repetition
    off = np.abs(strip.column("student").astype(int) - strip.column("target").astype(int))
    assert np.array_equal(strip.column("off target, x8"), np.minimum(8 * off, 255)) and off.any()


# ---- score


def everyone(road: Road, trained: tuple[Road, tuple]) -> list[Model]:
    """What a table of the finished run compares."""
    _, (tiles, taught, fused, jobs) = trained
    return compared(road.settings, trained[0].run.planner.store, Prepared(tiles, taught, fused), jobs)


def test_scores_follow_the_published_protocol(trained: tuple[Road, tuple]) -> None:
    road, _ = trained
    sets = road.run.task.tested(road.run)
    models = everyone(road, trained)
    scoring = Scoring(road.run, models, sets)
    strip = scoring.strip(scores := scoring.scores())
    ours = evaluate(bicubic(2), sets, 2)["Bench"]
    assert np.mean([p for p, _ in scores["bicubic-x2"]["Bench"].values()]) == pytest.approx(
        ours["psnr_y"], abs=1e-9
    )
    assert [m.role for m in models] == ["bicubic", "teacher", "teacher", "fused", "student", "student"]
    assert all(len(by_set["Bench"]) == 2 for by_set in scores.values())
    assert [key for key in strip if key not in ("LR", "HR")] == [m.identity for m in models]
    assert (
        strip["HR"].shape == strip[models[1].identity].shape
        and strip["LR"].shape[0] * 2 == strip["HR"].shape[0]
    )


def test_the_fused_score_is_that_of_the_teachers_pictures_together(
    trained: tuple[Road, tuple], tmp_path: Path
) -> None:
    road, _ = trained
    models = everyone(road, trained)[:4]
    file = picture(tmp_path / "x.png", 64, 66, 5)
    scored = ScoreTask("s", "x", str(file), 2, tuple(models), (models[3].identity,), keep_pictures=True).run()
    assert set(scored.scores) == {models[3].identity}
    pair = np.stack([scored.pictures[m.identity] for m in models[1:3]]).astype(float)
    assert np.abs(scored.pictures[models[3].identity] - pair.mean(0)).max() <= 0.5
    assert np.array_equal(scored.pictures["bicubic-x2"], upscale(scored.pictures["LR"], 2))


class Counting(InlineEngine):
    """The inline engine, which remembers what it was asked to score."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.scored: list[tuple[str, tuple[str, ...]]] = []

    def map(self, function: Any, items: Sequence[Any], *, gpus: float = 0.0) -> Iterator[Any]:
        self.scored += [(task.picture, task.wanted) for _, task in items if task.wanted]
        return super().map(function, items, gpus=gpus)


def test_only_what_has_no_score_is_scored(trained: tuple[Road, tuple], tmp_path: Path) -> None:
    picture(tmp_path / "Bench" / "one.png", 64, 72, 60)
    road = Road(recipe(tmp_path, data={"test": [str(tmp_path / "Bench")]}), engine := Counting())

    def asked(models: list[Model]) -> list[tuple[str, tuple[str, ...]]]:
        engine.scored.clear()
        Scoring(road.run, models, road.run.task.tested(road.run)).scores()
        return list(engine.scored)

    models = everyone(road, trained)
    names = tuple(m.identity for m in models)
    assert asked(models[:3]) == [("one.png", names[:3])]
    assert asked(models[:3]) == []
    assert asked(models) == [("one.png", names[3:])]
    picture(tmp_path / "Bench" / "two.png", 64, 72, 61)
    assert asked(models) == [("two.png", names)]
    picture(tmp_path / "Bench" / "one.png", 64, 72, 62)  # another picture under the same name
    assert asked(models) == [("one.png", names)]


def test_cost_is_that_of_the_network(trained: tuple[Road, tuple]) -> None:
    road, (_, taught, _, _) = trained
    bicubic_, edsr, _, fused_, scratch, _ = everyone(road, trained)
    assert cost(bicubic_, 2) is None and cost(fused_, 2) is None
    assert cost(edsr, 2) == (taught[0].network.parameters, taught[0].network.multiply_adds)
    parameters, multiply_adds = cost(scratch, 2)
    assert 500 < parameters < cost(edsr, 2)[0] and 1e6 < multiply_adds < cost(edsr, 2)[1]
