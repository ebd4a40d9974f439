"""Pairs of LR and HR made by somebody else: found, measured, refused or mended, trained and tested on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_kit import run
from conftest import natural_picture
from PIL import Image
from road_kit import Road, content, recipe, recipe_file

from pipeline.cache.rows import Rows
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.data.pairs import overlap, pairs, shift_of
from pipeline.errors import InputError
from pipeline.metrics import psnr_y
from pipeline.recipe.data import Pairs
from pipeline.tasks.super_resolution.judged_on import load_pairs
from pipeline.tasks.super_resolution.tiles import surveyed as planned


def written(root: Path, names: dict[str, str], moved: tuple[int, int] = (0, 0)) -> dict[str, str]:
    """Pairs whose LR is Pillow's Lanczos, moved by whole LR pixels; {HR name: LR name}."""
    for number, (large, small) in enumerate(names.items()):
        hr = natural_picture(144, 160, number)
        lr = Image.fromarray(hr).resize((80, 72), Image.Resampling.LANCZOS)
        for folder, name, picture in (
            ("HR", large, hr),
            ("LR", small, np.roll(np.asarray(lr), moved, (0, 1))),
        ):
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
    return {"lr": str(root / "LR"), "hr": str(root / "HR")}


NAMES = {"a.png": "a.png", "b.png": "bx2.png", "sub/c.png": "sub/c_LR.png", "d.png": "d-LRx2.png"}


def test_pairs_are_found_by_their_names(tmp_path: Path) -> None:
    entry = written(tmp_path, NAMES)
    found, surveys = pairs(entry["lr"], entry["hr"], 2, "raise")
    assert {p.hr.name: p.lr.name for p in found} == NAMES and len(surveys) == 2


def test_equal_hr_pictures_have_their_own_lr(tmp_path: Path) -> None:
    """Two LR of one scene under two names, and a pair that is there twice."""
    entry = written(tmp_path, {"a.png": "a.png", "c.png": "c.png"})
    for kind, names in (("HR", "bd"), ("LR", "d")):
        for name in names:
            shutil.copy(tmp_path / kind / "a.png", tmp_path / kind / f"{name}.png")
    lr = np.asarray(Image.open(tmp_path / "LR/a.png"))
    Image.fromarray(255 - lr).save(tmp_path / "LR/b.png")
    found, (small, large) = pairs(entry["lr"], entry["hr"], 2, "raise")
    assert [p.hr.name for p in found] == [p.lr.name for p in found] == ["a.png", "b.png", "c.png"]
    assert [Path(q.path).name for q in (*small.left_out, *large.left_out)] == ["d.png", "d.png"]


def test_a_scene_is_trained_on_or_held_out_with_all_its_lr(tmp_path: Path) -> None:
    names = {f"{n}.png": f"{n}.png" for n in "abcdefghij"}
    entries = [written(tmp_path, names)]
    for number in (1, 2):  # other LR of the same HR
        folder = tmp_path / f"LR{number}"
        folder.mkdir()
        for name in names:
            Image.fromarray(np.asarray(Image.open(tmp_path / "LR" / name)) // 2 + number).save(folder / name)
        entries.append({"lr": str(folder), "hr": entries[0]["hr"]})
    for holdout in (0.4, 1e-9):  # by their rank, and the one that is always held out
        data = {"train": [str(tmp_path / "HR")], "pairs": entries, "holdout": holdout}
        sources = planned(recipe(tmp_path, data=data))[0]
        assert len(sources) == 40
        uses: dict[str, set[bool]] = {}
        for source in sources:
            uses.setdefault(source.scene, set()).add(source.held_out)
        assert len(uses) == 10 and all(len(held) == 1 for held in uses.values())
        assert {True} in uses.values() and {False} in uses.values()


def test_partners_of_what_is_in_quarantine_are_left_out_with_it(tmp_path: Path) -> None:
    entry = written(tmp_path, {"a.png": "a.png", "b.png": "bx2.png", "c.png": "c.png"})
    (tmp_path / "LR/bx2.png").write_bytes(b"no picture")
    (tmp_path / "HR/c.png").write_bytes(b"no picture")
    found, (small, large) = pairs(entry["lr"], entry["hr"], 2, "quarantine")
    assert [p.hr.name for p in found] == ["a.png"]
    assert {Path(q.path).name for q in small.left_out} == {"bx2.png", "c.png"}
    assert {Path(q.path).name for q in large.left_out} == {"c.png", "b.png"}
    with pytest.raises(InputError, match="bx2.png"):
        pairs(entry["lr"], entry["hr"], 2, "raise")


def test_every_copy_in_a_test_set_has_its_own_lr(tmp_path: Path) -> None:
    entry = written(tmp_path, {"a.png": "a.png"})
    for kind in ("HR", "LR"):
        shutil.copy(tmp_path / kind / "a.png", tmp_path / kind / "b.png")
    benchmark = load_pairs(Pairs.model_validate(entry), 2)
    assert [name for name, _ in benchmark.pictures] == sorted(benchmark.lr) == ["a.png", "b.png"]


@pytest.mark.parametrize("moved", [(0, 0), (3, 0), (0, -2), (-4, 5)], ids=str)
def test_a_shift_of_whole_pixels_is_found(moved: tuple[int, int]) -> None:
    hr = natural_picture(160, 192, 7)
    lr = np.roll(downscale(hr, 2), moved, (0, 1))
    found = shift_of(lr, hr, 2)
    assert found == pytest.approx(moved, abs=0.25)
    one, other = overlap(lr, hr, moved, 2)
    assert other.shape[0] == 2 * one.shape[0] and other.shape[1] == 2 * one.shape[1]
    inside = np.s_[4:-4, 4:-4]
    assert psnr_y(one[inside], downscale(other, 2)[inside]) > 45


def test_part_of_a_pixel_is_measured_and_noise_is_no_shift() -> None:
    hr = natural_picture(192, 192, 3)
    half = downscale(np.roll(hr, (1, 0), (0, 1)), 2)  # one HR pixel is half an LR pixel
    assert 0.2 < shift_of(half, hr, 2)[0] < 0.8 and abs(shift_of(half, hr, 2)[1]) < 0.2
    rng = np.random.default_rng(0)
    other = rng.integers(0, 256, (96, 96, 3), np.uint8)
    assert shift_of(other, hr, 2) == (0.0, 0.0)
    flat = np.full((192, 192, 3), 90, np.uint8)
    assert max(map(abs, shift_of(flat[:96, :96], flat, 2))) <= 0.5


def test_tiles_hold_lr_as_it_is(tmp_path: Path) -> None:
    entry = written(tmp_path, NAMES)
    road = Road(recipe(tmp_path, data={"train": [], "pairs": [entry], "holdout": 0.3}))
    tiles, taught, _, (job,) = road.distill("mtkd")
    assert job.result() and all(t.quality > 10 for t in taught)
    store = road.run.planner.store
    rows = Rows(store, tiles.train)
    lr, hr = rows.take("lr", np.arange(1))[0], rows.take("hr", np.arange(1))[0]
    _, y, x = rows.ids().to_pylist()[0].split(":")
    place = np.s_[int(y) // 2 : int(y) // 2 + 24, int(x) // 2 : int(x) // 2 + 24]
    stored = [decode(p)[place] for p in sorted((tmp_path / "LR").rglob("*.png"))]
    assert any(np.array_equal(lr, s) for s in stored), "Lanczos, not bicubic"
    assert not np.array_equal(lr, downscale(hr, 2))


def test_a_shift_is_refused_and_mended(tmp_path: Path) -> None:
    entry = written(tmp_path, {"a.png": "a.png", "b.png": "b.png"}, moved=(2, -3))
    file = recipe_file(tmp_path, data={"train": [], "pairs": [entry]})
    refused = run("run", file, "--inline")
    assert (
        refused.code == 2 and "+2.0" in refused.err and "-3.0" in refused.err and "align: true" in refused.err
    )
    road = Road(recipe(tmp_path, data={"train": [], "pairs": [{**entry, "align": True}], "holdout": 0.0}))
    tiles, *_ = road.distill("scratch")
    rows = Rows(road.run.planner.store, tiles.train)
    inside = np.s_[4:-4, 4:-4]
    for n in range(len(rows)):
        lr, hr = rows.take("lr", np.array([n]))[0], rows.take("hr", np.array([n]))[0]
        assert psnr_y(lr[inside], downscale(hr, 2)[inside]) > 30


@pytest.mark.parametrize("case", ["size", "lonely LR", "lonely HR", "second LR"])
def test_what_is_no_pair_is_named(tmp_path: Path, case: str) -> None:
    entry = written(tmp_path, {"a.png": "a.png", "b.png": "b.png"})
    if case == "size":
        Image.fromarray(natural_picture(70, 80, 5)).save(tmp_path / "LR" / "b.png")
    elif case == "second LR":
        Image.fromarray(natural_picture(72, 80, 5)).save(tmp_path / "LR" / "bx2.png")
    else:
        (tmp_path / ("HR" if case == "lonely LR" else "LR") / "b.png").unlink()
    done = run("run", recipe_file(tmp_path, data={"train": [], "pairs": [entry]}), "--inline")
    assert done.code == 2 and "b.png" in done.err, done.err
    with pytest.raises(InputError):
        pairs(entry["lr"], entry["hr"], 2, "raise")


def test_models_get_the_lr_of_test_pairs(tmp_path: Path) -> None:
    train = written(tmp_path, {f"{n}.png": f"{n}.png" for n in "abcd"})
    test = written(tmp_path / "Bench", {"one.png": "onex2.png"})
    data = {"train": [], "pairs": [train], "test_pairs": [test]}
    file = recipe_file(tmp_path, data=data, method={"name": "scratch"}, teachers=[])
    done = run("run", file, "--inline", "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r["sets"]["Bench"] for r in json.loads((tmp_path / "out.json").read_text())["rows"]}
    from pipeline.data.degrade import upscale

    lr, hr = (decode(tmp_path / "Bench" / p) for p in ("LR/onex2.png", "HR/one.png"))
    assert rows["bicubic"]["psnr_y"] == pytest.approx(psnr_y(upscale(lr, 2), hr, 2), abs=1e-9)


def test_test_pairs_that_are_moved_are_compared_on_what_they_share(tmp_path: Path) -> None:
    from pipeline.data.degrade import upscale

    train = written(tmp_path, {f"{n}.png": f"{n}.png" for n in "abcd"})
    test = written(tmp_path / "Bench", {"one.png": "one.png"}, moved=(2, -3))
    data = {"train": [], "pairs": [train], "test_pairs": [test]}
    file = recipe_file(tmp_path, data=data, method={"name": "scratch"}, teachers=[])
    refused = run("run", file, "--inline")
    assert refused.code == 2 and "align: true" in refused.err
    data["test_pairs"] = [{**test, "align": True}]
    file = recipe_file(tmp_path, data=data, method={"name": "scratch"}, teachers=[])
    done = run("run", file, "--inline", "--json", tmp_path / "out.json")
    assert done.code == 0, done.err
    row = json.loads((tmp_path / "out.json").read_text())["rows"][0]
    lr, hr = overlap(*(decode(tmp_path / "Bench" / p / "one.png") for p in ("LR", "HR")), (2, -3), 2)
    assert row["sets"]["Bench"]["psnr_y"] == pytest.approx(psnr_y(upscale(lr, 2), hr, 2), abs=1e-9)


def test_recipes_of_before_are_what_they_were(tmp_path: Path) -> None:
    assert {"pairs", "test_pairs"}.isdisjoint(recipe(tmp_path).model_dump()["data"])
    missing = recipe_file(
        tmp_path, **{**content(tmp_path), "data": {"train": [], "pairs": [{"lr": "x", "hr": "y"}]}}
    )
    done = run("run", missing, "--inline")
    assert done.code == 2 and "data.pairs" in done.err
