"""Sweeps over Ray Tune: how many trials at once, one that diverges, early stops, a kill half way."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command_kit import until
from ray_kit import end_ray, of_ray, placement_groups
from road_kit import command, environment, faculty, snapshot
from tune_kit import file, folder, settings, sweep_pictures, tracked

from pipeline.cache.store import Store
from pipeline.engine import together
from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.search.run import Conductor
from pipeline.search.space import load_space
from pipeline.search.sweep import Plan, Sweep
from pipeline.steps.engines import InlineEngine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and a cache that every sweep here shares."""
    return sweep_pictures(tmp_path_factory.mktemp("sweeps"))


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
