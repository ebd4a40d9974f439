"""Upcycled views on the road: cut once, taught once, shared by all methods, and what cannot be upcycled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from road_kit import (
    Road,
    Untouchable,
    picture,
    recipe,
    recipe_file,
    rewritten,
    snapshot,
    teacher,
    weights,
)
from upcycle_kit import ALL, DUKD, kinds, lr_of, make_place, plain

from pipeline.cache.format import open_verified
from pipeline.cache.rows import Rows
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.data.upcycle import KINDS
from pipeline.errors import InputError
from pipeline.recipe.data import Data
from pipeline.tasks.recipes import load_recipe
from pipeline.tasks.super_resolution import tiles as tiling


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def test_every_view_of_every_training_tile_is_taught_and_fused_once(place: Path) -> None:
    settings = recipe(place, data={"upcycle": ALL, "lr_only": [str(place / "small")]})
    road = Road(settings)
    tiles, taught, fused, _ = road.distill("mtkd")
    ids = lr_of(road, tiles.train)
    own = plain(ids)
    lonely = next(s.picture.sha256[:16] for s in tiling.sources(settings)[0] if s.lr_only)
    for base in own:
        found = kinds(i for i in ids if i.startswith(f"{base}:"))
        zooms = set() if base.startswith(lonely) else {"zoom_in0", "zoom_in1"}
        assert found == zooms | {"zoom_out0", "mixed0", "recoloured0"}, base
    for outputs in (*taught, fused):
        assert Rows(road.run.planner.store, outputs.cached.train).ids().to_pylist() == sorted(ids)
    assert not kinds(lr_of(road, tiles.held_out)), "held-out pictures are looked at as they are"
    shards = [open_verified(road.run.planner.store, r).columns for r in tiles.train.shards]
    views = [c for c in shards if kinds(c["id"])]
    assert views and all("hr" not in c and len(kinds(c["id"])) == 1 and all(c["made"]) for c in views)
    Road(settings, Untouchable()).teach()


def test_scratch_and_what_was_cached_are_untouched_by_upcycling(place: Path) -> None:
    without = Road(recipe(place))
    old, _, _, (alone, mixed) = without.distill("scratch", "mtkd")
    before = snapshot(place / "cache")
    upcycled = Road(recipe(place, data={"upcycle": {}}))
    new, _, _, (same, other) = upcycled.distill("scratch", "mtkd")
    assert weights(same) == weights(alone) and weights(other) != weights(mixed)
    assert not rewritten(snapshot(place / "cache"), before), "nothing of before is written again"
    assert lr_of(without, old.train).items() <= lr_of(upcycled, new.train).items()
    assert old.held_out == new.held_out and old.folder == new.folder and old.train != new.train
    # One more kind computes itself alone: one tile shard or more, and as many outputs of each teacher.
    now = snapshot(place / "cache")
    more = Road(recipe(place, data={"upcycle": {"mixed": 1}}))
    tiles, _ = more.teach()
    fresh = {name for name in rewritten(now, snapshot(place / "cache")) if name.endswith(".arrow")}
    mine = {r.key for r in tiles.train.shards} - {r.key for r in new.train.shards}
    assert mine and {Path(name).stem for name in fresh} == mine
    again, _ = Road(recipe(place), Untouchable()).teach()
    assert again.train == old.train, "and without upcycling everything is as it was"


def test_no_picture_moves_the_views_of_another(place: Path) -> None:
    settings = recipe(place, data={"upcycle": ALL, "holdout": 0.0})
    road = Road(settings)
    known = lr_of(road, road.teach()[0].train)
    picture(place / "pictures" / "late.png", 60, 64, 31)
    after = lr_of(road, Road(settings).teach()[0].train)
    assert known.items() < after.items()
    (place / "other").mkdir()
    elsewhere = recipe(
        place / "other", data={"train": [str(place / "pictures")], "upcycle": ALL, "holdout": 0.0}
    )
    assert lr_of(Road(elsewhere), Road(elsewhere).teach()[0].train) == after


@pytest.mark.slow
def test_packing_changes_neither_names_nor_tensors(place: Path) -> None:
    found = []
    for number, mb in enumerate((0.01, 5.0)):
        cache = {"root": str(place / f"cache{number}"), "shard_mb": mb}
        changes = {"cache": cache, "output": str(place / f"runs{number}"), "data": {"upcycle": ALL}}
        tiles, _, _, (job,) = Road(recipe(place, method=DUKD, **changes)).distill()
        found.append((len(tiles.train.shards), tiles.train.fingerprint, job.fingerprint, weights(job)))
    assert found[0][0] > found[1][0] and found[0][1:] == found[1][1:]


def test_without_any_hr_there_is_zooming_out(place: Path) -> None:
    for seed in range(4):
        picture(place / "small" / f"{seed}.png", 60, 64, 20 + seed)
    data = {"train": [], "lr_only": [str(place / "small")], "holdout": 0.3}
    road = Road(recipe(place, data=data, method=DUKD))
    tiles, _, _, (job,) = road.distill()
    assert kinds(lr_of(road, tiles.train)) == {"zoom_out0"} and job.result()


def test_beside_a_chain_and_given_pairs_views_follow_their_own_lr(place: Path) -> None:
    hr = picture(place / "HR" / "p.png", 96, 96, 21)
    (place / "LR").mkdir()
    given = downscale(decode(hr), 2) // 2
    Image.fromarray(given).save(place / "LR" / "px2.png")
    chain = {"preset": "realesrgan", "views": 2, "seed": 4}
    pairs = [{"lr": str(place / "LR"), "hr": str(place / "HR")}]
    data = {"degradation": chain, "pairs": pairs, "upcycle": ALL, "holdout": 0.0}
    road = Road(recipe(place, data=data))
    tiles, _ = road.teach()
    store, found = road.run.planner.store, {}
    for receipt in tiles.train.shards:
        columns = open_verified(store, receipt).columns
        found |= dict(zip(columns["id"], zip(columns["lr"], columns.get("made", [""] * 999))))
    base = {i: f for i, f in found.items() if i.count(":") == 3 and i.endswith(":0")}
    assert base and all(f"{i[:-2]}:{kind}0" in found for i in base for kind in KINDS), (
        "one of each, not of each view"
    )
    for name, (lr, _) in base.items():  # recoloured is the chain's first view, to be undone by its note
        seen, made = found[f"{name[:-2]}:recoloured0"]
        _, channels, side, gain, *inverted = made.split()
        expected = lr[..., ["RGB".index(c) for c in channels]] * float(gain)
        expected = expected + 255 * (1 - float(gain)) if side == "white" else expected
        expected = 255 - expected if inverted else expected
        assert np.abs(seen - expected).max() <= 0.5 + 255 * 0.0005
    small = downscale(given, 2)
    paired = {i for i in found if i.endswith(":zoom_out0") and f"{i.removesuffix(':zoom_out0')}" in found}
    assert paired, "ids of pairs have no view of a chain"
    for name in paired:
        seen, made = found[name]
        y, x = map(int, made.split()[1:])
        assert np.array_equal(seen, small[y : y + 24, x : x + 24])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"upcycle": {"zoom": 1}}}, "one of mixed, recoloured, seed, zoom_in, zoom_out"),
        ({"data": {"upcycle": {"mixed": 17}}}, "less than or equal to 16"),
        ({"data": {"upcycle": {"mixed": -1}}}, "greater than or equal to 0"),
        ({"method": {**DUKD, "chance": 1.5}}, "less than or equal to 1"),
        ({"method": {**DUKD, "teacher": "nobody"}}, "must be `fused`, `best` or one of ['edsr', 'compact']"),
        (
            {"method": {**DUKD, "teacher": "fused"}, "teachers": [{**teacher("edsr"), "name": "fused"}]},
            "another `name`",
        ),
        (
            {
                "method": {**DUKD, "teacher": "best"},
                "teachers": [{**teacher("edsr"), "name": "best"}, teacher("compact")],
            },
            "`best` means the teacher of the highest PSNR",
        ),
        ({"method": DUKD, "teachers": []}, "needs at least one teacher"),
        (
            {"method": {"name": "scratch"}, "teachers": [], "data": {"upcycle": {}}},
            "data.upcycle makes tiles that teachers alone explain",
        ),
        ({"scale": 1, "method": DUKD}, "at scale 1 nothing is nearer"),
        (
            {"fusion": {"kind": "best"}, "method": DUKD},
            "upcycled tiles (data.upcycle, method dukd) have none",
        ),
        (
            {"data": {"train": [], "lr_only": ["small"], "upcycle": {"zoom_out": 0}}},
            "zoom_in takes pieces of HR, and there is none",
        ),
        (
            {"data": {"train": [], "lr_only": ["small"]}, "method": {**DUKD, "teacher": "best"}},
            "name the teacher",
        ),
    ],
)
def test_what_cannot_be_upcycled_is_refused(place: Path, changes: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe(recipe_file(place, **changes))
    assert said in str(caught.value)


def test_recipes_of_before_are_dumped_as_before() -> None:
    assert "upcycle" not in Data(train=("p",)).model_dump()
    assert Data(train=("p",), upcycle={"mixed": 2}).model_dump()["upcycle"]["mixed"] == 2


def test_a_plan_counts_views_and_the_second_pass(place: Path) -> None:
    task = Road(recipe(place)).run.task
    once = task.work(recipe(place), 4, 60, 64, [1000])
    more = task.work(recipe(place, data={"upcycle": ALL}), 4, 60, 64, [1000])
    assert more.tiles == 6 * once.tiles and more.step_ops == once.step_ops
    assert more.tile_bytes == round((once.tile_bytes + 5 * 3 * 24**2) / 6)
    dukd = task.work(recipe(place, method=DUKD), 4, 60, 64, [1000])
    assert dukd.tiles == 3 * once.tiles and dukd.step_ops == 2 * once.step_ops
    assert dukd.fused_bytes == once.fused_bytes > 0
    one = task.work(recipe(place, method={**DUKD, "teacher": "edsr", "consistency": 0}), 4, 60, 64, [1000])
    assert one.fused_bytes == 0 and one.step_ops == once.step_ops
