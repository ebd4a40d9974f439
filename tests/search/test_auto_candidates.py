"""Candidates of `faculty run --auto`: who is tried, who diverges, who is left out; budgets that are too small."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from auto_kit import auto, file, hurried, ladder_pictures
from command_kit import run
from recognition_kit import content as recognition
from road_kit import content, recipe

from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.upcycle import Upcycle
from pipeline.search.auto import candidates_of
from pipeline.search.ladder import Ladder
from pipeline.search.ladder_report import verdict
from pipeline.search.ladder_state import Step
from pipeline.search.space import with_values
from pipeline.search.trial import Trial
from pipeline.tasks.super_resolution.candidates import CANDIDATES, candidates, settled


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that all ladders here share."""
    return ladder_pictures(tmp_path_factory.mktemp("ladders"))


def test_upcycling_is_tried_where_the_recipe_has_its_views(root: Path) -> None:
    for upcycle, tried in ((None, False), ({}, True), ({"zoom_in": 0, "zoom_out": 0}, False)):
        found = candidates(Recipe.model_validate(content(root, data={"upcycle": upcycle})))
        assert ("dukd" in found) is tried and set(CANDIDATES) <= set(found)


def test_scratch_and_the_recipes_own_are_tried_with_muon(root: Path) -> None:
    settings = recipe(root, train={"lr": 1e-3, "steps": 1000, "warmup": 7})
    found = candidates(settings)
    own = with_values(settings, found[f"{settings.method.name}-muon"], "x")
    alone = with_values(settings, found["scratch-muon"], "x")
    assert own.method == settings.method and alone.method.name == "scratch"
    changes = {"lr": 3e-3, "warmup": 50, "optimiser": "muon"}
    assert own.train == alone.train == settings.train.model_copy(update=changes)
    only = recipe(root, teachers=[], method={"name": "scratch"})
    assert [name for name in candidates(only) if name.endswith("-muon")] == ["scratch-muon"]
    there = recipe(root, train={**changes, "steps": 1000})
    names = candidates_of(there, lambda _: None)[0]
    assert not any(name.endswith("-muon") for name in names), "it is what the recipe says"


def test_who_is_named_is_tried_or_refused(root: Path) -> None:
    settings = recipe(root, method={"name": "mtkd", "low": 0.33})
    assert list(candidates_of(settings, lambda _: None, ("mtkd-low",))[0]) == ["scratch", "mtkd-low"]
    everyone, left_out = candidates_of(settings, lambda _: None)
    assert "mtkd" in everyone and "mtkd-low" not in {*everyone, *left_out}
    assert candidates_of(settings, lambda _: None, ("mtkd", "mtkd-low"))[1] == {"mtkd-low": "is mtkd"}
    alone = recipe(root, method={"name": "scratch"}, teachers=[])
    with pytest.raises(InputError, match="--candidates: .*kd: .*needs at least one teacher"):
        candidates_of(alone, lambda _: None, ("kd",))


def test_dukds_views_are_everybodys(root: Path) -> None:
    settings = settled(recipe(root, method={"name": "dukd"}))
    for candidate in candidates_of(settings, lambda _: None)[0].values():
        assert with_values(settings, candidate, "x").data.upcycle == Upcycle()


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
    names = "scratch, mtkd, same, soft, kd, kd-handover, mtkd-low-fades, mtkd-low-handover, scratch-muon, mtkd-muon"
    assert f"10 candidates: {names}" in done.err, "the task's mtkd is the recipe's, its mtkd-low the variant"


def test_what_a_recipe_does_not_take_is_left_out_and_said(root: Path, tmp_path: Path, quick) -> None:
    file(root, tmp_path, teachers=[], method={"name": "scratch"})
    done = auto(tmp_path)
    assert done.code == 0, done.err
    assert list(done.auto["candidates"]) == ["scratch", "scratch-muon"]
    assert "needs at least one teacher" in done.auto["left_out"]["mtkd"]
    done = auto(tmp_path, "--candidates", "scratch")
    assert done.code == 0, done.err
    assert list(done.auto["candidates"]) == ["scratch"] and done.auto["chosen"] == "scratch"
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


def finished(tmp_path: Path, steps: int = 9, **figures: list[float]) -> Ladder:
    """A ladder of one rung whose trainings ended with these figures, one a seed; the recipe's own method is mtkd."""
    folder = tmp_path / str(figures)
    values = {name: {} if name in ("mtkd", "other") else {"method": {"name": name}} for name in figures}
    stores = [Store.open(folder / name) for name in ("ladder", "paces")]
    made = Ladder(recipe(tmp_path), *stores, values, 100.0, 4, time.monotonic())
    made.state.rungs = [
        Step(steps, [[name, seed] for name, own in figures.items() for seed in range(len(own))])
    ]
    for number, value in enumerate(value for own in figures.values() for value in own):
        times = [[5, 1.0, 0.0], [steps, 2.0, 0.0]]
        made.trials[number] = Trial(number, {}, "finished", [[steps, value]], times=times)
    return made


def test_where_nobody_is_ahead_the_recipes_own_method_stays(tmp_path: Path) -> None:
    close = finished(tmp_path, scratch=[30.0004], kd=[30.0001], mtkd=[30.0003])
    assert close.decide().candidate == "mtkd" and "too few to tell" in verdict(close)
    apart = finished(tmp_path, scratch=[30.004], kd=[30.001], mtkd=[30.003])
    assert apart.decide().candidate == "scratch" and "scratch it is" in verdict(apart)
    tied = finished(tmp_path, scratch=[30.0], kd=[31.0], mtkd=[31.0])
    assert tied.decide().candidate == "mtkd"
    assert finished(tmp_path, scratch=[30.0], rkd=[31.0], kd=[31.0]).decide().candidate == "rkd", (
        "stands first"
    )


def test_the_recipes_own_method_stays_unless_another_is_ahead_by_more_than_chance(tmp_path: Path) -> None:
    # Pairs that differ by 0.06 have a deviation of 0.0424: 2 * 1.4826 * 0.0424 = 0.126 dB may be chance.
    seeds = {"scratch": [32.82, 32.76], "kd": [32.80, 32.74]}
    behind = finished(tmp_path, **seeds, mtkd=[32.70, 32.70])
    assert behind.decide().candidate == "mtkd"
    said = "mtkd, the recipe's own method, stays: scratch is ahead of it by 0.090 dB after 9 steps each"
    assert verdict(behind) == f"{said}, no more than chance may bring (0.126)."
    beaten = finished(tmp_path, **seeds, mtkd=[32.66, 32.66])
    assert beaten.decide().candidate == "scratch" and "scratch it is" in verdict(beaten)
    third = finished(tmp_path, scratch=[32.0, 32.06], kd=[32.80, 32.74], mtkd=[32.70, 32.70])
    assert third.decide().candidate == "mtkd" and "kd is ahead of it by 0.070 dB" in verdict(third)
    assert "mtkd against scratch after 9 steps each: +0.670 dB (beyond the spread" in verdict(third)
    muon = finished(tmp_path, **seeds, mtkd=[31.0, 31.0], other=[32.70, 32.70])
    assert muon.decide().candidate == "other", "the best with the recipe's own method"
    half = finished(tmp_path, **seeds, mtkd=[32.9, 8.0])
    assert half.decide().candidate == "scratch", "one that fails by half its seeds is not kept for that"
    wide = finished(tmp_path, **seeds, rkd=[32.9, 8.0], mtkd=[32.66, 32.66])
    assert wide.decide().candidate == "scratch", "one that collapsed does not make room for another"


def test_scratch_and_the_recipes_own_go_up_every_rung(
    root: Path, tmp_path: Path, quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):  # what no rung keeps: they learn nothing
        monkeypatch.setitem(CANDIDATES, f"slow{n}", {"train.lr": 1e-9 * (n + 1)})
    file(root, tmp_path, train={"lr": 1e-12})
    done = auto(tmp_path, "--candidates", "mtkd,kd,slow0,slow1,slow2", minutes=5)
    assert done.code == 0, done.err
    second, last = ({t["candidate"] for t in rung["trials"]} for rung in done.auto["rungs"][1:])
    assert len(second) == 6 and len(last) == 4 and {"scratch", "mtkd"} < last


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
