"""Sweeps over recognition recipes: spaces, weights that are schedules, gaps, one shared cache, Pareto, failures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import road_kit
import yaml
from command_kit import run
from PIL import Image
from recognition_kit import content, picture_folder

from pipeline.cache.store import Store
from pipeline.cost import multiply_adds
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.recognition_methods import METHODS
from pipeline.recipe.schedule import Piecewise, peak, scaled_to
from pipeline.search.report import best_recipe
from pipeline.search.run import Conductor, accuracy, checker
from pipeline.search.space import Axis, load_space, own_value, value_at, with_values
from pipeline.search.sweep import Plan, Sweep, Trial
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recognition.networks import build
from pipeline.tasks.recognition.recipe import Network, Recognition
from pipeline.tasks.registry import task_named, task_of

WEIGHTS = {
    "kd": ["soft"],
    "rkd": ["adversarial", "feature", "mmd", "pairwise", "soft"],
    "horkd": ["gamma", "group", "order1", "order2", "order3", "soft"],
}
LARGE = {"layout": "digits", "size": 16, "views": {"count": 2, "shift": 1}}


def recipe(root: Path, **changes: Any) -> Recognition:
    return Recognition.model_validate(content(root, **changes))


def space_file(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


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
    settings = recipe(tmp_path, method={"name": "rkd", "adversarial": 0.0, "mmd": 0})
    space = load_space("loss_weights", settings)
    assert sorted(a.path for a in space.axes) == ["method.feature", "method.pairwise", "method.soft"]
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
        joint = load_space("joint", settings)
        assert len(joint.axes) == 1 + len(WEIGHTS.get(method, ())), "the gap, and the weights"


def test_paths_of_the_other_kind_of_recipe_are_refused(tmp_path: Path) -> None:
    theirs = road_kit.recipe(tmp_path)
    with pytest.raises(InputError, match="gap.*unknown key"):
        load_space(space_file(tmp_path, "SPACE = {'gap': ('choice', 2, 4)}"), theirs)
    for path, values in (("scale", "2, 4"), ("held_out", "2, 4"), ("method.distill", "1.0, 2.0")):
        with pytest.raises(InputError, match="unknown key"):
            load_space(space_file(tmp_path, f"SPACE = {{'{path}': ('choice', {values})}}"), recipe(tmp_path))


# ---- weights that are schedules


def test_a_number_is_the_peak_of_the_recipes_schedule(tmp_path: Path) -> None:
    settings = recipe(tmp_path, method={"name": "rkd"})
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


# ---- whole sweeps


def tune(root: Path, *options: object, space: str, budget: int = 9, **changes: Any) -> SimpleNamespace:
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(root, **changes)))
    result = root / "sweep.json"
    more = ("--space", space, "--budget", budget, "--inline", "--json", result, *options)
    done = run("tune", file, *more)
    sweep = json.loads(result.read_text()) if result.exists() else {}
    return SimpleNamespace(code=done.code, out=done.out, err=" ".join(done.err.split()), sweep=sweep)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SimpleNamespace]:
    """Four trials over gap and weights of RKD on digits, accuracy against cost."""
    root = tmp_path_factory.mktemp("recognition")
    done = tune(root, "--trials", 5, "--objective", "pareto", space="joint", data=LARGE)
    return root, done


def test_a_sweep_over_gap_and_weights_on_one_cache(swept: tuple[Path, SimpleNamespace]) -> None:
    root, done = swept
    assert done.code == 0, done.err
    assert "gap: left out 8" in done.err
    trials = done.sweep["trials"]
    first = trials[0]["values"]
    assert first["gap"] == 2 and first["method.soft"] == 0.3 and first["method.adversarial"] == 0.1
    assert {t["status"] for t in trials} <= {"finished", "stopped"} and len(trials) == 5
    assert all(0 <= t["accuracy"] <= 1 for t in trials)
    assert len({t["values"]["gap"] for t in trials}) == 2, "both gaps were tried"
    assert len(list((root / "cache").rglob("weights.safetensors"))) == 1, "one teacher"
    assert len(list((root / "cache" / "outputs" / "recognition").iterdir())) == 1, (
        "whose outputs serve both gaps"
    )


def test_its_front_weighs_accuracy_against_the_students_cost(swept: tuple[Path, SimpleNamespace]) -> None:
    _, done = swept
    trials = done.sweep["trials"]
    costs = {t["values"]["gap"]: t["multiply_adds"] for t in trials}
    student = content(Path())["student"]
    for gap, cost in costs.items():
        side = 16 // gap
        assert cost == multiply_adds(build(Network(**student), (side, side), 10), (1, 3, side, side))
    assert costs[4] < costs[2]
    finished = [t for t in trials if t["status"] == "finished"]
    front = [t for t in finished if t["pareto"]]
    road_kit.require_front(finished)
    assert front and "*" in done.out
    for name in ("parallel.png", "pareto.png"):
        assert Image.open(done.sweep["files"][name]).size > (300, 300)


def test_its_best_recipe_runs_and_reuses_the_cache(swept: tuple[Path, SimpleNamespace]) -> None:
    root, done = swept
    best = done.sweep["files"]["best.yaml"]
    settings = yaml.safe_load(Path(best).read_text())
    assert settings["gap"] == done.sweep["best"]["values"]["gap"]
    assert settings["method"]["adversarial"] == done.sweep["best"]["values"]["method.adversarial"]
    before = road_kit.hashes(root / "cache")
    ended = run("distill", best, "--inline")
    assert ended.code == 0, ended.err
    assert road_kit.hashes(root / "cache") == before
    score = done.sweep["best"]["multiply_adds"]
    student = next(root.rglob("trainings/rkd-*/weights.safetensors"))
    assert student.is_file() and score > 0


def test_a_finished_sweep_has_nothing_left_to_do(swept: tuple[Path, SimpleNamespace]) -> None:
    root, done = swept
    again = tune(root, "--trials", 5, "--objective", "pareto", "--resume", space="joint", data=LARGE)
    assert again.code == 0 and again.sweep["trials"] == done.sweep["trials"]


def folders(root: Path) -> dict[str, Any]:
    return {"layout": "folders", "root": picture_folder(root, 2, 8), "size": 16, "views": {"count": 2}}


def test_gaps_share_the_assistant_and_weights_do_not(tmp_path: Path) -> None:
    data, method = folders(tmp_path), {"name": "horkd"}
    done = tune(tmp_path, "--trials", 3, space="resolution_gap", data=data, method=method, budget=2)
    assert done.code == 0, done.err
    assert "--objective pareto" in done.err, "accuracy alone favours the least gap"
    assert len(list((tmp_path / "cache").rglob("networks/assistant-*/weights.safetensors"))) == 1
    done = tune(tmp_path, "--trials", 2, space="loss_weights", data=data, method=method, budget=2)
    assert done.code == 0, done.err
    assert len(list((tmp_path / "cache").rglob("networks/assistant-*/weights.safetensors"))) == 2
    assert len(list((tmp_path / "cache").rglob("networks/teacher-*/weights.safetensors"))) == 1


def test_scratch_needs_no_teacher(tmp_path: Path) -> None:
    done = tune(
        tmp_path, "--trials", 2, space="joint", data=folders(tmp_path), method={"name": "scratch"}, budget=2
    )
    assert done.code == 0, done.err
    assert not list((tmp_path / "cache").rglob("weights.safetensors"))


def test_an_assistant_that_diverges_fails_its_trial_alone(tmp_path: Path) -> None:
    space = space_file(tmp_path, "SPACE = {'train.lr': ('choice', 1e30, 1e-3)}")
    method = {"name": "horkd"}
    budget = {"steps": 6, "batch": 8, "lr": 1e30, "evaluate_every": 3, "log_every": 3}
    done = tune(
        tmp_path,
        "--trials",
        4,
        space=space,
        data=folders(tmp_path),
        method=method,
        train=budget,
        budget=4,
    )
    first, *others = done.sweep["trials"]
    assert first["status"] == "failed" and "phase assistant" in first["cause"], done.err
    assert {t["values"]["train.lr"] for t in others} == {1e-3, 1e30} or done.code in (0, 1)
    assert all((t["status"] == "failed") is (t["values"]["train.lr"] > 1) for t in done.sweep["trials"])


# ---- over Ray


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_over_ray_with_an_assistant_before_each_trial(ray_local: None, tmp_path: Path) -> None:
    from ray_kit import placement_groups

    from pipeline.engine import tune as tuning
    from pipeline.engine.ray_engine import RayEngine

    settings = recipe(tmp_path, data=folders(tmp_path), method={"name": "horkd"}, distill={})
    space = load_space("joint", settings)
    sweep = Sweep(Plan(settings, space, 4, "pareto"), Store.open(tmp_path / "sweep"), 3)
    sweep.begin(resume=False)
    tuning.run(Conductor(sweep, RayEngine(), Quiet()), None, None)
    trials = list(sweep.trials.values())
    assert len(trials) == 3 and all(t.status in ("finished", "stopped") for t in trials)
    assert all(0 <= t.accuracy <= 1 and t.multiply_adds > 0 for t in trials)
    assert sweep.front() and placement_groups() == []
