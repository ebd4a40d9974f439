"""Upcycled views on the road: cut once, taught once, shared by all methods; and DUKD, which learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_kit import run
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

from pipeline.cache.format import open_verified
from pipeline.cache.placed import Resident
from pipeline.cache.rows import Rows
from pipeline.cache.sampler import Sampler
from pipeline.cache.store import Store
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.data.upcycle import KINDS
from pipeline.errors import InputError
from pipeline.recipe.data import Data
from pipeline.tasks.recipes import load_recipe
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.training.graphed import Graphed, parts
from pipeline.training.loop import Loop, train
from pipeline.training.surroundings import Hooks

ALL = {"zoom_in": 2, "zoom_out": 1, "mixed": 1, "recoloured": 1}
DUKD = {"name": "dukd"}
CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 60, 64, seed)
    picture(tmp_path / "small" / "s.png", 30, 30, 9)
    picture(tmp_path / "Bench" / "one.png", 64, 72, 60)
    return tmp_path


def lr_of(road: Road, manifest: Any) -> dict[str, bytes]:
    rows = Rows(road.run.planner.store, manifest)
    numbers = np.arange(len(rows))
    return dict(zip(rows.ids().to_pylist(), (x.tobytes() for x in rows.take("lr", numbers)), strict=True))


def plain(ids: Any) -> set[str]:
    return {i for i in ids if i.count(":") == 2}


def kinds(ids: Any) -> set[str]:
    return {i.split(":")[3] for i in ids if i.count(":") == 3}


def test_a_run_of_dukd_from_pictures_to_report(place: Path) -> None:
    data = {"test": [str(place / "Bench")], "lr_only": [str(place / "small")]}
    file = recipe_file(place, data=data, method=DUKD, compare={"methods": ["scratch", "mtkd"]})
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    assert sum(r["role"] == "student" for r in rows.values()) == 3
    page = (place / "runs" / "r" / "report" / "report.md").read_text()
    assert "1 zoom_in, 1 zoom_out a training tile, without HR" in page
    before = snapshot(place / "cache")
    assert run("run", file, "--inline", "--json", place / "again.json").code == 0
    assert (place / "again.json").read_text() == (place / "out.json").read_text()
    assert not rewritten(before, snapshot(place / "cache"))


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


def phase_and_sampler(place: Path) -> tuple[Callable[[], Any], Sampler]:
    (job,) = Road(recipe(place, method=DUKD)).distill()[3]

    def made() -> Any:
        torch.manual_seed(job.seed)
        return job.phases("cpu")[0]({})

    return made, job.sampler(made())


class Killed(Exception):
    pass


def test_killed_and_resumed_it_has_the_bits_of_one_that_was_not(place: Path) -> None:
    made, sampler = phase_and_sampler(place)

    def die(metrics: dict, step: int) -> None:
        if step == 3:
            raise Killed

    def trained(folder: str, hooks: Hooks | None = None) -> dict[str, bytes]:
        phase = made()
        train(
            phase,
            sampler,
            folder=Store.open(place / folder),
            fingerprint="f",
            seed=0,
            device=CPU,
            hooks=hooks,
        )
        return {k: v.numpy().tobytes() for k, v in phase.modules["student"].state_dict().items()}

    whole = trained("whole")
    with pytest.raises(Killed):
        trained("parts", Hooks(sync=die))
    assert trained("parts") == whole


@pytest.mark.parametrize("resident", [False, True])
def test_the_captured_step_is_the_eager_one(place: Path, resident: bool) -> None:
    made, sampler = phase_and_sampler(place)
    eager, graphed = (Loop(made(), CPU, 1) for _ in range(2))
    steps = Graphed(graphed)
    batches = Resident(sampler, CPU) if resident else sampler
    for step, batch in batches.iterate(0, 6):
        expected = eager.eager(step, batch.to(CPU))
        if step == 0:
            graphed.names = eager.names
            steps.prepare(batch, *parts(batch, CPU))
            steps.replay = steps.body  # what a replay does, uncaptured
        torch.testing.assert_close(steps.step(step, batch, 0), expected, rtol=1e-4, atol=1e-6)
        graphed.pending.append((step, expected))
        graphed.require_finite(sampler, 0, 1)
    assert {"distill", "hr", "consistency"} < set(eager.names) and not steps._draws


def test_terms_are_the_same_however_workers_share_a_batch(place: Path) -> None:
    made, sampler = phase_and_sampler(place)
    phase, wanted = made(), []
    for world in (1, 2):
        shares = [phase.losses(phase.modules, sampler.batch(2, rank, world).to(CPU)) for rank in range(world)]
        wanted.append({name: float(sum(s[name].detach() for s in shares)) / world for name in shares[0]})
    assert wanted[0] == pytest.approx(wanted[1], rel=1e-5)


def test_who_explains_is_fused_the_best_or_named(place: Path) -> None:
    chosen = {}
    for who in ("fused", "best", "compact"):
        road = Road(recipe(place, method={**DUKD, "teacher": who}))
        _, taught, fused, (job,) = road.distill()
        folder = job.columns["target"].train.rsplit("/", 1)[0]
        owners = {t.label: t.cached.folder for t in taught} | (
            {"fused": fused.cached.folder} if fused else {}
        )
        chosen[who] = next(label for label, where in owners.items() if folder.startswith(where))
        best = max(taught, key=lambda t: t.quality).label
    assert chosen == {"fused": "fused", "best": best, "compact": "compact"}


def test_an_assistant_learns_from_the_views_too_and_answers_them(place: Path) -> None:
    helped = {**DUKD, "assistant": {"name": "fsrcnn", "options": {"d": 8, "s": 4, "m": 1}}}
    road = Road(recipe(place, method=helped))
    tiles, _, _, (job,) = road.distill()
    assert "assistant-" in job.columns["target"].train and job.result()
    assert kinds(lr_of(road, tiles.train)) == {"zoom_in0", "zoom_out0"}


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


def test_dukd_beside_a_recipe_that_upcycles_nothing_is_refused_with_the_remedy(place: Path) -> None:
    file = recipe_file(place)
    done = run("compare", file, "--inline", "--methods", "scratch,dukd")
    assert done.code == 2 and "data.upcycle" in done.err and "data.upcycle={}" in done.err
    assert not (place / "cache").exists()
    done = run("compare", file, "--inline", "--methods", "dukd", "--set", "data.upcycle={}")
    assert done.code == 0, done.err
    off = {"zoom_in": 0, "zoom_out": 0}
    road = Road(recipe(place, data={"upcycle": off}, method=DUKD))
    assert not kinds(lr_of(road, road.distill()[0].train)), "label consistency alone"


def test_methods_named_by_compare_bring_their_views(place: Path) -> None:
    variants = {"mine": {**DUKD, "hr": 1.0}}
    for compare in ({"methods": ["dukd"]}, {"methods": ["mine"], "variants": variants}):
        settings = recipe(place, compare=compare)
        assert tiling.plan(settings, Store.open(place / "cache")).views
    unused = recipe(place, compare={"methods": ["scratch"], "variants": variants})
    assert not tiling.plan(unused, Store.open(place / "cache")).views


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
