"""Sweeps in this process: what they leave, what a kill leaves of them, failures, their records."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_kit import run, until
from PIL import Image
from road_kit import command, content, environment, faculty, require_front, snapshot
from tune_kit import SPACE, file, folder, sweep_pictures, tracked

BUDGET = 9


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that every sweep here shares."""
    return sweep_pictures(tmp_path_factory.mktemp("sweeps"))


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
