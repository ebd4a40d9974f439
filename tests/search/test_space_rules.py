"""What a space may vary, what its first trial is, and what built-in spaces leave out."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_kit import run
from road_kit import NAMES, picture, recipe, teacher
from test_space import space_file, three
from tune_kit import SPACE, file, folder, sweep_pictures

from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.search.run import checker
from pipeline.search.space import Axis, load_space, own_value
from pipeline.steps.engines import InlineEngine


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("train.steps", "--budget says"),
        ("train.evaluate_every", "when their sweep asks"),
        ("seed", "the recipe's seed"),
    ],
)
def test_what_a_sweep_decides_itself_is_no_axis(tmp_path: Path, path: str, said: str) -> None:
    space = space_file(
        tmp_path, f"SPACE = {{'{path}': ('choice', 100, 200), 'train.lr': ('choice', 1e-3, 1e-4)}}"
    )
    with pytest.raises(InputError, match=said):
        load_space(space, recipe(tmp_path))


@pytest.mark.parametrize("name", ["compact", "fsrcnn"])
def test_the_first_trial_is_the_recipe_with_its_defaults(tmp_path: Path, name: str) -> None:
    option, own = {"compact": ("features", 64), "fsrcnn": ("d", 56)}[name]
    settings = recipe(tmp_path, student={"name": name})
    axis = Axis(f"student.options.{option}", "choice", (16, own))
    assert own_value(settings, axis) == own
    space = space_file(tmp_path, f"SPACE = {{'student.options.{option}': ('choice', 16, {own})}}")
    assert load_space(space, settings).notes == ()


def test_an_own_value_outside_the_space_is_said(tmp_path: Path) -> None:
    space = space_file(tmp_path, "SPACE = {'train.lr': ('loguniform', 1e-6, 1e-5)}")
    (note,) = load_space(space, recipe(tmp_path)).notes
    assert note == "train.lr: the recipe's own value is not in the space; the first trial has another one"


def test_a_range_of_whole_numbers_has_no_others() -> None:
    axis = Axis("method.hr", "randint", (0, 10))
    assert axis.holds(2) and axis.holds(2.0) and not axis.holds(2.5) and not axis.holds(10)


def test_fusions_that_change_nothing_or_do_not_fit_are_left_out_and_said(tmp_path: Path) -> None:
    def paths(**changes: object) -> tuple[list[str], str]:
        space = load_space("fusion", three(tmp_path, **changes))
        return [a.path for a in space.axes], "; ".join(space.notes)

    assert paths() == (["fusion", "teachers"], "")
    for method in ("kd", "scratch"):
        found, said = paths(method={"name": method})
        assert found == ["teachers"] and f"fusion: left out, {method} learns from" in said
    picture(tmp_path / "lonely" / "a.png", 40, 44, seed=23)
    found, said = paths(data={"lr_only": [str(tmp_path / "lonely")]})
    assert found == ["fusion", "teachers"] and "fusion: left out" in said and "best is chosen by HR" in said
    found, said = paths(method={"name": "kd", "teacher": NAMES[0]})
    assert "teachers: left out" in said and "method.teacher must be" in said


def test_networks_beside_are_no_part_of_trials(tmp_path: Path) -> None:
    """They have one scale, trials may have several."""
    sweep_pictures(tmp_path)
    beside = [{"checkpoint": str(tmp_path / "gone_x2.safetensors"), "name": "gone"}]
    settings = recipe(tmp_path, compare={"beside": beside}, teachers=[teacher("edsr"), teacher("compact")])
    checker(InlineEngine("cpu"), Quiet())(settings)


def test_trials_of_other_pictures_are_told_from_new_ones(tmp_path: Path) -> None:
    sweep_pictures(tmp_path)
    recipe_ = file(tmp_path, tmp_path, SPACE)
    options = ("tune", recipe_, "--space", tmp_path / "mine.py", "--inline", "--budget", 4)
    assert run(*options, "--trials", 2).code == 0
    same = run(*options, "--trials", 3, "--resume")
    assert same.code == 0 and "do not compare" not in " ".join(same.err.split())
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96 + 8 * seed, 70 + seed)
    other = run(*options, "--trials", 4, "--resume")
    assert other.code == 0 and "do not compare with the new ones" in " ".join(other.err.split())
    assert len(list((folder(tmp_path) / "trials").iterdir())) == 4
