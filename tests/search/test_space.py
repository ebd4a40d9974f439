"""Search spaces: what they may say, what is refused before anything starts, and halving."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from road_kit import NAMES, recipe, teacher

from pipeline.errors import FacultyError, InputError
from pipeline.search.halving import Halving, dominates, fronts, rungs
from pipeline.search.space import BUILT_IN, Axis, load_space, value_at, with_values


def space_file(folder: Path, text: str) -> str:
    (folder / "mine.py").write_text(text)
    return str(folder / "mine.py")


def three(root: Path, **changes: object) -> object:
    return recipe(root, teachers=[teacher(n) for n in NAMES], **changes)


# ---- spaces of the package


def test_loss_weights_follow_the_method(tmp_path: Path) -> None:
    paths = {}
    for method in ("kd", "mtkd"):
        space = load_space("loss_weights", recipe(tmp_path, method={"name": method}))
        assert all(axis.kind == "loguniform" for axis in space.axes)
        paths[method] = [axis.path for axis in space.axes]
    assert paths == {
        "kd": ["method.distill", "method.hr"],
        "mtkd": ["method.distill", "method.hr", "method.low"],
    }
    with pytest.raises(InputError, match="method scratch has one loss term"):
        load_space("loss_weights", recipe(tmp_path, method={"name": "scratch"}))


def test_the_papers_weights_lie_in_the_middle_of_their_ranges(tmp_path: Path) -> None:
    settings = recipe(tmp_path)
    for axis in load_space("loss_weights", settings).axes:
        assert axis.middle() == pytest.approx(value_at(settings, axis.path))


def test_scales_without_teachers_are_left_out_of_joint_and_named(tmp_path: Path) -> None:
    def teachers_exist(settings: object) -> None:
        for spec in settings.teachers:
            if not Path(spec.checkpoint).is_file():
                raise FacultyError(f"{Path(spec.checkpoint).name} is missing")

    space = load_space("joint", recipe(tmp_path, data={"tile": 96}), teachers_exist)
    assert [a.path for a in space.axes] == ["method.distill", "method.hr", "method.low"]
    assert "edsr_x3.safetensors is missing" in space.notes[0] and "edsr_x4.safetensors" in space.notes[0]
    with pytest.raises(
        InputError, match="space resolution_gap: expected at least one recipe path to vary.*edsr_x4"
    ):
        load_space("resolution_gap", recipe(tmp_path, data={"tile": 96}), teachers_exist)


def test_a_scale_takes_the_teachers_of_that_scale_along(tmp_path: Path) -> None:
    settings = recipe(
        tmp_path,
        data={"tile": 96},
        teachers=[{"checkpoint": "swinir-m-x2"}, {"checkpoint": "models/edsr_x2_64.pth"}],
    )
    changed = with_values(settings, {"scale": 4})
    assert [t.checkpoint for t in changed.teachers] == ["swinir-m-x4", "models/edsr_x4_64.pth"]


def test_fusion_tries_every_set_of_two_teachers_or_more(tmp_path: Path) -> None:
    settings = three(tmp_path)
    axes = {a.path: a for a in load_space("fusion", settings).axes}
    assert axes["teachers"].arguments == ([0, 1], [0, 2], [1, 2], [0, 1, 2])
    assert [c["kind"] for c in axes["fusion"].arguments] == ["mean", "median", "weighted", "best"]
    fewer = with_values(settings, {"teachers": [2, 0], "fusion": {"kind": "median"}})
    assert [t.label for t in fewer.teachers] == ["rcan", "edsr"] and fewer.fusion.kind == "median"


def test_built_in_spaces_are_importable_plain_data() -> None:
    import importlib

    for name in BUILT_IN:
        module = importlib.import_module(f"tune_spaces.{name}")
        assert module.__doc__ and (hasattr(module, "SPACE") or hasattr(module, "BY"))


# ---- a space of one's own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SPACE = {'train.lr': ('loguniform', 0, 1)}", "train.lr: expected 0 < low < high"),
        ("SPACE = {'train.lr': ('uniform', 1, 0)}", "train.lr: expected low < high"),
        ("SPACE = {'train.lr': ('uniform', 'a', 'b')}", r"train.lr: expected \('uniform', low, high\)"),
        (
            "SPACE = {'train.lr': ('gauss', 0, 1)}",
            "kinds uniform, loguniform, randint, choice, found .'gauss'",
        ),
        ("SPACE = {'train.lr': 3}", "kinds uniform"),
        ("SPACE = {'train.batch': ('randint', 1.5, 3)}", "train.batch: expected two whole numbers"),
        ("SPACE = {'train.batch': ('choice', 4)}", "train.batch: expected at least two choices"),
        ("SPACE = {'train.batch': ('uniform', 4, 8)}", "train.batch.*valid integer"),
        ("SPACE = {'train.lr': ('uniform', -1, 1)}", "train.lr.*greater than 0"),
        ("SPACE = {'train.steppes': ('randint', 1, 9)}", "train.steppes.*unknown key"),
        ("SPACE = {'training.lr': ('uniform', 1, 9)}", "training.*unknown key"),
        ("SPACE = {'method.hr.x': ('uniform', 1, 9)}", "a path of tables and list positions"),
        ("SPACE = {'method.hr': ('choice', 'low', 'high')}", "method.*hr"),
        ("SPACE = {'train.schedule': ('choice', 'cosine', 'cosin')}", "cosin:.*train.schedule"),
        ("SPACE = {'teachers': ('choice', [0, 1], [0, 7])}", "positions below 2, found 7"),
        ("SPACE = {'teachers': ('choice', 'all', 'some')}", "a list of positions"),
        ("SPACE = {'fusion': ('choice', {'kind': 'mean'}, {1, 2})}", "choices that YAML can hold"),
        ("SPACE = []", "a table of recipe paths, found list"),
        ("BY = {'method.nam': {'mtkd': {}}}", "a path of the recipe, found method.nam"),
        ("BY = {('task', 'method.name'): {('sr', 'mtkd'): 'none here'}}", "none that fits: none here"),
        ("SPACE = {}", "at least one recipe path to vary"),
        ("SPACES = {}", "no SPACE in this module"),
        ("import nothing_of_that_name", "a module that Python can import, found in line 1: No module named"),
        ("SPACE = {", "a module that Python can import, found .* was never closed"),
    ],
)
def test_what_is_wrong_with_a_space_is_said_before_anything_starts(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_space(space_file(tmp_path, text), recipe(tmp_path))
    assert caught.value.exit_code == 2


def test_an_unknown_space_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="loss_weights, resolution_gap, joint, fusion, or a Python file, found losses"
    ):
        load_space("losses", recipe(tmp_path))


def test_a_space_of_ones_own_is_fitted_to_the_recipe(tmp_path: Path) -> None:
    text = """
SPACE = {"train.lr": ("loguniform", 1e-4, 1e-2), "train.batch": ("randint", 2, 5)}
BY = {"student.name": {"fsrcnn": {"student.options.d": ("choice", 4, 8)}},
      "teachers": {2: {"teach.batch": ("choice", 1, 2)}}}
"""
    space = load_space(space_file(tmp_path, text), recipe(tmp_path))
    (note,) = space.notes
    assert space.name == "mine" and note.startswith("teach.batch: the recipe's own value is not in the space")
    assert {a.path: a.ends() for a in space.axes} == {
        "train.lr": (1e-4, pytest.approx(1e-3), 1e-2),
        "train.batch": (2, 4),
        "student.options.d": (4, 8),
        "teach.batch": (1, 2),
    }


def test_what_the_check_refuses_is_named_with_its_value(tmp_path: Path) -> None:
    def check(settings: object) -> None:
        if settings.student.options["d"] > 5:
            raise FacultyError("too wide")

    path = space_file(tmp_path, "SPACE = {'student.options.d': ('choice', 4, 8)}")
    with pytest.raises(
        InputError, match="student.options.d: expected values that this recipe takes, found 8: too wide"
    ):
        load_space(path, recipe(tmp_path), check)


@pytest.mark.parametrize(
    ("axis", "inside", "outside"),
    [
        (Axis("x", "uniform", (0.0, 1.0)), (0, 0.5, 1.0), (-0.1, 1.1, "0", True, None)),
        (Axis("x", "randint", (2, 5)), (2, 4), (1, 5)),
        (Axis("x", "choice", ("a", {"k": 1})), ("a", {"k": 1}), ("b", {"k": 2})),
    ],
)
def test_an_axis_knows_its_values(axis: Axis, inside: tuple, outside: tuple) -> None:
    assert all(axis.holds(v) for v in (*inside, axis.middle()))
    assert not any(axis.holds(v) for v in outside)


# ---- halving


def test_rungs_lie_below_the_budget() -> None:
    assert rungs(900, 3) == (100, 300)
    assert rungs(2, 3) == () and rungs(1, 3) == ()


def test_the_best_third_goes_on() -> None:
    halving = Halving((10, 30), 3)
    assert not halving.report(0, 10, (5.0,)), "nothing to compare with"
    assert halving.report(1, 10, (4.0,))
    assert not halving.report(2, 12, (6.0,)), "the first report after a rung counts"
    assert not halving.report(3, 10, (5.5,)), "of four, two may go on"
    assert halving.report(4, 10, (5.2,)), "of five too, and it is the third"
    assert not halving.report(0, 20, (0.0,)), "between rungs nothing is asked"
    assert not halving.report(0, 30, (1.0,)) and not halving.report(2, 35, (2.0,))


def test_a_cheap_trial_is_not_stopped_for_being_less_accurate() -> None:
    halving = Halving((1,), 3)
    assert not halving.report(0, 1, (30.0, -100.0))
    assert not halving.report(1, 1, (20.0, -10.0)), "cheaper"
    assert halving.report(2, 1, (19.0, -11.0)), "worse and dearer than another"
    assert not halving.report(3, 1, (40.0, -1000.0))


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(points)
def test_fronts_order_the_points(found: list) -> None:
    numbers = fronts(found)
    assert len(numbers) == len(found)
    for a, i in zip(found, numbers):
        for b, j in zip(found, numbers):
            assert not (dominates(a, b) and i >= j)
        assert i == 0 or any(j == i - 1 and dominates(b, a) for b, j in zip(found, numbers))
