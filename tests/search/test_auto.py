"""`faculty run --auto`: the ladder, what it leaves, what a kill leaves of it, and how time is shared out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_kit import run, until
from recognition_kit import content as recognition
from road_kit import content, environment, picture, recipe, snapshot

from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import Upcycle
from pipeline.search import allotment
from pipeline.search.allotment import Pace
from pipeline.search.auto import candidates_of
from pipeline.search.ladder import Ladder
from pipeline.search.ladder_report import verdict
from pipeline.search.ladder_state import Step
from pipeline.search.run import Conductor
from pipeline.search.space import with_values
from pipeline.search.trial import Trial
from pipeline.tasks.super_resolution.candidates import CANDIDATES, candidates, settled

QUICK = """
from pipeline.search import allotment
from pipeline.search.ladder import Ladder
allotment.LEAST_STEPS, allotment.LONGER = 2, 1
allotment.pace_of = lambda trials: allotment.Pace(0.0, 1.0, 0.0) if any(t.curve for t in trials) else None
Ladder.clock = lambda self: 0.0
"""
"""A step takes a second and nothing else takes any: the same lengths on every machine."""
FIRST = 4
"""Steps of the first rung: the least."""


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process."""
    monkeypatch.setattr(allotment, "LEAST_STEPS", 2)
    monkeypatch.setattr(allotment, "LONGER", 1)
    monkeypatch.setattr(
        allotment, "pace_of", lambda trials: Pace(0.0, 1.0, 0.0) if any(t.curve for t in trials) else None
    )
    monkeypatch.setattr(Ladder, "clock", lambda self: 0.0)
    monkeypatch.setattr("pipeline.search.auto.FIRST", (FIRST, FIRST))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that all ladders here share."""
    folder = tmp_path_factory.mktemp("ladders")
    for seed, name in enumerate("abc"):
        picture(folder / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    picture(folder / "Bench" / "HR" / "one.png", 64, 72, 50)
    return folder


def file(root: Path, output: Path, **changes: object) -> Path:
    changes = {"output": str(output / "runs"), "cache": {"root": str(root / "cache")}, **changes}
    changes.setdefault("data", {"test": [str(root / "Bench")]})
    (output / "recipe.yaml").write_text(yaml.safe_dump(content(root, **changes)))
    return output / "recipe.yaml"


def auto(output: Path, *more: object, minutes: float = 3) -> SimpleNamespace:
    """The command on the recipe in `output`, in this process."""
    result = output / "out.json"
    result.unlink(missing_ok=True)
    options = ("--auto", "--minutes", minutes, "--inline", "--json", result, *more)
    done = run("run", output / "recipe.yaml", *options)
    found = json.loads(result.read_text()) if result.exists() else {}
    err = " ".join(done.err.split())
    return SimpleNamespace(code=done.code, out=done.out, err=err, json=found, auto=found.get("auto", {}))


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


def test_upcycling_is_tried_where_the_recipe_has_its_views(root: Path) -> None:
    for upcycle, tried in ((None, False), ({}, True), ({"zoom_in": 0, "zoom_out": 0}, False)):
        found = candidates(Recipe.model_validate(content(root, data={"upcycle": upcycle})))
        assert ("dukd" in found) is tried and set(CANDIDATES) <= set(found)


def test_who_is_named_is_tried_or_refused(root: Path) -> None:
    settings = recipe(root, method={"name": "mtkd", "low": 0.33})
    assert list(candidates_of(settings, lambda _: None, ("mtkd-low",))[0]) == ["scratch", "mtkd-low"]
    everyone, left_out = candidates_of(settings, lambda _: None)
    assert "mtkd" in everyone and left_out["mtkd-low"] == "is mtkd"
    alone = recipe(root, method={"name": "scratch"}, teachers=[])
    with pytest.raises(InputError, match="--candidates: .*kd: .*needs at least one teacher"):
        candidates_of(alone, lambda _: None, ("kd",))


def test_dukds_views_are_everybodys(root: Path) -> None:
    settings = settled(recipe(root, method={"name": "dukd"}))
    for candidate in candidates_of(settings, lambda _: None)[0].values():
        assert with_values(settings, candidate, "x").data.upcycle == Upcycle()


def test_every_rung_is_told_with_scratch_on_it(climbed) -> None:
    output, done = climbed
    assert list(done.auto["candidates"]) == ["scratch", "mtkd", "kd"]
    first, last = done.auto["rungs"]
    assert first["steps"] == FIRST and [t["candidate"] for t in first["trials"]] == ["scratch", "mtkd", "kd"]
    # 180 s less 12 s: 58.8 s for 3 trainings from 2 seeds each, of one second a step.
    assert last["steps"] == 9 and [t["seed"] for t in last["trials"]] == [0, 1] * 3
    assert {t["candidate"] for t in last["trials"]} == {"scratch", "mtkd", "kd"}
    assert all(t["steps"] == last["steps"] and t["status"] == "finished" for t in last["trials"])
    means: dict[str, float] = {}
    for trial in last["trials"]:
        means[trial["candidate"]] = means.get(trial["candidate"], 0.0) + trial["psnr_y"] / 2
    assert done.auto["chosen"] == max(means, key=lambda name: means[name])
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


# ---- candidates


@pytest.mark.slow
def test_one_candidate_diverges_and_the_others_go_on(
    root: Path, tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CANDIDATES, "wild", {"train.lr": 1e30})
    file(root, tmp_path, tracking={"enabled": True})
    done = auto(tmp_path, "--candidates", "kd,wild")
    assert done.code == 0, done.err
    first, last = done.auto["rungs"]
    states = {t["candidate"]: (t["status"], t["cause"]) for t in first["trials"]}
    assert states["wild"][0] == "failed" and "the term" in states["wild"][1]
    assert states["scratch"][0] == states["kd"][0] == "finished"
    assert {t["candidate"] for t in last["trials"]} == {"scratch", "kd"}
    assert "wild-4-s0 failed: phase distill, step 1: the term" in done.out

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("r").experiment_id])
    (ladder,) = [r for r in found if r.data.tags.get("faculty.kind") == "auto"]
    trials = [r for r in found if r.data.tags.get("faculty.kind") == "trial"]
    assert len(trials) == 7 and ladder.info.status == "FINISHED"
    assert all(r.data.tags["mlflow.parentRunId"] == ladder.info.run_id for r in trials)
    assert sorted(r.info.status for r in trials) == ["FAILED"] + ["FINISHED"] * 6
    assert {r.data.params["candidate"] for r in trials} == {"scratch", "kd", "wild"}
    assert [r for r in found if r.info.run_name == "r"], "the last training is a run of its own"


def test_the_list_is_scratch_the_recipes_own_its_variants_and_the_tasks(
    root: Path, tmp_path: Path, quick
) -> None:
    variants = {"soft": {"name": "kd", "distill": 0.5}, "same": {"name": "mtkd", "low": 0.33}}
    file(root, tmp_path, compare={"variants": variants})
    done = auto(tmp_path, minutes=0.6)
    assert done.code == 2, "too little for all of them"
    names = "scratch, mtkd, same, soft, kd, kd-handover, mtkd-low-fades, mtkd-low-handover"
    assert f"8 candidates: {names}" in done.err, "the task's mtkd is the recipe's, its mtkd-low the variant"


def test_what_a_recipe_does_not_take_is_left_out_and_said(root: Path, tmp_path: Path, quick) -> None:
    file(root, tmp_path, teachers=[], method={"name": "scratch"})
    done = auto(tmp_path)
    assert done.code == 0, done.err
    assert list(done.auto["candidates"]) == ["scratch"] and done.auto["chosen"] == "scratch"
    assert "needs at least one teacher" in done.auto["left_out"]["mtkd"]
    assert "scratch it is" in done.auto["verdict"]


@pytest.mark.slow
def test_recognition_climbs_too(tmp_path: Path, quick) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recognition(tmp_path)))
    done = auto(tmp_path, "--candidates", "kd,horkd", minutes=4)
    assert done.code == 0, done.err
    first, last = done.auto["rungs"]
    assert [t["candidate"] for t in first["trials"]] == ["scratch", "kd", "horkd"]
    assert done.auto["metric"] == "accuracy" and all(0 <= t["accuracy"] <= 1 for t in last["trials"])
    assert done.auto["chosen"] in ("scratch", "kd", "horkd")
    assert len(done.json["rows"]) == 1 and "accuracy on held-out pictures" in done.out


def test_where_nobody_is_ahead_the_recipes_own_method_stays(tmp_path: Path) -> None:
    def ladder(*values: float) -> Ladder:
        settings = recipe(tmp_path)
        names = ("scratch", "kd", "mtkd")
        stores = [Store.open(tmp_path / str(values) / name) for name in ("ladder", "paces")]
        made = Ladder(
            settings, *stores, {n: {"method": {"name": n}} for n in names}, 100.0, 4, time.monotonic()
        )
        made.state.rungs = [Step(9, [[name, 0] for name in names])]
        for number, value in enumerate(values):
            times = [[5, 1.0, 0.0], [9, 2.0, 0.0]]
            made.trials[number] = Trial(number, {}, "finished", [[9, value]], times=times)
        return made

    close = ladder(30.0004, 30.0001, 30.0003)
    assert close.undecided and close.decide().candidate == "mtkd" and "too few to tell" in verdict(close)
    apart = ladder(30.004, 30.001, 30.003)
    assert not apart.undecided and apart.decide().candidate == "scratch" and "scratch it is" in verdict(apart)
    assert ladder(30.0, 31.0, 31.0).decide().candidate == "kd", "a tie goes to the one that stands first"


# ---- budgets that are too small


def test_teaching_that_takes_longer_is_said_at_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.road.ahead._timed", lambda asked, device: (asked[0], 100.0))
    file(root, tmp_path, cache={"root": str(tmp_path / "cache")})
    done = auto(tmp_path, minutes=1)
    assert (
        done.code == 2
        and "teaching alone will take" in done.err
        and "--minutes: expected more than" in done.err
    )
    assert not (tmp_path / "cache" / "outputs").exists(), "nothing was taught"


def test_a_budget_too_small_for_the_rungs_names_what_fits(root: Path, tmp_path: Path, quick) -> None:
    file(root, tmp_path)
    done = auto(tmp_path, "--candidates", "kd,mtkd", minutes=0.5)
    # 2 steps on the last rung from two seeds: 12 s, which are 35 % of 34.3 s, and 12 s are kept.
    assert done.code == 2 and "expected at least 0.77 for 3 candidates here, found 0.5" in done.err
    again = auto(tmp_path, "--candidates", "kd,mtkd", minutes=0.5)
    assert again.code == 2 and "at least 0.77 for" in again.err, "it begins anew: its time is not used up"
    assert not list(tmp_path.glob("runs/r/auto/*/trials/*.json")) and list(
        tmp_path.glob("runs/r/auto/paces/*")
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--auto",), "--minutes: expected all that --auto may take, found none given. Add --minutes 60."),
        (("--auto", "--minutes", -1), "--minutes: expected a number above 0"),
        (("--auto", "--minutes", "nan"), "--minutes: expected a number above 0"),
        (("--auto", "--minutes", "inf"), "--minutes: expected a number above 0"),
        (("--minutes", 3), "expected --auto with them"),
        (("--auto", "--minutes", 3, "--candidates", "magic"), "--candidates: expected some of scratch, mtkd"),
    ],
)
def test_options_that_make_no_sense(root: Path, tmp_path: Path, options: tuple, said: str) -> None:
    done = run("run", file(root, tmp_path), "--inline", *options)
    assert done.code == 2 and said in " ".join(done.err.split())
