"""The search itself, on a known surface: it finds the top, and a stop changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

from road_kit import recipe

from pipeline.cache.store import Store
from pipeline.progress import Quiet
from pipeline.search.run import Conductor
from pipeline.search.space import load_space
from pipeline.search.sweep import Plan, Sweep
from pipeline.steps.engines import InlineEngine


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
