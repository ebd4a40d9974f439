"""Names that coincide: test sets, classes, teachers and variants stay apart, or are refused with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from road_kit import Road, content, faculty, picture, recipe, recipe_file, teacher

from pipeline.cache.manifest import Manifest
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.reading import checked, with_method
from pipeline.recipe.recipe import Recipe
from pipeline.report.charts import all_charts
from pipeline.report.table import PSNR, Row
from pipeline.road.run import Run, told_apart
from pipeline.steps.engines import InlineEngine
from pipeline.steps.values import Prepared, Samples
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.registry import task_of


def test_charts_of_sets_with_alike_names_are_files_of_their_own() -> None:
    names = ("Set (a)", "Set [a]", "SET (A)", "测试集一", "$x_$ and $y", "长" * 80 + "1", "长" * 80 + "2")
    rows = [Row("bicubic", "bicubic", {name: {"psnr_y": [30.0]} for name in names})]
    charts = all_charts(rows, PSNR, {"train/loss": {"m": [(1, 0.1)]}, "train_loss": {"m": [(1, 0.2)]}})
    assert len({stem.casefold() for stem in charts}) == len(names) + 2
    assert all(len(f"{stem}.svg".encode()) <= 255 for stem in charts)
    assert "ladder_测试集一" in charts and "ladder_Set_a_" in charts
    for name, svg in zip(names, charts.values(), strict=False):
        assert f">{name}: PSNR" in svg


def test_a_teacher_called_best_makes_best_ambiguous(tmp_path: Path) -> None:
    teachers = [{**teacher("edsr"), "name": "best"}, teacher("compact")]
    for changes in (
        {"method": {"name": "kd", "teacher": "best"}},
        {"method": {"name": "mtkd"}, "compare": {"methods": ["kd"]}},
    ):
        file = recipe_file(tmp_path, teachers=teachers, data={"test": []}, **changes)
        picture(tmp_path / "pictures" / "a.png", 96, 96, 0)
        done = faculty("run", file, "--inline", cwd=tmp_path)
        assert done.returncode == 2 and "method.teacher" in done.stderr and "`name`" in done.stderr
        assert not (tmp_path / "cache").exists()
    assert recipe(tmp_path, teachers=teachers).teachers[0].label == "best"  # other methods do not name one


def test_a_baseline_is_the_method_scratch_whatever_variants_are_called(tmp_path: Path) -> None:
    from pipeline.road.results import baseline

    class Some:
        """Of an outcome, what the baseline depends on."""

        def __init__(self, *jobs: Any) -> None:
            self.recipe, self.jobs, self.results = road.settings, jobs, ()

    variants = {"scratch-hr2-s1": {"name": "scratch", "hr": 2.0}}
    road = Road(recipe(tmp_path, method={"name": "scratch"}, compare={"variants": variants}))
    for seed, name in enumerate("abcde"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    *_, jobs = road.distill("scratch-hr2-s1", "scratch")
    assert [job.group for job in jobs] == ["scratch-hr2-s1-fsrcnn", "scratch-fsrcnn"]
    assert set(baseline(Some(*jobs)).values()) == {"scratch-fsrcnn"}


def test_teachers_of_pisr_in_one_comparison_have_labels_of_their_own(tmp_path: Path) -> None:
    variants = {"strong": {"name": "pisr", "imitation": 0.1}, "same": {"name": "pisr", "vid": 0.1}}
    settings = recipe(tmp_path, method={"name": "pisr"}, compare={"variants": variants})
    prepared = Prepared(Samples("tiles/x", {"train": Manifest("tiles", "0" * 16, {}, ())}))
    helper = task_of(settings).helper
    jobs = {m: helper(with_method(settings, m), m, prepared) for m in ("pisr", "strong", "same")}
    told = told_apart({m: job for m, job in jobs.items() if job is not None})
    assert told["same"].folder == told["pisr"].folder != told["strong"].folder
    labels = {m: job.label for m, job in told.items()}
    assert labels["same"] == labels["pisr"] != labels["strong"] and labels["strong"].endswith("-strong")


def test_assistants_of_a_comparison_keep_records_of_their_own(tmp_path: Path) -> None:
    budget = {"steps": 2, "batch": 8, "lr": 1e-3}
    net = {"name": "resnet8", "options": {"width": 4}, "embedding": 8}
    raw = {
        "name": "r",
        "task": "classification",
        "output": str(tmp_path / "runs"),
        "cache": {"root": str(tmp_path / "cache")},
        "data": {"size": 8, "views": {"count": 1}},
        "teacher": {"network": net, "train": budget},
        "student": net,
        "method": {"name": "horkd"},
        "train": budget,
        "compare": {
            "variants": {
                "warm": {"name": "horkd", "temperature": 8.0},
                "same": {"name": "horkd", "gamma": 1.0},
            }
        },
        "tracking": {"enabled": False},
    }
    run = Run(Recognition.model_validate(raw), InlineEngine("cpu"), Quiet())
    outcome = run.everything(["horkd", "warm", "same"], [0])
    helpers = {"teacher", "assistant", "assistant-warm"}
    assert set(run.tracked.trainings) == helpers | {job.label for job in outcome.jobs}
    assert outcome.prepared.helpers["horkd"].label == "assistant" in [r.name for r in outcome.results]


def test_two_classes_of_one_name_are_refused() -> None:
    raw = {
        "name": "r",
        "task": "classification",
        "data": {"layout": "npz", "root": "x.npz", "classes": ["a", "a"]},
        "teacher": {"train": {"steps": 1}},
        "method": {"name": "kd"},
    }
    with pytest.raises(InputError, match="names must differ"):
        checked(Recognition, raw, "recipe.yaml")


def test_two_test_sets_of_one_name_say_what_to_do(tmp_path: Path) -> None:
    for folder in ("x/Set", "y/Set"):
        picture(tmp_path / folder / "a.png", 48, 52, 1)
    raw = content(tmp_path, data={"test": [str(tmp_path / "x/Set"), str(tmp_path / "y/Set")]})
    with pytest.raises(InputError, match="Rename a folder"):
        road = Road(Recipe.model_validate(raw))
        road.run.task.tested(road.run)
