"""The first stages as functions: tiles, teach and fuse by themselves."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road_kit import TEACHERS, hashes, picture, recipe, teacher

from pipeline.cache.stats import load as load_stats
from pipeline.cache.store import Store
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.errors import FacultyError, InputError
from pipeline.recipe.recipe import TeacherSpec
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.tasks.super_resolution.fuse import fusion_folder
from pipeline.tasks.super_resolution.teach import (
    TeachTask,
    as_levels,
    luma_error,
    psnr,
    read,
    to_stored,
)
from pipeline.tasks.super_resolution.teacher_facts import find_facts, known_facts, resolve


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return tmp_path


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
