"""Recipes as text: encodings, and what YAML allows and no recipe means."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command_kit import run
from road_kit import picture, recipe_file

from pipeline.errors import InputError
from pipeline.tasks.recipes import load_recipe


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_may_have_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    file = recipe_file(tmp_path)
    file.write_bytes(file.read_text().replace(str(tmp_path / "runs"), "größer").encode(encoding))
    assert load_recipe(file).output == "größer"


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_another_encoding_is_named_and_the_remedy_makes_a_recipe_of_it(tmp_path: Path, encoding: str) -> None:
    file = recipe_file(tmp_path)
    file.write_bytes(("# größer\n" + file.read_text()).encode(encoding))
    done = run("recipe", "check", file)
    assert done.code == 2 and str(file) in done.err and "UTF-8" in done.err and "Error" not in done.err
    subprocess.run(done.err.split("in UTF-8: ")[1], shell=True, check=True)
    (made,) = tmp_path.glob("*.utf8.yaml")
    assert run("recipe", "check", made).code == 0


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 96, 96, 0)
    file = recipe_file(
        tmp_path, teachers=[{"checkpoint": "x.pth", "gate": False}]
    )  # what YAML makes of `off`
    recipe = load_recipe(file, ("train.amp=off",))
    assert recipe.train.amp == "off" and recipe.teachers[0].gate == "off"


def test_a_variable_that_is_not_set_is_named_and_setting_it_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_file(tmp_path, name="${FACULTY_TEST_NAME}")
    with pytest.raises(InputError, match="export FACULTY_TEST_NAME="):
        load_recipe(file)
    monkeypatch.setenv("FACULTY_TEST_NAME", "mine")
    assert load_recipe(file).name == "mine"


@pytest.mark.parametrize(
    "line",
    [
        "student: &a {name: fsrcnn, options: {d: [*a]}}",
        "when: 2020-13-45",
        "seed: !!int x",
        "seed: !!python/object/apply:os.getcwd []",
        "student: " + "[" * 5000,
        "\n".join(["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]),
        "{}: 3",
        "seed: [\0]",
    ],
    ids=["loop", "date", "tag", "python", "deep", "bomb", "key", "nul"],
)
def test_what_yaml_allows_and_no_recipe_means_names_the_file(tmp_path: Path, line: str) -> None:
    file = recipe_file(tmp_path)
    file.write_text(file.read_text() + line + "\n")
    done = run("recipe", "check", file)
    assert done.code == 2 and str(file) in done.err and len(done.err) < 2000, done.err
    assert "Error" not in done.err and "Traceback" not in done.err


def test_a_setting_refused_late_is_named_with_its_recipe(tmp_path: Path) -> None:
    picture(tmp_path / "pictures" / "a.png", 96, 96, 0)
    file = recipe_file(tmp_path, student={"name": "resnet"}, method={"name": "scratch"}, teachers=[])
    done = run("distill", file, "--inline")
    assert done.code == 2 and f"{file}: student" in done.err
