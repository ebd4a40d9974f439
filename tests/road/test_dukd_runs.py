"""DUKD on the road: its training whole, killed, captured and shared out, who explains, and who brings its views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_kit import run
from road_kit import Road, recipe, recipe_file, rewritten, snapshot
from upcycle_kit import DUKD, kinds, lr_of, make_place

from pipeline.cache.placed import Resident
from pipeline.cache.sampler import Sampler
from pipeline.cache.store import Store
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.training.graphed import Graphed, parts
from pipeline.training.loop import Loop, train
from pipeline.training.surroundings import Hooks

CPU = torch.device("cpu")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


def test_a_run_of_dukd_from_pictures_to_report(place: Path) -> None:
    data = {"test": [str(place / "Bench")], "lr_only": [str(place / "small")]}
    file = recipe_file(place, data=data, method=DUKD, compare={"methods": ["scratch", "mtkd"]})
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    assert sum(r["role"] == "student" for r in rows.values()) == 3
    page = (place / "runs" / "r" / "report" / "report.md").read_text()
    assert "1 zoom_in, 1 zoom_out a training tile, without HR" in page
    before = snapshot(place / "cache")
    assert run("run", file, "--inline", "--json", place / "again.json").code == 0
    assert (place / "again.json").read_text() == (place / "out.json").read_text()
    assert not rewritten(before, snapshot(place / "cache"))


def phase_and_sampler(place: Path) -> tuple[Callable[[], Any], Sampler]:
    (job,) = Road(recipe(place, method=DUKD)).distill()[3]

    def made() -> Any:
        torch.manual_seed(job.seed)
        return job.phases("cpu")[0]({})

    return made, job.sampler(made())


class Killed(Exception):
    pass


def test_killed_and_resumed_it_has_the_bits_of_one_that_was_not(place: Path) -> None:
    made, sampler = phase_and_sampler(place)

    def die(metrics: dict, step: int) -> None:
        if step == 3:
            raise Killed

    def trained(folder: str, hooks: Hooks | None = None) -> dict[str, bytes]:
        phase = made()
        train(
            phase,
            sampler,
            folder=Store.open(place / folder),
            fingerprint="f",
            seed=0,
            device=CPU,
            hooks=hooks,
        )
        return {k: v.numpy().tobytes() for k, v in phase.modules["student"].state_dict().items()}

    whole = trained("whole")
    with pytest.raises(Killed):
        trained("parts", Hooks(sync=die))
    assert trained("parts") == whole


@pytest.mark.parametrize("resident", [False, True])
def test_the_captured_step_is_the_eager_one(place: Path, resident: bool) -> None:
    made, sampler = phase_and_sampler(place)
    eager, graphed = (Loop(made(), CPU, 1) for _ in range(2))
    steps = Graphed(graphed)
    batches = Resident(sampler, CPU) if resident else sampler
    for step, batch in batches.iterate(0, 6):
        expected = eager.eager(step, batch.to(CPU))
        if step == 0:
            graphed.names = eager.names
            steps.prepare(batch, *parts(batch, CPU))
            steps.replay = steps.body  # what a replay does, uncaptured
        torch.testing.assert_close(steps.step(step, batch, 0), expected, rtol=1e-4, atol=1e-6)
        graphed.pending.append((step, expected))
        graphed.require_finite(sampler, 0, 1)
    assert {"distill", "hr", "consistency"} < set(eager.names) and not steps._draws


def test_terms_are_the_same_however_workers_share_a_batch(place: Path) -> None:
    made, sampler = phase_and_sampler(place)
    phase, wanted = made(), []
    for world in (1, 2):
        shares = [phase.losses(phase.modules, sampler.batch(2, rank, world).to(CPU)) for rank in range(world)]
        wanted.append({name: float(sum(s[name].detach() for s in shares)) / world for name in shares[0]})
    assert wanted[0] == pytest.approx(wanted[1], rel=1e-5)


def test_who_explains_is_fused_the_best_or_named(place: Path) -> None:
    chosen = {}
    for who in ("fused", "best", "compact"):
        road = Road(recipe(place, method={**DUKD, "teacher": who}))
        _, taught, fused, (job,) = road.distill()
        folder = job.columns["target"].train.rsplit("/", 1)[0]
        owners = {t.label: t.cached.folder for t in taught} | (
            {"fused": fused.cached.folder} if fused else {}
        )
        chosen[who] = next(label for label, where in owners.items() if folder.startswith(where))
        best = max(taught, key=lambda t: t.quality).label
    assert chosen == {"fused": "fused", "best": best, "compact": "compact"}


def test_an_assistant_learns_from_the_views_too_and_answers_them(place: Path) -> None:
    helped = {**DUKD, "assistant": {"name": "fsrcnn", "options": {"d": 8, "s": 4, "m": 1}}}
    road = Road(recipe(place, method=helped))
    tiles, _, _, (job,) = road.distill()
    assert "assistant-" in job.columns["target"].train and job.result()
    assert kinds(lr_of(road, tiles.train)) == {"zoom_in0", "zoom_out0"}


def test_dukd_beside_a_recipe_that_upcycles_nothing_is_refused_with_the_remedy(place: Path) -> None:
    file = recipe_file(place)
    done = run("compare", file, "--inline", "--methods", "scratch,dukd")
    assert done.code == 2 and "data.upcycle" in done.err and "data.upcycle={}" in done.err
    assert not (place / "cache").exists()
    done = run("compare", file, "--inline", "--methods", "dukd", "--set", "data.upcycle={}")
    assert done.code == 0, done.err
    off = {"zoom_in": 0, "zoom_out": 0}
    road = Road(recipe(place, data={"upcycle": off}, method=DUKD))
    assert not kinds(lr_of(road, road.distill()[0].train)), "label consistency alone"


def test_methods_named_by_compare_bring_their_views(place: Path) -> None:
    variants = {"mine": {**DUKD, "hr": 1.0}}
    for compare in ({"methods": ["dukd"]}, {"methods": ["mine"], "variants": variants}):
        settings = recipe(place, compare=compare)
        assert tiling.plan(settings, Store.open(place / "cache")).views
    unused = recipe(place, compare={"methods": ["scratch"], "variants": variants})
    assert not tiling.plan(unused, Store.open(place / "cache")).views
