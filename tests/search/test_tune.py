"""Sweeps: the search, what a kill leaves, failures, what is written. In this process, and a few over Ray Tune."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_kit import run, until
from PIL import Image
from ray_kit import end_ray, of_ray, placement_groups
from road_kit import command, content, environment, faculty, picture, recipe, require_front, snapshot

from pipeline.cache.store import Store
from pipeline.engine import together
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.search.run import Conductor
from pipeline.search.space import load_space
from pipeline.search.sweep import Plan, Sweep
from pipeline.steps.engines import InlineEngine

SPACE = "SPACE = {'method.distill': ('loguniform', 0.1, 10.0), 'train.lr': ('loguniform', 1e-4, 1e-2)}"
BUDGET = 9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that every sweep here shares."""
    folder = tmp_path_factory.mktemp("sweeps")
    for seed, name in enumerate("abc"):
        picture(folder / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return folder


def settings(root: Path, output: Path, **changes: object) -> object:
    return recipe(root, output=str(output / "runs"), **changes)


def file(root: Path, output: Path, space: str = SPACE, **changes: object) -> Path:
    """A recipe and a space in `output`."""
    (output / "mine.py").write_text(space)
    changes = {"output": str(output / "runs"), "cache": {"root": str(root / "cache")}, **changes}
    (output / "recipe.yaml").write_text(yaml.safe_dump(content(root, **changes)))
    return output / "recipe.yaml"


def tune(root: Path, output: Path, *more: object, space: str = SPACE, **changes: object) -> SimpleNamespace:
    path = file(root, output, space, **changes)
    options = (
        "--space",
        output / "mine.py",
        "--budget",
        BUDGET,
        "--inline",
        "--json",
        output / "sweep.json",
        *more,
    )
    done = run("tune", path, *options)
    result = output / "sweep.json"
    sweep = json.loads(result.read_text()) if result.exists() else {}
    return SimpleNamespace(code=done.code, out=done.out, err=" ".join(done.err.split()), sweep=sweep)


def folder(output: Path) -> Path:
    (found,) = (output / "runs" / "r" / "sweeps").iterdir()
    return found


# ---- what a sweep leaves


@pytest.fixture(scope="module")
def swept(root: Path, tmp_path_factory: pytest.TempPathFactory):
    output = tmp_path_factory.mktemp("swept")
    return output, tune(root, output, "--trials", 6)


def test_a_sweep_ends_with_a_table_and_files(swept) -> None:
    output, done = swept
    assert done.code == 0, done.err
    trials = done.sweep["trials"]
    assert [t["trial"] for t in trials] == list(range(6))
    assert trials[0]["values"] == {"method.distill": 1.0, "train.lr": 1e-3}, (
        "the recipe's own values come first"
    )
    assert {t["status"] for t in trials} == {"finished", "stopped"}
    assert all(t["steps"] == BUDGET for t in trials if t["status"] == "finished")
    stopped = [t for t in trials if t["status"] == "stopped"]
    assert stopped and all(t["steps"] in (1, 3) and "rung" in t["cause"] for t in stopped)
    assert done.sweep["steps"] == sum(t["steps"] for t in trials) < done.sweep["steps_without_stopping"]
    finished = [t for t in trials if t["status"] == "finished"]
    assert done.sweep["best"] == max(finished, key=lambda t: t["accuracy"])
    assert "saved" in done.out and all(name in done.sweep["files"] for name in ("best.yaml", "parallel.png"))
    for name in ("parallel.png", "pareto.png"):
        assert Image.open(done.sweep["files"][name]).size > (300, 300)


def test_best_yaml_is_a_recipe_of_full_length_that_runs(swept, root: Path) -> None:
    output, done = swept
    best = done.sweep["files"]["best.yaml"]
    checked = run("recipe", "check", best)
    assert checked.code == 0, checked.err
    settings = yaml.safe_load(Path(best).read_text())
    assert settings["train"]["lr"] == done.sweep["best"]["values"]["train.lr"]
    assert (
        settings["train"]["steps"] == content(root)["train"]["steps"]
        and settings["train"]["evaluate_every"] == 3
    )
    assert run("distill", best, "--inline").code == 0


def test_trials_share_one_cache(swept, root: Path) -> None:
    outputs = list((root / "cache" / "outputs").rglob("*.arrow"))
    assert len(outputs) == len({p.name for p in outputs}) * 2, "two teachers, each shard once"


def test_the_same_seed_tries_the_same_values_and_another_seed_others(
    swept, root: Path, tmp_path: Path
) -> None:
    def values(seed: int, name: str) -> list:
        (tmp_path / name).mkdir()
        return [
            t["values"] for t in tune(root, tmp_path / name, "--trials", 6, "--seed", seed).sweep["trials"]
        ]

    first = [t["values"] for t in swept[1].sweep["trials"]]
    assert values(0, "again") == first
    assert values(1, "other")[1:] != first[1:]


# ---- stopped and killed


def test_a_sweep_that_was_killed_goes_on_with_the_same_trials(swept, root: Path, tmp_path: Path) -> None:
    path = file(root, tmp_path)
    options = ("--space", "mine.py", "--budget", BUDGET, "--trials", 6, "--inline")
    work = subprocess.Popen(
        command("tune", path, *options), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE
    )
    try:  # the third trial has begun to train
        until(
            lambda: [p for p in tmp_path.rglob("trials/00002.json") if json.loads(p.read_text())["curve"]],
            work,
        )
    finally:
        work.kill()
        work.communicate()
    before = {p.name: json.loads(p.read_text()) for p in sorted(folder(tmp_path).glob("trials/*.json"))}
    assert len(before) < 6, "it was done before it could be killed"
    done = tune(root, tmp_path, "--trials", 6)
    assert done.code == 2 and "--resume goes on with it" in done.err
    kept = snapshot(folder(tmp_path) / "trials")
    done = tune(root, tmp_path, "--trials", 6, "--resume")
    assert done.code == 0, done.err
    assert [t["trial"] for t in done.sweep["trials"]] == list(range(6)), "none more, none fewer"
    for name, trial in before.items():
        if trial["status"] != "running":
            assert snapshot(folder(tmp_path) / "trials")[name] == kept[name], "what was finished stays"
    whole = {t["trial"]: t for t in swept[1].sweep["trials"]}
    for trial in done.sweep["trials"]:
        assert trial["values"] == whole[trial["trial"]]["values"]
        assert trial["accuracy"] == whole[trial["trial"]]["accuracy"], "bit for bit, on a CPU"
    again = tune(root, tmp_path, "--trials", 6, "--resume")
    assert again.code == 0 and again.sweep["trials"] == done.sweep["trials"], "nothing left to do"
    more = tune(root, tmp_path, "--trials", 7, "--resume")
    assert [t["trial"] for t in more.sweep["trials"]] == list(range(7))


def test_ctrl_c_stops_cleanly_and_the_same_records_go_on(root: Path, tmp_path: Path) -> None:
    path = file(root, tmp_path, tracking={"enabled": True})
    options = ("tune", path, "--space", "mine.py", "--trials", 2, "--inline", "--json", "sweep.json")
    work = subprocess.Popen(
        command(*options, "--budget", 300), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        until(
            lambda: [p for p in tmp_path.rglob("trials/00000.json") if json.loads(p.read_text())["curve"]],
            work,
        )
        work.send_signal(signal.SIGINT)
        _, said = work.communicate(timeout=180)
    finally:
        work.kill()
    assert work.returncode == 130 and "--resume" in said and "Traceback" not in said
    parent, children = tracked(tmp_path)
    assert parent["status"] == "KILLED" and [c["status"] for c in children] == ["RUNNING"]
    done = faculty(*options, "--budget", 300, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parent, children = tracked(tmp_path)
    assert parent["status"] == "FINISHED" and [c["status"] for c in children] == ["FINISHED"] * 2


def test_there_is_nothing_to_resume_at_first(root: Path, tmp_path: Path) -> None:
    done = tune(root, tmp_path, "--resume")
    assert done.code == 2 and "--resume: expected an earlier sweep" in done.err


# ---- failures


def test_a_trial_that_diverges_fails_with_its_cause_and_the_sweep_goes_on(root: Path, tmp_path: Path) -> None:
    space = "SPACE = {'train.lr': ('choice', 1e-3, 1e30, 2e-3)}"
    done = tune(root, tmp_path, "--trials", 4, space=space, train={"lr": 1e30})
    assert done.code == 0, done.err
    first, *others = done.sweep["trials"]
    assert first["status"] == "failed" and first["values"] == {"train.lr": 1e30}
    assert "phase distill, step 1: the term" in first["cause"] and first["steps"] == 1
    assert "trial-000 failed: phase distill" in " ".join(done.out.split())
    assert any(t["status"] == "finished" for t in others)


def test_values_that_clash_fail_alone(root: Path, tmp_path: Path) -> None:
    space = "SPACE = {'data.tile': ('choice', 48, 64), 'train.patch': ('choice', 12, 20)}"
    done = tune(root, tmp_path, "--trials", 6, "--seed", 3, space=space)
    assert done.code in (0, 2), done.err  # a patch of 20 never fits a tile of 48
    assert "train.patch" in done.err


def test_held_out_pictures_are_needed(root: Path, tmp_path: Path) -> None:
    done = tune(root, tmp_path, data={"holdout": 0.0})
    assert done.code == 2 and "data.holdout: expected above 0" in done.err


@pytest.mark.parametrize("option", ["--trials", "--concurrency", "--budget"])
def test_numbers_start_at_one(root: Path, tmp_path: Path, option: str) -> None:
    done = tune(root, tmp_path, option, 0)
    assert done.code == 2 and f"{option}: expected at least 1" in done.err


def test_a_space_is_refused_before_anything_is_made(root: Path, tmp_path: Path) -> None:
    done = tune(root, tmp_path, space="SPACE = {'method.distil': ('uniform', 0.0, 1.0)}")
    assert done.code == 2 and "method.distil" in done.err and not (tmp_path / "runs").exists()


# ---- accuracy against cost


def test_pareto_finds_the_front(root: Path, tmp_path: Path) -> None:
    space = "SPACE = {'student.options.d': ('choice', 4, 8, 16), 'train.lr': ('loguniform', 1e-4, 1e-2)}"
    done = tune(root, tmp_path, "--trials", 6, "--objective", "pareto", space=space)
    assert done.code == 0, done.err
    trials = done.sweep["trials"]
    costs = {t["values"]["student.options.d"]: t["multiply_adds"] for t in trials}
    assert sorted(costs.values()) == [costs[d] for d in sorted(costs)] and len(costs) > 1
    finished = [t for t in trials if t["status"] == "finished"]
    require_front(finished)
    assert "*" in done.out


# ---- the search itself


class Surface:
    """Trials on a known surface instead of a training: accuracy rises to `40 - (log10(distill) - 0.5)^2`."""

    def __init__(self, root: Path, trials: int, store: Path, seed: int = 0) -> None:
        (root / "mine.py").write_text("SPACE = {'method.distill': ('loguniform', 0.1, 10.0)}")
        plan = Plan(recipe(root), load_space(str(root / "mine.py"), recipe(root)), 90, seed=seed)
        self.sweep = Sweep(plan, Store.open(store), trials)
        self.sweep.begin(resume=False)
        self.sweep.save()

    def go(self) -> None:
        while (trial := self.sweep.ask()) is not None:
            top = 40 - (math.log10(trial.values["method.distill"]) - 0.5) ** 2
            for step in range(10, 91, 10):
                if self.sweep.report(trial, step, top - 1 / step):
                    self.sweep.finish(trial, "stopped", "rung")
                    break
            else:
                self.sweep.finish(trial, "finished")


def test_the_search_finds_the_top_of_a_surface_and_spends_little_elsewhere(tmp_path: Path) -> None:
    surface = Surface(tmp_path, 30, tmp_path / "s")
    surface.go()
    best = surface.sweep.best()
    assert abs(math.log10(best.values["method.distill"]) - 0.5) < 0.1
    late = [
        abs(math.log10(t.values["method.distill"]) - 0.5) for t in list(surface.sweep.trials.values())[15:]
    ]
    early = [
        abs(math.log10(t.values["method.distill"]) - 0.5) for t in list(surface.sweep.trials.values())[1:10]
    ]
    assert sorted(late)[len(late) // 2] < sorted(early)[len(early) // 2], "it learns"
    assert sum(t.steps for t in surface.sweep.trials.values()) < 0.7 * 30 * 90


def test_the_searcher_is_the_same_after_a_stop(tmp_path: Path) -> None:
    whole = Surface(tmp_path, 12, tmp_path / "whole")
    whole.go()
    half = Surface(tmp_path, 6, tmp_path / "half")
    half.go()
    again = Sweep(half.sweep.plan, half.sweep.store, 12)
    again.begin(resume=True)
    half.sweep = again
    half.go()
    got = {n: (t.values, t.status, t.curve) for n, t in again.trials.items()}
    assert got == {n: (t.values, t.status, t.curve) for n, t in whole.sweep.trials.items()}


def test_a_kill_between_the_evaluation_a_trial_stops_at_and_its_end_changes_nothing(tmp_path: Path) -> None:
    surface = Surface(tmp_path, 12, tmp_path / "whole")
    surface.go()
    stopped = [t for t in surface.sweep.trials.values() if t.status == "stopped"][-1]
    surface.sweep.finish(stopped, "running")  # as the evaluation alone leaves it
    again = Sweep(surface.sweep.plan, surface.sweep.store, 12)
    again.begin(resume=True)
    conductor = Conductor(again, InlineEngine(), Quiet())
    assert conductor.prepare(again.ask()) is None and again.exhausted
    assert (again.trials[stopped.number].status, again.trials[stopped.number].curve) == (
        "stopped",
        stopped.curve,
    )


# ---- over Ray


@pytest.mark.ray
def test_concurrency_follows_from_what_there_is() -> None:
    from pipeline.engine.shares import trials_at_once
    from pipeline.recipe.recipe import Distill

    def fits(distill: dict, trials: int | None, **have: float) -> tuple[int, float]:
        abreast, found = trials_at_once(Distill(**distill), trials, have)
        workers = distill.get("workers", 1)
        used = abreast * (0.1 + found.cpus_per_worker * (workers if isinstance(workers, int) else workers[0]))
        assert used <= have["CPU"] + 1e-6, "all drivers and workers fit at once"
        return abreast, round(found.cpus_per_worker, 3)

    assert fits({}, None, CPU=2) == (2, 0.9)
    assert fits({}, None, CPU=1) == (1, 0.9)
    assert fits({}, 1, CPU=2) == (1, 1.9)
    assert fits({}, 9, CPU=2) == (2, 0.9)
    assert fits({"workers": 2}, 4, CPU=2) == (1, 0.95)
    assert fits({"workers": 2}, None, CPU=1) == (1, 0.45)
    assert fits({"cpus_per_worker": 1}, 4, CPU=2) == (2, 0.9)
    assert fits({"cpus_per_worker": 4, "gpus_per_worker": 0.5}, None, CPU=64, GPU=2) == (4, 3.9)
    assert fits({"workers": (1, 4), "cpus_per_worker": 1}, None, CPU=2) == (1, 0.9)
    for distill, have in (
        ({"cpus_per_worker": 4}, {"CPU": 2}),
        ({"gpus_per_worker": 1}, {"CPU": 2, "GPU": 0}),
    ):
        with pytest.raises(InputError, match="distill: expected workers that fit"):
            trials_at_once(Distill(**distill), None, have)


@pytest.fixture
def on_ray(root: Path, tmp_path: Path):
    """A sweep over Ray in this process, and what Ray holds after it."""
    from pipeline.engine import tune as tuning
    from pipeline.engine.ray_engine import RayEngine

    def go(trials: int, budget: int, space: str, **changes: object) -> tuple[Sweep, list[str]]:
        (tmp_path / "mine.py").write_text(space)
        chosen = settings(root, tmp_path, **changes)
        reporter = Heard()
        plan = Plan(chosen, load_space(str(tmp_path / "mine.py"), chosen), budget)
        sweep = Sweep(plan, Store.open(tmp_path / "sweep"), trials)
        sweep.begin(resume=False)
        conductor = Conductor(sweep, RayEngine(), reporter)
        tuning.run(conductor, None, None)
        return sweep, reporter.said

    return go


def test_a_trial_whose_training_another_one_made_ends_with_its_whole_curve(
    root: Path, tmp_path: Path
) -> None:
    """Two trials with the same values at one time share a training; the one that waits hears nothing of its own."""
    (tmp_path / "mine.py").write_text("SPACE = {'train.lr': ('choice', 1e-3, 1e-4)}")
    chosen = settings(root, tmp_path)
    plan = Plan(chosen, load_space(str(tmp_path / "mine.py"), chosen), 4)
    sweep = Sweep(plan, Store.open(tmp_path / "sweep"), 2)
    sweep.begin(resume=False)
    conductor = Conductor(sweep, InlineEngine("cpu"), Heard())
    first, second = sweep.ask(), sweep.ask()
    assert first is not None and second is not None
    first.values = second.values = {"train.lr": 1e-3}
    orders = [conductor.prepare(trial) for trial in (first, second)]
    assert all(orders)
    orders[0].job.run(device="cpu")  # type: ignore[union-attr]
    for trial in (first, second):
        conductor.end(trial, "finished")
    assert (first.steps, second.steps) == (4, 4) and first.curve == second.curve


class Heard(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("shared", [False, True])
def test_over_ray_one_trial_diverges_and_the_others_go_on(
    ray_local: None, on_ray, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shared:  # as on a GPU: trials in threads of one process
        hall = together.Hall.options(max_concurrency=together.ABREAST)
        monkeypatch.setattr(together, "halls", lambda settings: [hall.remote("cpu")])
    space = "SPACE = {'train.lr': ('choice', 1e30, 1e-3)}"
    sweep, said = on_ray(2, 2, space, train={"lr": 1e30})  # a budget too short for rungs
    first, second = sweep.trials.values()
    assert first.status == "failed" and "phase distill, step 1: the term" in first.cause
    if second.values["train.lr"] < 1:
        assert (second.status, second.steps) == ("finished", 2)
    assert len(said) == 3 and "3 files found, 3 used" in said[0]  # once, not by every trial
    assert placement_groups() == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_over_ray_early_stops_leave_no_placement_group_and_no_process(ray_local: None, on_ray) -> None:
    from ray_kit import processes

    sweep, said = on_ray(5, 90, "SPACE = {'train.lr': ('choice', 1e-3, 1e-6, 1e-4)}", train={"lr": 1e-3})
    trials, said = list(sweep.trials.values()), [line for line in said if line.startswith("trial-")]
    assert len(trials) == len(said) == 5 and {t.status for t in trials} == {"finished", "stopped"}
    assert all(t.steps == 90 for t in trials if t.status == "finished")
    stopped = [(t.cause, t.steps) for t in trials if t.status == "stopped"]
    # One that repeats a stopped one's values goes on from its checkpoint: it is first heard of at step 20 or 40.
    assert all(cause.endswith(f"at step {steps}") and steps <= 40 for cause, steps in stopped), trials
    assert placement_groups() == []
    for kind in ("RayTrainWorker", "TrainController", "ImplicitFunc"):
        assert processes(kind) == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_over_ray_killed_half_way_ends_with_as_many_trials(
    root: Path,
    tmp_path: Path,
    ray_home: str,
) -> None:
    path = file(root, tmp_path, tracking={"enabled": True})
    options = ("tune", path, "--space", "mine.py", "--budget", 90, "--trials", 5, "--json", "sweep.json")
    work = subprocess.Popen(
        command(*options),
        cwd=tmp_path,
        env=environment(RAY_TMPDIR=ray_home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def states() -> list[str]:
        return [json.loads(p.read_text())["status"] for p in sorted(tmp_path.rglob("trials/*.json"))]

    try:
        until(lambda: len([s for s in states() if s != "running"]) >= 2, work, 400)
    finally:
        work.kill()
        work.communicate()
    end_ray(ray_home)
    assert "running" in states() or len(states()) < 5, "it was done before it could be killed"
    kept = {n: v for n, v in snapshot(folder(tmp_path) / "trials").items()}
    over = [
        n for n in kept if json.loads((folder(tmp_path) / "trials" / n).read_text())["status"] != "running"
    ]
    done = faculty(*options, "--resume", cwd=tmp_path, RAY_TMPDIR=ray_home, timeout=450)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert [t["trial"] for t in result["trials"]] == list(range(5))
    after = snapshot(folder(tmp_path) / "trials")
    assert over and all(after[n] == kept[n] for n in over)
    assert {t["status"] for t in result["trials"]} <= {"finished", "stopped"}
    assert of_ray(ray_home) == [], "no process is left"
    parent, children = tracked(tmp_path)
    assert parent["status"] == "FINISHED" and len(children) == 5
    for child in children:
        assert child["status"] == "FINISHED" and {"method.distill", "train.lr", "budget"} <= set(
            child["params"]
        )
        assert child["tags"]["stop"] and child["metrics"]["accuracy"] > 0


def tracked(place: Path) -> tuple[dict, list[dict]]:
    """The sweep's run and its trials', from the tracking store."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("r").experiment_id])
    plain = [
        {
            "status": r.info.status,
            "params": r.data.params,
            "tags": r.data.tags,
            "metrics": r.data.metrics,
            "id": r.info.run_id,
        }
        for r in found
    ]
    (parent,) = [r for r in plain if r["tags"].get("faculty.kind") == "sweep"]
    children = [r for r in plain if r["tags"].get("faculty.kind") == "trial"]
    assert all(r["tags"]["mlflow.parentRunId"] == parent["id"] for r in children)
    return parent, children


def test_trials_are_recorded_below_their_sweep(root: Path, tmp_path: Path) -> None:
    space = "SPACE = {'train.lr': ('choice', 1e30, 1e-3)}"
    done = tune(root, tmp_path, "--trials", 3, space=space, train={"lr": 1e30}, tracking={"enabled": True})
    assert done.code == 0, done.err
    parent, children = tracked(tmp_path)
    assert parent["tags"]["space"] == "mine" and parent["tags"]["best"].startswith("trial-")
    assert len(children) == 3
    for child in children:
        trial = done.sweep["trials"][int(child["tags"]["trial"])]
        assert child["params"]["train.lr"] == str(trial["values"]["train.lr"])
        assert child["status"] == ("FAILED" if trial["status"] == "failed" else "FINISHED")
        assert child["tags"]["stop"] == (trial["cause"] or "whole budget")[:500]
        # The same values again, after they failed, have nothing new to say.
        assert ("held_out/psnr_y" in child["metrics"]) is bool(trial["steps"])


def test_a_tracking_server_that_is_away_does_not_stop_a_sweep(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    done = tune(root, tmp_path, "--trials", 2, tracking={"enabled": True})
    assert done.code == 0, done.err
    assert list((tmp_path / "runs").rglob("*spool*")), "kept for `faculty track sync`"
