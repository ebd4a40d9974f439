"""What commands print and leave: JSON for scripts as documented, tables, files, the student."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_kit import Done, make_place, run
from road_kit import TEACHERS, content, environment, recipe_file, snapshot


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A place after `faculty run`, with tracking, and what the command said."""
    root = make_place(tmp_path_factory.mktemp("ran"))
    file = recipe_file(root, data={"test": [str(root / "Bench/HR")]}, tracking={"enabled": True})
    return root, run("run", file, "--inline", "--json", root / "run.json")


# ---- JSON for scripts, as documented


@pytest.mark.parametrize("what", ["students", "teachers"])
def test_json_of_students_and_teachers(what: str) -> None:
    done = run(what, "--json", "-")
    assert done.code == 0
    for row in done.json:
        assert set(row) == {"name", "parameters", "scales"}
        assert isinstance(row["name"], str) and set(row["scales"]) <= {1, 2, 3, 4} and row["scales"]
        assert (row["parameters"] is None and what == "teachers") or row["parameters"] > 1000
    names = {row["name"] for row in done.json}
    expected = {
        "students": {"fsrcnn", "edsr", "rcan", "swinir_light", "compact", "span"},
        "teachers": {"swinir-m-x4"},
    }
    assert expected[what] <= names
    table = run(what)
    assert table.code == 0 and all(name in table.out for name in names)


def test_methods_are_listed_with_a_line_each() -> None:
    done = run("methods")
    assert done.code == 0 and {line.split()[0] for line in done.out.splitlines()} >= {"scratch", "kd", "mtkd"}
    assert all(len(line.split()) > 3 for line in done.out.splitlines())


@pytest.mark.parametrize("model", ["bicubic", "edsr"])
def test_json_of_evaluate(place: Path, model: str) -> None:
    (place / "flat").mkdir()
    shutil.copy(place / "Bench/HR/one.png", place / "flat")
    name = model if model == "bicubic" else str(TEACHERS / f"{model}_x2.safetensors")
    data = [place / "Bench/HR", place / "flat"]
    done = run("evaluate", "--model", name, "--data", *data, "--scale", 2, "--json", "-")
    assert done.code == 0 and set(done.json) == {"model", "scale", "parameters", "multiply_adds", "sets"}
    assert done.json["model"] == name and done.json["scale"] == 2
    assert done.json["sets"].keys() == {"Bench", "flat"}
    for scores in done.json["sets"].values():
        assert set(scores) == {"images", "psnr_y", "ssim_y"}
        assert 15 < scores["psnr_y"] < 60 and 0 < scores["ssim_y"] < 1
    assert [s["images"] for s in done.json["sets"].values()] == [2, 1]
    if model == "bicubic":
        assert done.json["parameters"] is None and done.json["multiply_adds"] is None
    else:
        assert done.json["parameters"] > 10_000 and done.json["multiply_adds"] > 1e6
    table = run("evaluate", "--model", name, "--data", *data, "--scale", 2, "--json", place / "scores.json")
    assert json.loads((place / "scores.json").read_text()) == done.json
    assert f"{done.json['sets']['Bench']['psnr_y']:.2f} dB" in table.out


def test_json_of_teach(place: Path) -> None:
    recipe = recipe_file(place)
    first = run("teach", recipe, "--inline", "--json", "-")
    assert first.code == 0 and set(first.json) == {"teachers", "shards_written", "shards_reused"}
    assert list(first.json["teachers"]) == ["edsr", "compact"]
    for row in first.json["teachers"].values():
        assert set(row) == {"tiles", "seconds", "psnr_y"}
        assert row["tiles"] > 10 and row["seconds"] >= 0 and row["psnr_y"] > 15
    assert first.json["shards_written"] > 2 and first.json["shards_reused"] == 0
    again = run("teach", recipe, "--json", "-")  # no --inline: there is nothing to start Ray for
    assert again.json["teachers"] == first.json["teachers"]
    assert (again.json["shards_written"], again.json["shards_reused"]) == (0, first.json["shards_written"])
    table = run("teach", recipe).out
    assert all(name in table for name in ("edsr", "compact")) and "written 0" in table


def test_json_of_compare(ran: tuple[Path, Done], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            content(ran[0], output=str(tmp_path / "runs"), data={"test": [str(ran[0] / "Bench/HR")]})
        )
    )
    done = run(
        *("compare", tmp_path / "recipe.yaml", "--inline", "--methods", "mtkd", "--seeds", 2, "--json", "-")
    )
    assert done.code == 0 and set(done.json) == {"rows"}, done.err
    assert [(r["method"], r["seed"]) for r in done.json["rows"]] == [("mtkd", 0), ("mtkd", 1)]
    for row in done.json["rows"]:
        assert set(row) == {"method", "student", "seed", "set", "psnr_y", "ssim_y"}
        assert row["student"] == "fsrcnn" and row["set"] == "Bench"
        assert 10 < row["psnr_y"] < 60 and 0 < row["ssim_y"] < 1


def test_values_that_json_does_not_know_become_null(place: Path) -> None:
    done = run(
        "teach",
        recipe_file(place, data={"holdout": 0.0}),
        "--inline",
        "--json",
        "-",
        "--set",
        "teachers.1.precision=bf16",
    )
    assert done.code == 0 and done.json["teachers"]["compact"]["psnr_y"]
    assert "NaN" not in done.out and "Infinity" not in done.out


# ---- the whole road


def test_run_ends_with_a_table_files_and_the_way_to_mlflow(ran: tuple[Path, Done]) -> None:
    root, done = ran
    assert done.code == 0, done.err
    for name in ("bicubic", "edsr", "compact", "fused (mean)", "scratch-fsrcnn", "mtkd-fsrcnn"):
        assert name in done.out
    result = json.loads((root / "run.json").read_text())
    assert [r["role"] for r in result["rows"]] == [
        "bicubic",
        "teacher",
        "teacher",
        "fused",
        "student",
        "student",
    ]
    assert all(r["sets"]["Bench"]["images"] == 2 for r in result["rows"])
    for files in result["students"].values():
        assert {"safetensors", "onnx", "card"} <= set(files)
        assert all(Path(path).is_file() and str(Path(path).parent) in done.out for path in files.values())
    assert Path(result["report"]).is_file() and result["report"] in done.out
    assert f"faculty ui {root / 'runs'}" in done.out and (root / "runs" / "mlflow.db").is_file()


def test_a_second_run_writes_nothing_and_starts_no_ray(ran: tuple[Path, Done]) -> None:
    before = snapshot(ran[0])
    script = (
        "import sys; from pipeline.cli import main; code = main(sys.argv[1:]);"
        "import ray; sys.exit(code or 3 * ray.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(ran[0] / "recipe.yaml")],
        cwd=ran[0],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0 and "mtkd-fsrcnn" in done.stdout, done.stderr
    assert snapshot(ran[0]) == before


def test_a_student_is_exported_evaluated_and_used(ran: tuple[Path, Done], tmp_path: Path) -> None:
    result = json.loads((ran[0] / "run.json").read_text())
    student = result["students"]["mtkd-fsrcnn-s0"]["safetensors"]
    done = run("evaluate", "--model", student, "--data", ran[0] / "Bench/HR", "--scale", 2, "--json", "-")
    row = next(r for r in result["rows"] if r["model"] == "mtkd-fsrcnn-s0")
    assert done.code == 0, done.err
    assert done.json["sets"]["Bench"]["psnr_y"] == pytest.approx(row["sets"]["Bench"]["psnr_y"], abs=0.02)
    assert done.json["parameters"] == row["parameters"] and done.json["multiply_adds"] == row["multiply_adds"]
    assert run("upscale", ran[0] / "Bench/HR", tmp_path / "large", "--student", student).code == 0
    assert len(list((tmp_path / "large").iterdir())) == 2


def test_distill_says_where_the_weights_are(ran: tuple[Path, Done]) -> None:
    done = run("distill", ran[0] / "recipe.yaml")
    assert (
        done.code == 0
        and Path(done.out.strip()).is_file()
        and done.out.strip().endswith("weights.safetensors")
    )


def test_a_run_without_test_pictures_still_ends_with_its_student(place: Path) -> None:
    done = run("run", recipe_file(place, method={"name": "scratch"}, teachers=[]), "--inline")
    assert done.code == 0, done.err
    assert "scratch-fsrcnn" in done.out
