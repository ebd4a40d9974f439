"""Spaces over recognition recipes: the method's weights, gaps, schedules, and what trials are compared by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import road_kit
import yaml
from recognition_kit import EVERY_TERM, LARGE, recipe, space_file

from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.recognition_methods import METHODS
from pipeline.recipe.schedule import Piecewise, peak, scaled_to
from pipeline.search.report import best_recipe
from pipeline.search.run import accuracy, checker
from pipeline.search.space import Axis, load_space, own_value, value_at, with_values
from pipeline.search.sweep import Plan, Sweep, Trial
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.registry import task_named, task_of

WEIGHTS = {
    "kd": ["soft"],
    "rkd": ["angles", "contrast", "distances", "soft"],
    "horkd": ["contrast", "gamma", "group", "order1", "order2", "order3", "soft"],
}


# ---- spaces


@pytest.mark.parametrize("method", WEIGHTS)
def test_loss_weights_are_those_of_the_method_around_its_defaults(tmp_path: Path, method: str) -> None:
    settings = recipe(tmp_path, method={"name": method})
    space = load_space("loss_weights", settings, checker(InlineEngine("cpu"), Quiet()))
    assert sorted(a.path for a in space.axes) == [f"method.{name}" for name in WEIGHTS[method]]
    for axis in space.axes:
        assert axis.middle() == pytest.approx(peak(value_at(settings, axis.path)))
        assert own_value(settings, axis) == peak(value_at(settings, axis.path))


def test_a_method_with_one_term_is_told_so_and_keeps_the_gap(tmp_path: Path) -> None:
    settings = recipe(tmp_path, method={"name": "scratch"}, data=LARGE)
    with pytest.raises(InputError, match="none that fits: loss_weights: method scratch has one loss term"):
        load_space("loss_weights", settings)
    space = load_space("joint", settings)
    assert [a.path for a in space.axes] == ["gap"] and "one loss term" in space.notes[0]


def test_a_term_that_is_off_stays_off(tmp_path: Path) -> None:
    settings = recipe(
        tmp_path, method={**EVERY_TERM, "adversarial": 0.0, "mmd": 0, "contrast": 0, "angles": 0}
    )
    space = load_space("loss_weights", settings)
    assert sorted(a.path for a in space.axes) == [
        f"method.{name}" for name in ("distances", "feature", "pairwise", "soft")
    ]
    assert "method.adversarial: left out, the recipe has 0 there" in space.notes
    pisr = road_kit.recipe(tmp_path, method={"name": "pisr"})
    assert [a.path for a in load_space("loss_weights", pisr).axes] == ["method.vid"]
    both = road_kit.recipe(tmp_path, method={"name": "pisr", "distill": 1.0, "vid": 0})
    assert [a.path for a in load_space("loss_weights", both).axes] == ["method.distill"]


def test_gaps_that_leave_too_few_pixels_are_left_out_and_named(tmp_path: Path) -> None:
    space = load_space("resolution_gap", recipe(tmp_path, data=LARGE))
    assert [(a.path, a.arguments) for a in space.axes] == [("gap", (2, 4))]
    assert "gap: left out 8 (" in space.notes[0] and "2x2 pixels of 16x16" in space.notes[0]
    with pytest.raises(InputError, match="space resolution_gap: expected at least one.*gap: left out 4"):
        load_space("resolution_gap", recipe(tmp_path))
    weights = load_space("joint", recipe(tmp_path))
    assert "gap" not in [a.path for a in weights.axes] and len(weights.notes) == 1


@pytest.mark.parametrize("task", ["classification", "verification", "retrieval", "segmentation"])
def test_spaces_know_every_task(tmp_path: Path, task: str) -> None:
    layout = {"layout": "masks" if task == "segmentation" else "folders", "root": "x", "size": 32}
    for method in METHODS:
        settings = recipe(tmp_path, task=task, data=layout, method={"name": method})
        assert load_space("resolution_gap", settings).axes[0].arguments == (2, 4, 8)
        on = set(WEIGHTS.get(method, ())) - ({"contrast"} if task == "segmentation" else set())
        joint = load_space("joint", settings)
        assert len(joint.axes) == 1 + len(on), "the gap, and the weights; masks have no contrast"


def test_paths_of_the_other_kind_of_recipe_are_refused(tmp_path: Path) -> None:
    theirs = road_kit.recipe(tmp_path)
    with pytest.raises(InputError, match="gap.*unknown key"):
        load_space(space_file(tmp_path, "SPACE = {'gap': ('choice', 2, 4)}"), theirs)
    for path, values in (("scale", "2, 4"), ("held_out", "2, 4"), ("method.distill", "1.0, 2.0")):
        with pytest.raises(InputError, match="unknown key"):
            load_space(space_file(tmp_path, f"SPACE = {{'{path}': ('choice', {values})}}"), recipe(tmp_path))


# ---- weights that are schedules


def test_a_number_is_the_peak_of_the_recipes_schedule(tmp_path: Path) -> None:
    rising = {"kind": "linear", "start": 0.0, "end": 0.1, "begin": 0.05, "until": 0.2}
    settings = recipe(tmp_path, method={"name": "rkd", "adversarial": rising})
    adversarial = with_values(settings, {"method.adversarial": 0.4}).method.adversarial
    assert (adversarial.start, adversarial.end, adversarial.begin, adversarial.until) == (0.0, 0.4, 0.05, 0.2)
    points = {"kind": "piecewise", "points": [[0.0, 0.5], [0.5, -2.0], [1.0, 0.0]]}
    assert Piecewise.model_validate(scaled_to(points, -1.0)).points == ((0.0, 0.25), (0.5, -1.0), (1.0, 0.0))
    flat = {"kind": "linear", "start": 0.0, "end": 0.0, "begin": 0.0, "until": 1.0}
    assert scaled_to(flat, 3.0) == 3.0 and scaled_to(points, flat) == flat and scaled_to(2.0, 3.0) == 3.0


def test_schedules_of_a_super_resolution_recipe_too(tmp_path: Path) -> None:
    falling = {"kind": "cosine", "start": 2.0, "end": 0.5}
    settings = road_kit.recipe(tmp_path, method={"name": "mtkd", "distill": falling})
    axis = next(a for a in load_space("loss_weights", settings).axes if a.path == "method.distill")
    assert own_value(settings, axis) == 2.0
    changed = with_values(settings, {"method.distill": 1.0}).method.distill
    assert (changed.start, changed.end) == (1.0, 0.25)


# ---- gaps, metrics


def test_a_trial_has_one_gap_and_the_best_recipe_all_where_gaps_are_not_tried(tmp_path: Path) -> None:
    settings = recipe(tmp_path, data=LARGE, gap=[4, 2])
    sweep = sweep_of(tmp_path / "a", settings, load_space("loss_weights", settings))
    trial = sweep.ask()
    assert sweep.plan.trial_recipe(trial).gap == 4
    assert yaml.safe_load(best_recipe(sweep, trial))["gap"] == [4, 2]
    gaps = sweep_of(tmp_path / "b", settings, load_space("resolution_gap", settings))
    first = gaps.ask()
    assert first.values == {"gap": 4}, "the recipe's own comes first"
    assert yaml.safe_load(best_recipe(gaps, Trial(0, {"gap": 2})))["gap"] == 2
    assert own_value(settings, Axis("gap", "choice", (1, 8))) == 1


def sweep_of(folder: Path, settings: Recognition, space: Any, trials: int = 2) -> Sweep:
    sweep = Sweep(Plan(settings, space, 9), Store.open(folder), trials)
    sweep.begin(resume=False)
    return sweep


def test_trials_are_compared_by_the_tasks_first_validation_figure(tmp_path: Path) -> None:
    for task in ("classification", "verification", "retrieval", "segmentation"):
        layout = {"layout": "masks" if task == "segmentation" else "folders", "root": "x", "size": 32}
        settings = recipe(tmp_path, task=task, data=layout)
        metrics = task_named(task).metrics(settings)
        name = "held_out/" + task_of(settings).metric(settings).key
        reported = {f"held_out/{m.key}": 0.1 * (i + 1) for i, m in enumerate(reversed(metrics))}
        assert accuracy({"train/loss": 3.0, **reported}, name) == pytest.approx(0.1 * len(metrics))
        assert accuracy({**reported, name: math.nan}, name) is None
        assert accuracy({**reported, "last_phase": 0.0}, name) is None
