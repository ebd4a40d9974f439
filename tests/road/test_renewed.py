"""What is done again when something changes, and what is not: reports, judges, settings of looking."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from road_kit import Road, content, five_pictures, picture, recipe, recipe_file

from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.manifest import load as load_manifest
from pipeline.cli import main
from pipeline.cli.road import own_seeds
from pipeline.errors import InputError
from pipeline.recipe.reading import checked
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.super_resolution import held_out, teacher_facts
from pipeline.tasks.super_resolution.held_out import HeldOut
from pipeline.tasks.super_resolution.teach import luma_error
from pipeline.tasks.super_resolution.teacher_facts import resolve
from pipeline.tasks.super_resolution.work import student_cost, work


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return five_pictures(tmp_path)


def student(place: Path, **changes: Any) -> Any:
    (job,) = Road(recipe(place, **changes)).distill()[-1]
    return job


def test_the_report_follows_its_figures(place: Path) -> None:
    """A test picture is replaced by another one of its name."""
    picture(place / "Bench" / "HR" / "one.png", 64, 72, 50)
    file = recipe_file(place, method={"name": "scratch"}, teachers=[], data={"test": [str(place / "Bench")]})
    page = place / "runs/r/report/report.md"
    pages = []
    for seed in (50, 50, 51):
        picture(place / "Bench" / "HR" / "one.png", 64, 72, seed)
        assert main(["run", str(file), "--inline"]) == 0
        pages.append((page.read_text(), page.stat().st_mtime_ns))
    assert pages[0] == pages[1] and pages[1][0] != pages[2][0]


def test_who_is_judged_by_another_target_is_judged_anew(place: Path) -> None:
    mean, median = (
        student(place, judged_by="teachers", method={"name": "kd"}, fusion={"kind": kind})
        for kind in ("mean", "median")
    )
    assert mean.fingerprint != median.fingerprint
    by_hr = [student(place, method={"name": "kd"}, fusion={"kind": kind}) for kind in ("mean", "median")]
    assert by_hr[0].fingerprint == by_hr[1].fingerprint != mean.fingerprint
    assert "held_out/fidelity" in mean.result()["curves"]["distill"]


def test_how_often_one_looks_at_a_privileged_teacher_trains_nothing_again(place: Path) -> None:
    def pisr(**looks: int) -> str:
        train = {"steps": 2, "batch": 2, "patch": 12, **looks}
        return str(student(place, teachers=[], method={"name": "pisr", "pretrain": train}).fingerprint)

    first = pisr()
    assert first == pisr(log_every=1, evaluate_every=2, keep=1) != pisr(steps=3)


def test_a_privileged_teacher_may_move(place: Path) -> None:
    settings = {"teachers": [], "method": {"name": "pisr", "pretrain": {"steps": 2, "batch": 2, "patch": 12}}}
    Road(recipe(place, **settings)).distill()
    (weights,) = (place / "cache" / "privileged").rglob("weights.safetensors")
    found = []
    for folder in ("a", "b"):
        copy = place / folder / "weights.safetensors"
        copy.parent.mkdir()
        copy.write_bytes(weights.read_bytes())
        found.append(
            student(place, teachers=[], method={"name": "pisr", "checkpoint": str(copy)}).fingerprint
        )
    assert found[0] == found[1]


def test_held_out_tiles_are_of_all_pictures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "HELD_OUT_TILES", 6)
    road = Road(recipe(place, data={"holdout": 0.6, "tile": 40}, train={"patch": 8}))
    tiles = road.distill()[0]
    store = road.run.planner.store
    rows = [(s, n) for s in load_manifest(store, tiles.path("held_out")).shards for n in range(s.rows)]
    columns = SimpleNamespace(held_out=tiles.path("held_out"), column="hr")
    found = HeldOut._some(store, columns)  # type: ignore[arg-type]
    assert found is not None and len(found) == 6 < len(rows)
    monkeypatch.setattr(held_out, "HELD_OUT_TILES", 10**6)
    every = HeldOut._some(store, columns)  # type: ignore[arg-type]
    assert every is not None and len(every) == len(rows)
    np.testing.assert_array_equal(found, every[np.linspace(0, len(rows) - 1, 6).astype(int)])


def test_teachers_and_students_are_compared_on_the_same_held_out_tiles(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without test pictures shows held-out figures."""
    monkeypatch.setattr(held_out, "HELD_OUT_TILES", 4)
    road = Road(recipe(place, data={"holdout": 0.6}))
    outcome = road.run.everything(["mtkd"], [0])
    store, cached = road.run.planner.store, outcome.prepared.teachers[0].cached
    assert cached is not None
    made, hr = (
        HeldOut._some(store, c) for c in (cached.columns("sr"), outcome.prepared.samples.columns("hr"))
    )
    assert made is not None and hr is not None and len(made) == 4
    (found,) = next(r for r in outcome.results if r.role == "teacher").sets.values()
    error, pixels = luma_error(made, hr, 2)
    assert found["psnr_y"] == pytest.approx(10 * np.log10(255**2 / (error / pixels)))
    assert found["psnr_y"] != pytest.approx(outcome.prepared.teachers[0].quality, abs=1e-6)


def test_a_zoo_teacher_is_fetched_where_its_file_is_not(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What travels to other machines is a path of the first one."""
    here = place / "edsr-x2.safetensors"
    source = Path(content(place)["teachers"][0]["checkpoint"])
    here.write_bytes(source.read_bytes())
    fetched: list[str] = []

    def fetch(entry: SimpleNamespace) -> Path:
        fetched.append(entry.name)
        return here

    monkeypatch.setattr(teacher_facts.zoo, "ZOO", {"edsr-x2": SimpleNamespace(name="edsr-x2")})
    monkeypatch.setattr(teacher_facts.zoo, "fetch", fetch)
    sha256 = resolve(str(here))[1]
    facts = SimpleNamespace(path="/elsewhere/edsr-x2.safetensors", sha256=sha256)
    assert teacher_facts._here(facts) == str(here) and fetched == ["edsr-x2"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="as on the machine that began the run"):
        teacher_facts._here(SimpleNamespace(path=facts.path, sha256=file_sha256(__file__)))  # type: ignore[arg-type]
    own = SimpleNamespace(path=str(source), sha256="")
    assert teacher_facts._here(own) == str(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fusion": {"kind": "weighted", "weights": {"edsr": 1.0, "compact": 1.0}}}, "must sum to 1"),
        (
            {"fusion": {"kind": "best"}, "data": {"lr_only": ["x"]}},
            "best is chosen by HR, and data.lr_only has none",
        ),
        ({"distill": {"workers": 3}}, "train.batch (4) must be a multiple of distill.workers (3)"),
    ],
)
def test_what_would_end_after_all_teaching_is_refused_before(
    tmp_path: Path, changes: dict, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        checked(Recipe, content(tmp_path, **changes), "recipe")
    assert words in str(caught.value)
    assert recipe(tmp_path, distill={"workers": [1, 3]}).distill.workers == (1, 3)


def test_plans_and_sweeps_count_what_is_done_and_what_ships(tmp_path: Path) -> None:
    def fused_bytes(**method: Any) -> int:
        return work(recipe(tmp_path, method=method), 2, 96, 96, [10, 10], 10).fused_bytes

    assert fused_bytes(name="pisr") == fused_bytes(name="scratch") == fused_bytes(name="kd") == 0
    assert fused_bytes(name="mtkd") > 0
    span = recipe(tmp_path, student={"name": "span", "options": {"features": 8}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.tasks.super_resolution.work.deployed", lambda network: network)
        trained = student_cost(span, 48)
    assert student_cost(span, 48) < trained


def test_a_comparison_has_the_recipes_seeds(tmp_path: Path) -> None:
    assert own_seeds(recipe(tmp_path)) == 3
    assert own_seeds(recipe(tmp_path, compare={"methods": ["scratch"]})) == 3
    assert own_seeds(recipe(tmp_path, compare={"seeds": 2})) == 2
