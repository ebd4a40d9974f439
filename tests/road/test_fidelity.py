"""Students judged by their teachers: with HR beside, and where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_kit import run
from PIL import Image
from road_kit import Road, content, picture, recipe, recipe_file, teacher

from pipeline.cache.rows import Rows
from pipeline.data.decode import decode
from pipeline.data.degrade import downscale
from pipeline.metrics import psnr_y
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.super_resolution.score import near
from teachers.gate import run as enlarged
from teachers.loading import load_teacher

ALONE = {"train": [], "holdout": 0.3}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "small" / f"{name}.png", 60, 64, seed)
    picture(tmp_path / "Bench" / "one.png", 64, 72, 60)
    picture(tmp_path / "Bench" / "two.png", 64, 80, 61)
    return tmp_path


def alone(root: Path, **changes: object) -> dict:
    data = {**ALONE, "lr_only": [str(root / "small")]}
    return {"data": data, "method": {"name": "mtkd"}, **changes}


def test_a_run_without_any_hr_ends_with_its_fidelity(place: Path) -> None:
    file = recipe_file(place, **alone(place))
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    student = next(r for r in rows.values() if r["role"] == "student")
    assert set(student["sets"]) == {"held-out tiles"} and set(student["sets"]["held-out tiles"]) == {
        "fidelity"
    }
    assert student["sets"]["held-out tiles"]["fidelity"] > 10
    assert rows["edsr"]["sets"] == {} and "fidelity" in done.out and "held-out tiles" in done.out
    page = (place / "runs" / "r" / "report" / "report.md").read_text()
    assert "nan" not in page.lower() and "fidelity" in page
    assert "not measured" in page and "there is no HR to train on" in page


def test_a_named_teacher_alone_is_enough_to_learn_from(place: Path) -> None:
    file = recipe_file(place, **alone(place, method={"name": "kd", "teacher": "compact"}))
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    (student,) = [r for r in json.loads((place / "out.json").read_text())["rows"] if r["role"] == "student"]
    assert student["sets"]["held-out tiles"].keys() == {"fidelity"}


def test_the_held_out_figure_is_the_psnr_against_the_fused_target(place: Path) -> None:
    road = Road(recipe(place, **alone(place)))
    tiles, _, fused, (job,) = road.distill()
    (phase,) = (make({}) for make in job.phases("cpu"))
    judge = job.judge(phase, "cpu")
    nearest = torch.nn.Upsample(scale_factor=2, mode="nearest")
    values, strip = judge(nearest)
    store = road.run.planner.store
    lr = Rows(store, tiles.held_out).take("lr", np.arange(2))
    targets = Rows(store, fused.cached.held_out).take("sr", np.arange(2))
    assert set(values) == {"held_out/fidelity"} and strip.side == 48 and strip.columns[1] == "target"
    pairs = list(zip(lr.repeat(2, 1).repeat(2, 2), targets, strict=True))
    one = [psnr_y(a, b, 2) for a, b in pairs]
    assert min(one) - 3 < values["held_out/fidelity"] < max(one) + 3


def test_with_hr_beside_both_are_told_and_fidelity_leads(place: Path) -> None:
    picture(place / "pictures" / "a.png", 96, 96, 1)
    picture(place / "pictures" / "b.png", 96, 96, 2)
    picture(place / "pictures" / "c.png", 96, 96, 3)
    file = recipe_file(
        place,
        teachers=[teacher("edsr")],
        data={"test": [str(place / "Bench")]},
        judged_by="teachers",
        method={"name": "kd", "hr": 0.0},
        compare={"methods": ["scratch"]},
    )
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r["sets"]["Bench"] for r in json.loads((place / "out.json").read_text())["rows"]}
    assert "fidelity" not in rows["edsr"] and {"psnr_y", "fidelity", "sharpness"} <= set(rows["bicubic"])
    network = load_teacher(teacher("edsr")["checkpoint"])
    found = []
    for name in ("one", "two"):
        lr = downscale(decode(place / "Bench" / f"{name}.png"), 2)
        from pipeline.data.degrade import upscale

        found.append(psnr_y(upscale(lr, 2), enlarged(network, lr), 2))
    assert rows["bicubic"]["fidelity"] == pytest.approx(np.mean(found), abs=1e-6)
    again = run("run", file, "--inline", "--json", place / "again.json")
    assert again.code == 0 and json.loads((place / "again.json").read_text()) == json.loads(
        (place / "out.json").read_text()
    )
    job = Recipe.model_validate(content(place, judged_by="teachers")).model_dump()
    assert job["judged_by"] == "teachers" and "judged_by" not in recipe(place).model_dump()


def test_nearness_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.integers(0, 256, (48, 48, 3), np.uint8)
    lr = downscale(sharp, 2)
    fidelity, consistency, sharpness = near(sharp, sharp, lr, 2)
    assert (fidelity, consistency, sharpness) == (99.0, 99.0, 1.0)
    soft = np.asarray(Image.fromarray(lr).resize((48, 48), Image.Resampling.BICUBIC))
    fidelity, consistency, sharpness = near(soft, sharp, lr, 2)
    assert fidelity == psnr_y(soft, sharp, 2) < 30 and 0 < sharpness < 0.5 and consistency < 99


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": {"name": "scratch"}}, "method scratch learns from HR"),
        ({"method": {"name": "pisr"}}, "method pisr learns from HR"),
        ({"fusion": {"kind": "best"}}, "fusion best is chosen by HR"),
        ({"fusion": {"kind": "weighted"}}, "fusion weighted is chosen by HR"),
        ({"fusion": {"kind": "aggregate"}}, "fusion aggregate is chosen by HR"),
        ({"compare": {"methods": ["scratch"]}}, "compare.methods: scratch"),
        (
            {"compare": {"methods": ["plain"], "variants": {"plain": {"name": "scratch", "hr": 0.5}}}},
            "compare.methods: plain learn from HR",
        ),
        ({"method": {"name": "kd"}}, "name the teacher"),
        ({"judged_by": "hr"}, "judged_by: hr needs HR"),
        ({"data": {"train": [], "lr_only": []}}, "data: name pictures"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_needs_hr_is_refused_before_anything_starts(place: Path, changes: dict, said: str) -> None:
    done = run("run", recipe_file(place, **{**alone(place), **changes}), "--inline")
    assert done.code == 2 and said in done.err, done.err
    assert not (place / "cache").exists()


def test_networks_beside_are_in_the_table_and_nobody_learns_from_them(place: Path) -> None:
    picture(place / "pictures" / "a.png", 96, 96, 1)
    picture(place / "pictures" / "b.png", 96, 96, 2)
    changes = {
        "teachers": [teacher("edsr")],
        "data": {"test": [str(place / "Bench")]},
        "method": {"name": "kd"},
    }
    done = [
        run("run", recipe_file(place, **changes, **more), "--inline", "--json", place / f"{i}.json")
        for i, more in enumerate(
            ({"compare": {"methods": []}}, {"compare": {"methods": [], "beside": [teacher("rcan")]}})
        )
    ]
    assert [d.code for d in done] == [0, 0], done[1].err
    without, beside = (json.loads((place / f"{i}.json").read_text())["rows"] for i in range(2))
    assert [r["role"] for r in beside] == ["bicubic", "beside", "teacher", "student"]
    assert without == [r for r in beside if r["role"] != "beside"] and beside[1]["parameters"] > 0
    assert len(list((place / "cache" / "outputs").glob("*/*"))) == 1, "its outputs are not cached"
    wrong = recipe_file(place, **changes, compare={"beside": [teacher("edsr")]})
    refused = run("run", wrong, "--inline")
    assert refused.code == 2 and "names must differ" in refused.err
