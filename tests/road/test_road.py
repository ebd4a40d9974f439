"""The road from pictures to trained students, here in this process: what is computed, and above all what is not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from road_kit import (
    NAMES,
    Road,
    Untouchable,
    bad_pictures,
    five_pictures,
    picture,
    pixels,
    recipe,
    rewritten,
    snapshot,
    teacher,
    weights,
)

from pipeline.errors import InputError
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.tasks.super_resolution.teach import as_levels, read


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Five small pictures; one of them is held out."""
    return five_pictures(tmp_path)


def a_training_picture(root: Path) -> str:
    """Add a picture that is trained on and moves no other: the sha256 decides, and that depends on Pillow's version."""
    held_out = {s.picture.sha256 for s in tiling.sources(recipe(root))[0] if s.held_out}
    for seed in range(17, 40):
        late = picture(root / "pictures" / "late.png", 96, 110, seed)
        sources, _ = tiling.sources(recipe(root))
        if {s.picture.sha256 for s in sources if s.held_out} == held_out:
            return next(s.picture.sha256[:16] for s in sources if s.picture.path == str(late))
    raise AssertionError("all are held out")


# ---- what is computed once


def test_a_second_run_computes_and_writes_nothing(again: Path) -> None:
    before = snapshot(again)
    road = Road(recipe(again), Untouchable())
    _, taught, fused, (job,) = road.distill()
    assert road.opened == 0 and snapshot(again) == before
    assert [t.label for t in taught] == ["edsr", "compact"] and fused.quality > 20
    assert job.result()["curves"]["distill"]["train/loss"]


def test_one_more_teacher_computes_only_its_own_shards(again: Path) -> None:
    before = snapshot(again / "cache")
    road = Road(recipe(again, teachers=[teacher(n) for n in NAMES]))
    _, taught = road.teach()
    fresh = rewritten(before, after := snapshot(again / "cache"))
    assert before.items() <= after.items()
    assert {name.split("/")[2].split("-")[0] for name in fresh if name.startswith("outputs/")} == {"rcan"}
    assert not any(name.startswith(("tiles/", "fused/")) for name in fresh)
    assert road.run.planner.shards_written == sum(len(m.shards) for _, m in taught[2].cached.splits())
    assert road.run.planner.shards_reused == 2 * road.run.planner.shards_written


def test_one_more_picture_computes_only_its_own_tiles_and_outputs(again: Path) -> None:
    before = snapshot(again / "cache")
    old, *_ = Road(recipe(again), Untouchable()).distill()
    late = a_training_picture(again)
    road = Road(recipe(again))
    tiles, taught, fused, _ = road.distill()
    after = snapshot(again / "cache")
    assert before.items() <= after.items()
    fresh = {name for name in rewritten(before, after) if name.endswith(".arrow")}
    assert len(fresh) == 4 and {n.split("/")[0] for n in fresh} == {"tiles", "outputs", "fused"}
    assert road.run.planner.shards_written == 2
    known, now = pixels(road, old.train, "lr").keys(), pixels(road, tiles.train, "lr").keys()
    assert known < now and {i.split(":")[0] for i in now - known} == {late}
    assert (
        pixels(road, fused.cached.train, "sr").keys()
        == pixels(road, taught[1].cached.train, "sr").keys()
        == now
    )


def test_a_picture_taken_away_leaves_the_sets_it_was_in(again: Path) -> None:
    gone = next(s for s in tiling.sources(recipe(again))[0] if not s.held_out)
    Path(gone.picture.path).unlink()
    road = Road(recipe(again))
    _, _, fused, _ = road.distill()
    assert gone.picture.sha256[:16] not in {i.split(":")[0] for i in pixels(road, fused.cached.train, "sr")}


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"data": {"tile": 56}}, ()),
        ({"data": {"margin": 2}}, ()),
        ({"cache": {"dtype": "float16"}}, ("tiles",)),
        ({"teachers": [{**teacher("edsr"), "precision": "bf16"}, teacher("compact")]}, ("tiles", "compact")),
        ({"fusion": {"kind": "median"}}, ("tiles", "edsr", "compact")),
        ({"teach": {"batch": 2}}, ("tiles", "edsr", "compact", "mean")),
        ({"train": {"lr": 2e-3}}, ("tiles", "edsr", "compact", "mean")),
    ],
    ids=["tile", "margin", "dtype", "precision", "fusion", "batch", "training"],
)
def test_a_setting_renews_what_it_shapes_and_no_more(
    again: Path, changes: dict, kept: tuple[str, ...]
) -> None:
    before = snapshot(again / "cache")
    tiles, taught, fused, _ = Road(recipe(again, **changes)).distill()
    after = snapshot(again / "cache")
    folders = {
        "tiles": tiles.folder,
        **{t.label: t.cached.folder for t in taught},
        fused.network.kind: fused.cached.folder,
    }
    for name, folder in folders.items():
        shards = {
            f: state for f, state in after.items() if f.startswith(f"{folder}/") and f.endswith(".arrow")
        }
        assert shards and (shards.items() <= before.items()) == (name in kept), name
    assert before.items() <= after.items()


def test_the_degradation_names_the_tiles(place: Path) -> None:
    settings = recipe(place)
    other = settings.model_copy(update={"data": settings.data.model_copy(update={"degradation": "another"})})
    store = Road(settings).run.planner.store
    assert tiling.plan(settings, store).folder != tiling.plan(other, store).folder


def test_a_student_is_trained_again_only_for_what_shapes_its_weights(again: Path) -> None:
    trained = set((again / "runs/r/trainings").iterdir())
    _, _, _, (same,) = Road(
        recipe(again, train={"evaluate_every": 2, "log_every": 1, "keep": 1}), Untouchable()
    ).distill()
    _, _, _, (other,) = Road(recipe(again, train={"steps": 4})).distill()
    assert same.fingerprint != other.fingerprint
    assert len(set((again / "runs/r/trainings").iterdir()) - trained) == 1


# ---- sources


def test_pictures_without_hr_are_trained_on_with_the_fused_target_alone(place: Path) -> None:
    (place / "lonely").mkdir()
    lonely = picture(place / "lonely" / "small.png", 40, 44, seed=23)
    settings = recipe(place, data={"lr_only": [str(place / "lonely")]}, train={"steps": 12})
    road = Road(settings)
    tiles, taught, fused, jobs = road.distill("mtkd", "scratch", "kd")
    source = next(s for s in tiling.sources(settings)[0] if s.picture.path == str(lonely))
    assert source.lr_only and not source.held_out
    mine = {i for i in pixels(road, fused.cached.train, "sr") if i.startswith(source.picture.sha256[:16])}
    assert mine and mine <= pixels(road, tiles.train, "lr").keys()
    alone = [r for r in tiles.train.shards if "hr" not in read(road.run.planner.store, r).columns]
    assert sum(r.rows for r in alone) == len(mine)
    assert all(np.isfinite(t.quality) for t in taught) and all(job.result() for job in jobs)
    without = Road(recipe(place, train={"steps": 12}))
    _, _, _, (plain,) = without.distill("mtkd")
    assert weights(plain) != weights(jobs[0])
    _, _, _, (alone_,) = without.distill("scratch")
    assert weights(alone_) == weights(jobs[1]), "scratch leaves out tiles without HR"


def test_quarantine_lists_bad_pictures_and_leaves_them_out(place: Path) -> None:
    bad = bad_pictures(place / "pictures")
    road = Road(recipe(place, data={"on_bad": "quarantine"}))
    tiles, _ = road.teach()
    for name, reason in bad.items():
        assert any(name in w and re.search(reason, w, re.I) for w in road.warnings), (name, road.warnings)
        assert any(name in path for path in tiles.train.inputs["quarantined"])
    assert {p["name"] for p in tiles.train.inputs["pictures"].values()} < {f"{n}.png" for n in "abcde"}
    assert Road(recipe(place, data={"on_bad": "quarantine"}), Untouchable()).teach()


@pytest.mark.parametrize("name", ["truncated.png", "float.tif", "lab.tif", "dot.png"])
def test_raise_names_the_bad_picture(place: Path, name: str) -> None:
    bad_pictures(place / "aside")
    shutil.copy(place / "aside" / name, place / "pictures")
    with pytest.raises(InputError, match=re.escape(name)):
        Road(recipe(place), Untouchable()).teach()
    assert not (place / "cache" / "tiles").exists()


# ---- methods and stored types


def test_kd_takes_the_best_teacher_or_the_named_one(again: Path) -> None:
    road = Road(recipe(again, method={"name": "kd"}))
    _, taught, fused, (best,) = road.distill()
    ranked = sorted(taught, key=lambda t: t.quality)
    assert fused is None and best.columns["target"].train.startswith(ranked[-1].cached.folder)
    named = Road(recipe(again, method={"name": "kd", "teacher": ranked[0].label}))
    (job,) = named.distill()[3]
    assert job.columns["target"].train.startswith(ranked[0].cached.folder)
    assert weights(job) != weights(best)


def test_a_float16_cache_holds_what_the_teachers_said_unrounded(again: Path) -> None:
    whole = Road(recipe(again), Untouchable())
    _, [edsr, _], _, (levels,) = whole.distill()
    road = Road(recipe(again, cache={"dtype": "float16"}))
    _, [half, _], fused, (job,) = road.distill()
    stored, rounded = pixels(road, half.cached.train, "sr"), pixels(whole, edsr.cached.train, "sr")
    for id_, value in stored.items():
        assert value.dtype == np.float16
        assert np.abs(as_levels(value).astype(int) - rounded[id_]).max() <= 1
    assert next(iter(pixels(road, fused.cached.train, "sr").values())).dtype == np.float16
    assert abs(half.quality - edsr.quality) < 0.05 and weights(job) != weights(levels)


def test_scratch_runs_no_teacher(place: Path) -> None:
    _, taught, fused, (job,) = Road(recipe(place, method={"name": "scratch"}, teachers=[])).distill()
    assert taught == [] and fused is None and job.result() and not (place / "cache/outputs").exists()
