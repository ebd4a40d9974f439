"""What held-out crops looked like while a student learned: kept, shown in the report, never in the way."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from command_kit import run
from PIL import Image
from road_kit import picture, recipe_file

from pipeline.cache.store import Store
from pipeline.recipe.settings import Train
from pipeline.report.strip import columns
from pipeline.steps import seen
from pipeline.steps.seen import Strip


def test_moments_are_evaluations_nearer_to_each_other_at_the_start() -> None:
    assert seen.moments(Train(steps=4000, evaluate_every=500)) == (500, 1000, 2000, 4000)
    assert seen.moments(Train(steps=4000, evaluate_every=100)) == (100, 500, 1000, 2000, 4000)
    assert seen.moments(Train(steps=1000, evaluate_every=300)) == (300, 600, 1000)
    assert seen.moments(Train(steps=10, evaluate_every=500)) == (10,)


def test_what_is_kept_is_read_back_and_a_damaged_one_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(tmp_path)
    generator = np.random.default_rng(0)
    strips = {s: Strip(generator.integers(0, 256, (8, 12, 3), np.uint8), ("LR", "HR", "x")) for s in (5, 50)}
    for step, strip in strips.items():
        seen.keep(store, step, strip)
    for (step, read), (wanted, strip) in zip(seen.kept(store), strips.items(), strict=True):
        assert step == wanted and np.array_equal(read.picture, strip.picture)
        assert read.columns == strip.columns and read.side == 4
    file = tmp_path / "seen-00000005.png"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert [step for step, _ in seen.kept(store)] == [50]
    assert "seen-00000005.png is damaged" in caplog.text and "goes without it" in caplog.text
    assert not file.exists()


def test_names_stand_above_cells_of_whole_pixels() -> None:
    cells = np.zeros((40, 20, 3), np.uint8) + np.uint8([200, 10, 30])
    drawing = columns([("LR", cells), ("step 5", cells)], 20)
    flat = drawing.reshape(-1, 3)
    assert (flat == (200, 10, 30)).all(1).sum() == 4 * 140 * 140  # four cells, seven times as large
    assert drawing.shape[1] > drawing.shape[0] - 40


def test_a_run_shows_each_method_over_time(tmp_path: Path) -> None:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    train = {"steps": 8, "evaluate_every": 2, "batch": 2, "patch": 8}
    file = recipe_file(tmp_path, train=train, method={"name": "kd"}, compare={"methods": ["scratch"]})
    done = run("run", file, "--inline")
    assert done.code == 0, done.err
    off = {"kd": ("target", "HR", "student", "off target, x8"), "scratch": ("HR", "student", "off HR, x8")}
    report = (tmp_path / "runs/r/report/report.md").read_text()
    for method, names in off.items():
        (folder,) = (tmp_path / "runs/r/trainings").glob(f"{method}-*/0-*")
        moments = seen.kept(Store.open(folder))
        assert [step for step, _ in moments] == [2, 4, 8]
        first, last = moments[0][1], moments[-1][1]
        assert last.columns == ("LR", *names)
        assert np.array_equal(first.column("HR"), last.column("HR"))
        assert not np.array_equal(first.column("student"), last.column("student"))
        (name,) = re.findall(rf"!\[{method}-fsrcnn: held-out crops .*\((.+\.png)\)", report)
        drawing = np.asarray(Image.open(tmp_path / "runs/r/report" / name))
        cells = len(last.columns) - 1 + len(moments)
        assert drawing.shape[1] == 2 * 16 + cells * (3 * 48 + 10) - 10
