"""Runs over LR that a chain of degradations has made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_kit import run
from PIL import Image
from road_kit import Road, Untouchable, hashes, picture, recipe, recipe_file

from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.format import open_verified
from pipeline.cache.rows import Rows
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale, upscale
from pipeline.data.tiles import positions
from pipeline.data.views import whole
from pipeline.metrics import psnr_y
from pipeline.recipe.degradation import Chain
from pipeline.tasks.super_resolution import tiles as tiling

CHAIN = {"preset": "realesrgan", "views": 3, "seed": 4}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 60, 64, seed)
    picture(tmp_path / "small" / "s.png", 30, 30, 9)
    picture(tmp_path / "Bench" / "one.png", 64, 72, 60)
    return tmp_path


def test_a_run_over_a_chain_from_pictures_to_report(place: Path) -> None:
    bench = place / "Bench"
    data = {"degradation": CHAIN, "test": [str(bench)], "lr_only": [str(place / "small")]}
    file = recipe_file(place, data=data)
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    hr = decode(bench / "one.png")
    lr = whole(hr, file_sha256(bench / "one.png"), Chain(**CHAIN), 2)
    assert rows["bicubic"]["sets"]["Bench"]["psnr_y"] == pytest.approx(psnr_y(upscale(lr, 2), hr, 2))
    page = (place / "runs" / "r" / "report" / "report.md").read_text()
    assert "realesrgan, 3 views a tile, seed 4" in page and "MATLAB" not in page
    before = hashes(place / "cache")
    again = run("run", file, "--inline", "--json", place / "again.json")
    assert again.code == 0 and (place / "again.json").read_text() == (place / "out.json").read_text()
    assert hashes(place / "cache") == before
    plain = recipe_file(place, data={"test": [str(bench)]})
    assert run("run", plain, "--inline", "--json", place / "plain.json").code == 0
    other = {r["model"]: r for r in json.loads((place / "plain.json").read_text())["rows"]}
    assert other["bicubic"]["sets"] != rows["bicubic"]["sets"], "scores of another LR are not taken for these"


def test_every_view_is_taught_once_and_says_what_made_it(place: Path) -> None:
    settings = recipe(place, data={"degradation": CHAIN, "lr_only": [str(place / "small")]})
    tiles, teachers = Road(settings).teach()
    store = Road(settings).run.planner.store
    rows = Rows(store, tiles.train)
    full = [n for n in rows.ids().to_pylist() if n.count(":") == 3]
    assert len(full) % 3 == 0 and len({n.rsplit(":", 1)[0] for n in full}) == len(full) // 3
    alone = positions(60, 60, tiling.Grid(2, 48, 4))
    assert len(rows) == len(full) + len(alone), "LR alone is as it is, once"
    for teacher in teachers:
        assert Rows(store, teacher.cached.train).ids().equals(rows.ids())
    said = 0
    for receipt in tiles.train.shards:
        columns = open_verified(store, receipt).columns
        if "hr" in columns:
            assert len(columns[tiling.MADE]) == len(columns["id"]) and all(columns[tiling.MADE])
            said += len(columns[tiling.MADE])
        else:
            assert tiling.MADE not in columns
    assert said == len(full)
    taken = rows.take("hr", np.flatnonzero(rows.known("hr"))[:3])
    assert (taken == taken[0]).all(), "views of a tile share its HR"
    Road(settings, Untouchable()).teach()


def test_whatever_shapes_lr_names_the_tiles(place: Path) -> None:
    def folder(degradation: object) -> str:
        settings = recipe(place, data={"degradation": degradation})
        return tiling.plan(settings, Road(settings).run.planner.store).folder

    chains = [
        "bicubic",
        CHAIN,
        {**CHAIN, "seed": 5},
        {**CHAIN, "views": 2},
        {**CHAIN, "preset": "web"},
        {"steps": [{"kind": "jpeg"}]},
        {"steps": [{"kind": "jpeg", "quality": [30, 94]}]},
    ]
    assert len({folder(c) for c in chains}) == len(chains)


def test_a_plan_counts_views(place: Path) -> None:
    task = Road(recipe(place)).run.task
    once = task.work(recipe(place), 4, 60, 64, [1000])
    thrice = task.work(recipe(place, data={"degradation": CHAIN}), 4, 60, 64, [1000])
    assert thrice.tiles == 3 * once.tiles and thrice.cache_bytes == 3 * once.cache_bytes


def test_a_student_is_trained_again_where_its_lr_changes(place: Path) -> None:
    one = Road(recipe(place, data={"degradation": CHAIN})).distill("scratch")[3][0]
    two = Road(recipe(place)).distill("scratch")[3][0]
    assert one.fingerprint != two.fingerprint


def test_pairs_beside_a_chain_stay_as_they_are(place: Path) -> None:
    hr = picture(place / "HR" / "p.png", 96, 96, 21)
    (place / "LR").mkdir()
    Image.fromarray(downscale(decode(hr), 2)).save(place / "LR" / "px2.png")
    entry = {"lr": str(place / "LR"), "hr": str(place / "HR")}
    data = {"degradation": CHAIN, "pairs": [entry], "test_pairs": [entry], "test": [str(place / "Bench")]}
    done = run("run", recipe_file(place, data=data), "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r["sets"] for r in json.loads((place / "out.json").read_text())["rows"]}
    clean = upscale(downscale(decode(hr), 2), 2)
    assert rows["bicubic"][place.name]["psnr_y"] == pytest.approx(psnr_y(clean, decode(hr), 2))
    settings = recipe(place, data=data)
    road = Road(settings, Untouchable())
    tiles, _ = road.teach()
    found = {}
    for split in (tiles.train, tiles.held_out):
        for receipt in split.shards:
            columns = open_verified(road.run.planner.store, receipt).columns
            found |= dict(zip(columns["id"], zip(columns["lr"], columns.get(tiling.MADE, [""] * 99))))
    paired = {n: lr for n, (lr, made) in found.items() if n.count(":") == 2}
    low = downscale(decode(hr), 2)
    for name, lr in paired.items():
        y, x = (int(v) // 2 for v in name.split(":")[1:])
        assert np.array_equal(lr, low[y : y + 24, x : x + 24])
    assert len(paired) == len(positions(96, 96, tiling.Grid(2, 48, 4)))
    assert all(made for n, (_, made) in found.items() if n.count(":") == 3)
