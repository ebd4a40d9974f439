"""The recipe: what it accepts, and how it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.recipe.methods import MTKD
from pipeline.recipe.reading import with_method
from pipeline.recipe.schedule import weight_at
from pipeline.tasks.recipes import load_any, load_recipe

BASE = {
    "name": "r",
    "scale": 2,
    "data": {"train": ["pictures"]},
    "teachers": [{"checkpoint": "a.pth"}, {"checkpoint": "b.pth"}],
    "method": {"name": "mtkd"},
}


@pytest.fixture
def write(tmp_path: Path):
    def make(**changes: object) -> Path:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**BASE, **changes}))
        return file

    return make


def refused(file: Path, *overrides: str) -> InputError:
    with pytest.raises(InputError) as caught:
        load_recipe(file, overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_a_minimal_recipe_has_documented_defaults(write) -> None:
    recipe = load_recipe(write())
    assert recipe.train.batch == 16 and recipe.fusion.kind == "mean" and recipe.method.hr == 0.1
    assert all(f.description for f in type(recipe.train).model_fields.values())


def test_an_unknown_key_is_named_with_the_keys_that_exist(write) -> None:
    error = refused(write(train={"stepz": 5}))
    assert "train.stepz" in str(error) and "steps" in error.expected and "unknown" in error.found


def test_an_unknown_key_of_a_method_is_named_with_that_methods_keys(write) -> None:
    error = refused(write(method={"name": "mtkd", "wavelett": "haar"}))
    assert "method.wavelett" in str(error) and "wavelet" in error.expected and "teacher" not in error.expected


def test_a_wrong_type_says_what_was_found(write) -> None:
    error = refused(write(train={"steps": "many"}))
    assert "train.steps" in str(error) and "'many'" in error.found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"train": ["p"], "tile": 193}}, "multiple of scale"),
        ({"train": {"patch": 200}}, "exceeds"),
        ({"fusion": {"kind": "aggregate", "train": {"patch": 200}}}, "fusion.train.patch"),
        ({"train": {"sampling": "often"}}, "'uniform' or 'gain'"),
        (
            {"method": {"name": "pisr"}, "train": {"sampling": "gain"}},
            "train.sampling must be uniform for pisr",
        ),
        (
            {"method": {"name": "pisr", "pretrain": {"sampling": "gain"}}},
            "method.pretrain.sampling must be uniform for pisr",
        ),
        ({"teachers": []}, "at least one teacher"),
        ({"teachers": [{"checkpoint": "a.pth"}, {"checkpoint": "x/a.pth"}]}, "names must differ"),
        ({"teach": {"actors": {"c": 2}}}, "teach.actors names ['c']"),
        ({"method": {"name": "kd", "teacher": "c"}}, "method.teacher"),
        (
            {
                "method": {
                    "name": "mtkd",
                    "handover": [0.3, 0.8],
                    "hr": {"kind": "linear", "start": 0, "end": 1},
                }
            },
            "handover",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(write, changes: dict, words: str) -> None:
    assert words in str(refused(write(**changes)))


def test_overrides_reach_tables_lists_and_yaml_values(write) -> None:
    overrides = ("train.steps=7", "teachers.1.name=other", "data.test=[x, y]", "fusion={kind: median}")
    recipe = load_recipe(write(), overrides)
    assert recipe.train.steps == 7 and recipe.teachers[1].label == "other"
    assert recipe.data.test == ("x", "y") and recipe.fusion.kind == "median"


@pytest.mark.parametrize("override", ["train.steps", "=3", "teachers.9.name=x", "name.x=1", "train.steps=[1"])
def test_an_override_that_reaches_nothing_is_refused(write, override: str) -> None:
    assert "--set" in str(refused(write(), override))


def test_a_missing_file_broken_yaml_and_an_unset_variable_are_refused(tmp_path: Path) -> None:
    assert "no such file" in str(refused(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    assert "YAML" in str(refused(broken))
    broken.write_text("name: ${FACULTY_NO_SUCH_VARIABLE}")
    assert "FACULTY_NO_SUCH_VARIABLE" in str(refused(broken))


def test_the_hand_over_is_two_ramps() -> None:
    weights = MTKD(name="mtkd", handover=(0.3, 0.8)).weights()
    at = {
        p: (weight_at(weights["distill"], p), weight_at(weights["hr"], p)) for p in (0.0, 0.3, 0.55, 0.8, 1.0)
    }
    assert at[0.0] == at[0.3] == (1.0, 0.1) and at[0.8] == at[1.0] == (0.0, 1.0)
    assert at[0.55] == pytest.approx((0.5, 0.55))


def test_another_method_keeps_everything_else(write) -> None:
    recipe = load_recipe(write(train={"steps": 5}))
    other = with_method(recipe, "scratch")
    assert (
        other.method.name == "scratch"
        and other.train == recipe.train
        and with_method(recipe, "mtkd") is recipe
    )


def test_every_recipe_of_the_repository_is_valid(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "DIV2K",
        "BENCHMARKS",
        "SR_DATA",
        "SR_WEIGHTS",
        "RECOGNITION_DATA",
        "RECOGNITION_WEIGHTS",
        "LITE0",
    ):
        monkeypatch.setenv(name, "somewhere")
    files = sorted((repository / "recipes").glob("*.yaml"))
    assert {"demo.yaml", "mtkd_edsr_x4.yaml", "mtkd_rcan_x4.yaml", "mtkd_swinir_x4.yaml"} <= {
        f.name for f in files
    }
    for file in files:
        assert load_any(file).name.replace("-", "_") == file.stem.replace("-", "_")


def test_errors_cross_process_borders() -> None:
    error = InputError("a", "b", "c", "d")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "a: expected b, found c. d"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"low": {"kind": "lineer", "start": 1, "end": 0}},
            "method.low: expected a number, or a schedule: {kind: ",
        ),
        ({"hr": [1, 0]}, "method.hr: expected a number, or a schedule: {kind: linear or cosine"),
        ({"hr": {"kind": "linear", "start": 1}}, "method.hr.end: expected Field required"),
        ({"hr": {"kind": "piecewise", "points": 1}}, "method.hr.points: expected "),
    ],
)
def test_a_wrong_schedule_is_told_what_one_is(write, changes: dict, said: str) -> None:
    error = str(refused(write(method={"name": "mtkd", **changes})))
    assert said in error and "more problem" not in error


def test_keys_stand_as_in_the_file(write) -> None:
    error = str(refused(write(method={"name": "dukd", "chance": 3})))
    assert "recipe.yaml: method.chance: expected " in error
    error = str(refused(write(fusion={"kind": "regions", "levels": 9})))
    assert "recipe.yaml: fusion.levels: expected " in error
    error = str(refused(write(compare={"variants": {"a": {"name": "kd", "hr": "x"}}})))
    assert "recipe.yaml: compare.variants.a.hr: expected a number, or a schedule" in error
    error = str(refused(write(compare={"variants": {"a": {"name": "no"}}})))
    assert "recipe.yaml: compare.variants.a: expected " in error


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("train.steps=yes", "train.steps"),
        ("student.expand=yes", "student.expand"),
        ("method={name: mtkd, low: no}", "method.low"),
        ("distill.gpus_per_worker=true", "distill.gpus_per_worker"),
    ],
)
def test_yes_is_no_number(write, override: str, key: str) -> None:
    error = refused(write(), override)
    assert key in str(error) and "a number, not yes or no" in str(error)
    assert load_recipe(write(), ["train.compile=yes"]).train.compile is True
