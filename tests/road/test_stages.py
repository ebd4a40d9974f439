"""The stages as functions: tiles, teach, fuse, distill and score by themselves."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road_kit import TEACHERS, Road, hashes, picture, recipe, teacher

from pipeline.cache.stats import load as load_stats
from pipeline.cache.store import Store
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale, upscale
from pipeline.deploy.evaluate import bicubic, evaluate
from pipeline.errors import FacultyError, InputError
from pipeline.recipe.recipe import Recipe, TeacherSpec
from pipeline.steps.engines import InlineEngine
from pipeline.steps.values import Prepared
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.tasks.super_resolution.fuse import fusion_folder
from pipeline.tasks.super_resolution.held_out import HeldOut
from pipeline.tasks.super_resolution.score import Model, ScoreTask, cost
from pipeline.tasks.super_resolution.scoring import Scoring
from pipeline.tasks.super_resolution.scoring import models as compared
from pipeline.tasks.super_resolution.teach import (
    TeachTask,
    as_levels,
    luma_error,
    psnr,
    read,
    to_stored,
)
from pipeline.tasks.super_resolution.teacher_facts import find_facts, known_facts, resolve
from pipeline.tasks.super_resolution.training import job_fingerprint


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return tmp_path


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


# ---- tiles


def test_a_tile_task_gives_the_same_bytes_every_time(place: Path) -> None:
    settings = recipe(place)
    plan = tiling.plan(settings, Store.open(place / "cache"))
    first = [task.run() for task in plan.steps]
    before = hashes(place / "cache")
    again = [pickle.loads(pickle.dumps(task)).run() for task in plan.steps]
    assert again == first and hashes(place / "cache") == before and len(first) > 1


def test_shards_hold_whole_pictures_of_one_use_up_to_their_size(place: Path) -> None:
    picture(place / "lonely" / "small.png", 40, 40, seed=23)
    settings = recipe(place, data={"lr_only": [str(place / "lonely")]})
    plan = tiling.plan(settings, Store.open(place / "cache"))
    for task in plan.steps:
        assert len({(s.lr_only, s.held_out) for s in task.sources}) == 1
        bytes_ = sum(tiling._count(s, plan.grid, "bicubic") for s in task.sources) * 3 * (24**2 + 48**2)
        assert bytes_ <= 1e5 or len(task.sources) == 1
    packed = [s.picture.sha256 for task in plan.steps for s in task.sources]
    assert sorted(packed) == sorted({s.picture.sha256 for s in plan.sources}) and len(packed) == 7


def test_packing_does_not_change_what_a_set_is_called(place: Path) -> None:
    store = Store.open(place / "cache")
    small, large = (tiling.plan(recipe(place, cache={"shard_mb": mb}), store) for mb in (0.02, 5.0))
    assert len(small.steps) > len(large.steps)
    for held_out in (False, True):
        assert small.fingerprint(held_out) == large.fingerprint(held_out)


def test_held_out_pictures_are_chosen_by_content(place: Path) -> None:
    def held(root: Path) -> set[str]:
        return {s.picture.sha256 for s in tiling.sources(recipe(root))[0] if s.held_out}

    before = held(place)
    assert 0 < len(before) < 6
    for file in list((place / "pictures").iterdir()):
        file.rename(file.with_name(f"renamed-{file.name}"))
    assert held(place) == before


def test_a_picture_in_two_folders_counts_once_and_is_listed(place: Path) -> None:
    (place / "more").mkdir()
    shutil.copy(place / "pictures/a.png", place / "more/copy.png")
    both = recipe(place, data={"train": [str(place / "pictures"), str(place / "more")]})
    found, left_out = tiling.sources(both)
    assert len(found) == 6
    assert [(Path(q.path).name, "a.png" in q.reason) for q in left_out] == [("copy.png", True)]


def test_something_must_be_left_to_train_on(place: Path) -> None:
    with pytest.raises(InputError, match="at least one picture to train on"):
        tiling.sources(recipe(place, data={"holdout": 0.999999}))


def test_tiles_are_the_pictures_and_their_matlab_lr(place: Path) -> None:
    settings = recipe(place)
    store = Store.open(place / "cache")
    plan = tiling.plan(settings, store)
    receipt = plan.steps[0].run()
    columns = read(store, receipt).columns
    by_sha = {s.picture.sha256[:16]: decode(s.picture.path) for s in plan.steps[0].sources}
    for id_, lr, hr in zip(columns["id"], columns["lr"], columns["hr"], strict=True):
        sha, y, x = id_.split(":")
        y, x = int(y), int(x)
        assert np.array_equal(hr, by_sha[sha][y : y + 48, x : x + 48])
        whole = downscale(by_sha[sha][: by_sha[sha].shape[0] // 2 * 2, : by_sha[sha].shape[1] // 2 * 2], 2)
        assert np.array_equal(lr, whole[y // 2 : y // 2 + 24, x // 2 : x // 2 + 24])


# ---- teach


@pytest.fixture
def task(place: Path) -> TeachTask:
    settings = recipe(place)
    plan = tiling.plan(settings, Store.open(place / "cache"))
    return TeachTask(str(place / "cache"), plan.steps[0].run(), "outputs/t/x", 2, "uint8", 4)


def enlarge(lr: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(lr, scale_factor=2, mode="nearest")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda lr: enlarge(lr) * float("nan"), "not finite"),
        (lambda lr: enlarge(enlarge(lr)), r"\(expected \(4, 3, 48, 48\)\)"),
        (lambda lr: enlarge(lr).index_fill(0, torch.tensor([len(lr) - 1]), float("inf")), "not finite"),
    ],
    ids=["nan", "size", "one"],
)
def test_an_output_that_cannot_be_is_named_with_its_tiles(task: TeachTask, wrong: Any, said: str) -> None:
    ids = read(Store.open(task.cache), task.samples).columns["id"]
    with pytest.raises(FacultyError, match=said) as caught:
        task.run(wrong)
    assert ids[0] in str(caught.value) and task.folder in str(caught.value)
    assert Store.open(task.cache).list("outputs") == []


def test_a_teach_task_writes_shard_statistics_and_receipt(task: TeachTask) -> None:
    receipt, stats = task.run(enlarge)
    store = Store.open(task.cache)
    tiles, out = read(store, task.samples).columns, read(store, receipt).columns
    assert receipt.key == task.samples.key and out["id"] == tiles["id"]
    assert np.array_equal(out["sr"], np.asarray(tiles["lr"]).repeat(2, 1).repeat(2, 2))
    assert load_stats(store, task.folder, [receipt.key]) == [stats] and stats["tiles"] == receipt.rows
    error, pixels = luma_error(out["sr"], tiles["hr"], 2)
    assert (stats["squared_error"], stats["pixels"]) == (pytest.approx(error), pixels)
    first = hashes(Path(task.cache), "*.arrow")
    replace(task, batch=3).run(enlarge)
    assert hashes(Path(task.cache), "*.arrow") == first, "the batch is a matter of speed alone"


def test_stored_pictures_keep_their_levels() -> None:
    x = torch.linspace(-0.1, 1.1, 3 * 16 * 16).view(1, 3, 16, 16)
    levels, halves = to_stored(x, "uint8"), to_stored(x, "float16")
    assert levels.dtype == np.uint8 and halves.dtype == np.float16 and levels.shape == (1, 16, 16, 3)
    assert halves.min() < 0 and halves.max() > 1
    assert np.abs(as_levels(halves).astype(int) - levels).max() <= 1 and as_levels(levels) is levels


def test_psnr_is_pooled_over_tiles() -> None:
    stats = [{"squared_error": 100.0, "pixels": 10}, {"squared_error": 0.0, "pixels": 90}]
    assert psnr(stats) == pytest.approx(10 * np.log10(255**2 / 1.0))
    assert np.isnan(psnr([{"squared_error": 0.0, "pixels": 0}])) and np.isfinite(psnr(stats[1:]))


def test_what_is_known_of_a_teacher_follows_its_bytes_not_its_name(place: Path) -> None:
    store = Store.open(place / "cache")
    spec = TeacherSpec(**teacher("compact"))
    assert known_facts(spec, 2, store, "cpu") is None
    facts = find_facts(spec, 2, str(place / "cache"))
    assert facts.architecture == "compact" and facts.parameters > 1000 and facts.multiply_adds > 1e6
    shutil.copy(TEACHERS / "compact_x2.safetensors", place / "other.safetensors")
    again = known_facts(
        TeacherSpec(checkpoint=str(place / "other.safetensors"), precision="fp32"), 2, store, "cpu"
    )
    assert again == replace(facts, label="other", path=str(place / "other.safetensors"))
    assert again.folder("tiles/t", "uint8") == facts.folder("tiles/t", "uint8")
    for other in (spec.model_copy(update={"precision": "auto"}), TeacherSpec(**teacher("edsr"))):
        assert known_facts(other, 2, store, "cpu") is None
    assert known_facts(spec, 2, store, "cuda") is None


def test_a_measured_precision_is_one_of_two(place: Path) -> None:
    auto = find_facts(TeacherSpec(checkpoint=teacher("compact")["checkpoint"]), 2, str(place / "cache"))
    assert auto.precision in ("fp32", "bf16") and auto.label == "compact_x2"


def test_a_checkpoint_that_is_neither_file_nor_name_is_refused() -> None:
    with pytest.raises(InputError, match="swinir-x9") as caught:
        resolve("swinir-x9")
    assert "faculty teachers" in caught.value.remedy


# ---- fuse


def test_a_fusion_is_named_after_all_that_shapes_it() -> None:
    names = {
        fusion_folder("tiles/t", "mean", ["a", "b"], {}),
        fusion_folder("tiles/t", "median", ["a", "b"], {}),
        fusion_folder("tiles/t", "mean", ["b", "a"], {}),
        fusion_folder("tiles/t", "mean", ["a"], {}),
        fusion_folder("tiles/t", "mean", ["a", "b"], {"weights": [1, 2]}),
        fusion_folder("tiles/u", "mean", ["a", "b"], {}),
    }
    assert len(names) == 6 and all(n.startswith(("fused/t/", "fused/u/")) for n in names)


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
