"""Sweeps over recognition recipes: gaps and weights on one shared cache, Pareto, failures, over Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import road_kit
import yaml
from command_kit import run
from PIL import Image
from recognition_kit import LARGE, content, picture_folder, recipe, space_file

from pipeline.cache.store import Store
from pipeline.cost import multiply_adds
from pipeline.progress import Quiet
from pipeline.search.run import Conductor
from pipeline.search.space import load_space
from pipeline.search.sweep import Plan, Sweep
from pipeline.tasks.recognition.networks import build
from pipeline.tasks.recognition.recipe import Network


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
    assert first["gap"] == 2 and first["method.soft"] == 0.8 and first["method.adversarial"] == 0.1
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
