"""`faculty run --auto`: the ladder, what it leaves, and what a stop or a kill leaves of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from auto_kit import FIRST, auto, file, hurried, ladder_pictures
from command_kit import run, until
from road_kit import environment, snapshot

from pipeline.errors import FacultyError
from pipeline.search import allotment
from pipeline.search.choice import choose
from pipeline.search.run import Conductor
from pipeline.search.trial import Trial
from pipeline.tasks.super_resolution.candidates import CANDIDATES

QUICK = """
from pipeline.search import allotment
from pipeline.search.ladder import Ladder
allotment.LEAST_STEPS, allotment.LONGER = 2, 1
allotment.pace_of = lambda trials: allotment.Pace(0.0, 1.0, 0.0) if any(t.curve for t in trials) else None
Ladder.clock = lambda self: 0.0
"""
"""A step takes a second and nothing else takes any: the same lengths on every machine."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that all ladders here share."""
    return ladder_pictures(tmp_path_factory.mktemp("ladders"))


def ladder_of(output: Path) -> Path:
    (found,) = output.glob("runs/r/auto/*/ladder.json")
    return found.parent


@pytest.fixture(scope="module")
def climbed(root: Path, tmp_path_factory: pytest.TempPathFactory):
    """A whole ladder of two candidates beside scratch."""
    output = tmp_path_factory.mktemp("climbed")
    file(root, output)
    with pytest.MonkeyPatch.context() as patch:
        hurried(patch)
        done = auto(output, "--candidates", "kd,mtkd")
    assert done.code == 0, done.err
    return output, done


# ---- a whole ladder


def test_every_rung_is_told_with_scratch_on_it(climbed) -> None:
    output, done = climbed
    assert list(done.auto["candidates"]) == ["scratch", "mtkd", "kd"]
    first, last = done.auto["rungs"]
    assert first["steps"] == FIRST and [t["candidate"] for t in first["trials"]] == ["scratch", "mtkd", "kd"]
    # 180 s less 12 s: 58.8 s for 3 trainings from 2 seeds each, of one second a step.
    assert last["steps"] == 9 and [t["seed"] for t in last["trials"]] == [0, 1] * 3
    assert {t["candidate"] for t in last["trials"]} == {"scratch", "mtkd", "kd"}
    assert all(t["steps"] == last["steps"] and t["status"] == "finished" for t in last["trials"])
    values: dict[str, list[float]] = {}
    for trial in last["trials"]:
        values.setdefault(trial["candidate"], []).append(trial["psnr_y"])
    assert done.auto["chosen"] == choose(values, ["mtkd"], 0.001)
    assert done.auto["final"]["steps"] == 159, "95 % of 168 s"
    assert done.json["rows"][-1]["role"] == "student" and len(done.json["students"]) == 1
    assert "What was tried" in done.out and "9 steps each" in done.auto["verdict"]


def test_the_report_shows_the_ladder(climbed) -> None:
    _, done = climbed
    page = Path(done.json["report"]).read_text()
    assert "What was tried: PSNR, dB on held-out pictures" in page and "chosen: 159 steps" in page
    assert "<td>9 steps</td>" not in page and "9 steps</th>" in page
    markdown = Path(done.json["report"]).with_suffix(".md").read_text()
    assert "| candidate | 4 steps | 9 steps |" in markdown


def test_best_yaml_is_a_recipe_whose_training_is_done(climbed, root: Path) -> None:
    output, done = climbed
    settings = yaml.safe_load(Path(done.auto["best"]).read_text())
    assert settings["train"]["steps"] == 159 and settings["compare"]["methods"] == []
    before = snapshot(output / "runs" / "r" / "trainings")
    again = run("run", done.auto["best"], "--inline", "--json", output / "again.json")
    assert again.code == 0, again.err
    assert snapshot(output / "runs" / "r" / "trainings") == before, "nothing was trained again"
    found = json.loads((output / "again.json").read_text())
    assert found["rows"] == done.json["rows"]
    assert "What was tried" in Path(found["report"]).read_text(), "how it was chosen is said there too"


def test_the_same_command_again_trains_nothing(climbed, quick) -> None:
    output, done = climbed
    places = [output / "runs" / "r" / "trainings", ladder_of(output) / "trials"]
    before = [snapshot(place) for place in places]
    again = auto(output, "--candidates", "kd,mtkd")
    assert again.code == 0, again.err
    assert [snapshot(place) for place in places] == before
    assert again.auto["rungs"] == done.auto["rungs"] and again.auto["final"] == done.auto["final"]


def test_a_ladder_without_its_clock_measures_anew(
    climbed, root: Path, tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its trainings are there, and what they took was deleted with the folder `auto`."""
    output, _ = climbed
    shutil.copytree(output / "runs", tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs/r/auto")
    file(root, tmp_path)
    timed = allotment.pace_of
    monkeypatch.setattr(allotment, "pace_of", lambda trials: timed([t for t in trials if len(t.times) > 1]))
    done = auto(tmp_path, "--candidates", "kd,mtkd")
    assert done.code == 0, done.err
    assert [rung["steps"] for rung in done.auto["rungs"]] == [FIRST + 1, 9]


def test_a_ladder_on_which_all_failed_begins_anew(
    root: Path, tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(root, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise FacultyError("No space left on device")

    with monkeypatch.context() as passing:
        passing.setattr("pipeline.steps.job.Job.run", full)
        done = auto(tmp_path, "--candidates", "kd")
        assert done.code != 0 and "No space left on device" in done.err and "tries again" in done.err
    done = auto(tmp_path, "--candidates", "kd")
    assert done.code == 0, done.err
    assert done.auto["chosen"] in ("scratch", "kd", "mtkd")


def test_test_pictures_are_never_looked_at_before_the_choice(climbed) -> None:
    """Of all students that were trained, the last one alone has figures of test pictures."""
    output, done = climbed
    run_folder = output / "runs" / "r"
    trained = {json.loads(p.read_text())["fingerprint"] for p in run_folder.glob("trainings/*/result.json")}
    scored = {p.stem.removeprefix("student-") for p in run_folder.glob("scores/**/student-*.json")}
    assert len(trained) == 10 and len(scored) == 1 and scored < trained, (
        "three of 4 steps, six of 9, the last"
    )
    (student,) = [r for r in done.json["rows"] if r["role"] == "student"]
    assert student["sets"]["Bench"]["images"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_over_ray_the_same_ladder(
    climbed, root: Path, tmp_path: Path, quick, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Side by side in processes of Ray Tune's: the same figures, the same choice; one that diverges is left."""
    monkeypatch.setitem(CANDIDATES, "wild", {"train.lr": 1e30})
    file(root, tmp_path)
    result = tmp_path / "out.json"
    options = ("--auto", "--minutes", 3, "--candidates", "kd,mtkd,wild", "--json", result)
    done = run("run", tmp_path / "recipe.yaml", *options)
    assert done.code == 0, done.err
    found, whole = json.loads(result.read_text())["auto"], climbed[1].auto
    first, last = found["rungs"]
    here = {t["candidate"]: t["psnr_y"] for t in whole["rungs"][0]["trials"]}
    there = {t["candidate"]: t["psnr_y"] for t in first["trials"] if t["status"] == "finished"}
    assert there == here and first["trials"][-1]["status"] == "failed"
    # Two side by side: twice the steps, less what processes take to start.
    assert 15 <= last["steps"] < 19 and len(last["trials"]) == 6
    assert found["chosen"] in here and 140 < found["final"]["steps"] < 159


# ---- stopped


def test_a_ladder_that_was_stopped_goes_on_with_the_same_rungs(
    climbed, root: Path, tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(root, tmp_path)
    ended, end = [], Conductor.end

    def stop(self: Conductor, trial: Trial, *rest: str) -> None:
        end(self, trial, *rest)
        ended.append(trial.number)
        if len(ended) == 5:  # the first rung, and two trainings of the second
            raise KeyboardInterrupt

    monkeypatch.setattr(Conductor, "end", stop)
    done = auto(tmp_path, "--candidates", "kd,mtkd")
    assert done.code == 130 and "the same command goes on" in done.err
    before = snapshot(ladder_of(tmp_path) / "trials")
    assert len(before) == 5
    monkeypatch.setattr(Conductor, "end", end)
    done = auto(tmp_path, "--candidates", "kd,mtkd")
    assert done.code == 0, done.err
    after = snapshot(ladder_of(tmp_path) / "trials")
    assert all(after[name] == before[name] for name in before), "what was finished is read"
    whole = climbed[1].auto

    def figures(found: dict) -> list:
        return [[(t["candidate"], t["seed"], t["psnr_y"]) for t in rung["trials"]] for rung in found["rungs"]]

    assert figures(done.auto) == figures(whole), "bit for bit, on a CPU"
    assert (done.auto["chosen"], done.auto["final"]["steps"]) == (whole["chosen"], whole["final"]["steps"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_ladder_that_was_killed_goes_on_with_the_same_rungs(climbed, root: Path, tmp_path: Path) -> None:
    file(root, tmp_path)
    script = (
        f"{QUICK}\nimport pipeline.search.auto as a; a.FIRST = ({FIRST}, {FIRST})\n"
        "import sys; from pipeline.cli import main; sys.exit(main())"
    )
    options = ["run", "recipe.yaml", "--auto", "--minutes", "3", "--inline", "--candidates", "kd,mtkd"]
    command = [sys.executable, "-c", script, *options, "--json", "out.json"]
    work = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
    try:
        until(lambda: list(tmp_path.rglob("trials/00004.json")), work, 400)
        work.send_signal(signal.SIGKILL)
    finally:
        work.kill()
        work.communicate()
    before = {
        name: state
        for name, state in snapshot(ladder_of(tmp_path) / "trials").items()
        if json.loads((ladder_of(tmp_path) / "trials" / name).read_text())["status"] == "finished"
    }
    assert 3 <= len(before) < 9, "the first rung at least"
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = snapshot(ladder_of(tmp_path) / "trials")
    assert all(after[name] == before[name] for name in before)
    found, whole = json.loads((tmp_path / "out.json").read_text())["auto"], climbed[1].auto
    assert [r["steps"] for r in found["rungs"]] == [r["steps"] for r in whole["rungs"]]
    assert (found["chosen"], found["final"]["steps"]) == (whole["chosen"], whole["final"]["steps"])
