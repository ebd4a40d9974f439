"""The command: exit codes, what it refuses before anything is started, doctor and track."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import ray
import torch
import yaml
from command_kit import make_place, run, until
from pydantic import BaseModel
from road_kit import REPOSITORY, TEACHERS, bad_pictures, command, environment, faculty, recipe_file, teacher

from pipeline.recipe.recipe import Recipe
from pipeline.tasks.recipes import load_recipe


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path)


# ---- recipes


def test_recipe_check_shows_every_value_of_a_valid_recipe(place: Path) -> None:
    done = run("recipe", "check", recipe_file(place), "--set", "train.steps=9")
    assert done.code == 0 and "valid" in done.out
    shown = Recipe.model_validate(yaml.safe_load(done.out))
    assert shown.train.steps == 9
    assert shown == load_recipe(recipe_file(place), ("train.steps=9",))


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A settings model and all those below it."""

    def below(annotation: object) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return sections(annotation)
        return {m for part in getattr(annotation, "__args__", ()) for m in below(part)}

    return {model} | {m for f in model.model_fields.values() for m in below(f.annotation)}


def test_the_schema_explains_every_setting(place: Path) -> None:
    done = run("recipe", "check", recipe_file(place), "--schema")
    assert done.code == 0
    known = [(m, name, f) for m in sections(Recipe) for name, f in m.model_fields.items()]
    assert len(known) > 60
    for model, name, entry in known:
        assert re.search(rf"^ *{name}:", done.out, re.M), (model.__name__, name)
        if not isinstance(entry.annotation, type) or not issubclass(entry.annotation, BaseModel):
            assert entry.description and " ".join(entry.description.split()) in done.out, (
                model.__name__,
                name,
            )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipe", "check", "absent.yaml"], "absent.yaml"),
        (["recipe", "check", "RECIPE", "--set", "train.stepz=4"], "train.stepz"),
        (["recipe", "check", "RECIPE", "--set", "train.steps"], "key.path=value"),
        (["recipe", "check", "RECIPE", "--set", "train.steps=many"], "train.steps"),
        (["teach", "RECIPE", "--set", "teachers=[]", "--set", "method={name: scratch}"], "teachers"),
        (["compare", "RECIPE", "--methods", "scratch,magic"], "magic"),
        (["compare", "RECIPE", "--seeds", "0"], "--seeds"),
        (["run", "RECIPE", "--inline", "--address", "auto"], "--inline"),
        (["frobnicate"], "frobnicate"),
        (["evaluate", "--model", "bicubic", "--data", ".", "--scale", "5"], "5"),
        (["evaluate", "--model", "bicubic", "--data", "absent", "--scale", "2"], "absent"),
        (["evaluate", "--model", "absent.pth", "--data", "Bench/HR", "--scale", "2"], "absent.pth"),
        (["cache", "ls", "absent"], "absent"),
        (["export", "absent.safetensors", "out"], "absent.safetensors"),
        (["upscale", "absent", "out", "--student", "absent.safetensors"], "absent"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_input_ends_with_2_and_names_what_was_wrong(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(place)
    recipe_file(place)
    done = run(*[str(place / "recipe.yaml") if a == "RECIPE" else a for a in arguments])
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    assert done.out == "" and not (place / "cache").exists() and not (place / "absent").exists()


# ---- refused before anything is started


class Payload:
    """Unpickling it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def bad_teacher(place: Path, kind: str) -> Path:
    file = place / "teacher.pth"
    if kind == "payload":
        torch.save({"params": {"a": torch.zeros(1)}, "extra": Payload(place / "mark")}, file)
    elif kind == "text":
        file.write_text("not a checkpoint")
    elif kind == "unknown":
        torch.save({"some.weight": torch.zeros(3, 3)}, file)
    elif kind == "truncated":
        file = file.with_suffix(".safetensors")
        file.write_bytes((TEACHERS / "edsr_x2.safetensors").read_bytes()[:-1000])
    elif kind == "scale":
        file = TEACHERS / "edsr_x2.safetensors"
    return file


@pytest.mark.parametrize("kind", ["missing", "payload", "text", "unknown", "truncated", "scale"])
@pytest.mark.parametrize("verb", ["teach", "run"])
def test_an_unfit_teacher_is_named_before_anything_is_started(place: Path, kind: str, verb: str) -> None:
    file = bad_teacher(place, kind)
    changes = {"scale": 3, "train": {"patch": 8}} if kind == "scale" else {}
    recipe = recipe_file(
        place, teachers=[teacher("compact"), {"checkpoint": str(file)}][bool(changes) :], **changes
    )
    started = ray.is_initialized()
    done = run(verb, recipe)
    assert done.code == 2 and file.name in done.err, done.err
    if kind == "scale":
        assert "scale 3" in done.err and "scale 2" in done.err
    assert not (place / "mark").exists(), "a checkpoint must not run code"
    assert ray.is_initialized() == started and not (place / "cache" / "tiles").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"name": "fsrcnn", "options": {"depth": 3}}}, "depth"),
        ({"student": {"name": "resnet"}}, "resnet"),
        ({"method": {"name": "mtkd", "wavelet": "squeak"}}, "squeak"),
        ({"data": {"test": ["absent/HR"]}}, "absent"),
        ({"data": {"test": ["Bench/HR", "other/Bench"]}}, "Bench"),
        ({"data": {"train": ["absent"]}}, "absent"),
    ],
    ids=["option", "student", "wavelet", "test", "names", "train"],
)
def test_what_cannot_end_well_is_not_begun(
    place: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
) -> None:
    monkeypatch.chdir(place)
    shutil.copytree("Bench/HR", "other/Bench")
    started = ray.is_initialized()
    done = run("run", recipe_file(place, **changes))
    assert done.code == 2 and said in done.err, done.err
    assert (
        ray.is_initialized() == started
        and not (place / "cache" / "tiles").exists()
        and not (place / "runs").exists()
    )


@pytest.mark.parametrize("name", ["truncated.png", "float.tif", "lab.tif", "dot.png"])
def test_teach_names_a_bad_picture_or_lists_it(place: Path, name: str) -> None:
    bad_pictures(place / "aside")
    shutil.copy(place / "aside" / name, place / "pictures")
    started = ray.is_initialized()
    done = run("teach", recipe_file(place))
    assert done.code == 2 and name in done.err and ray.is_initialized() == started
    done = run(
        "teach",
        recipe_file(place, teachers=[teacher("compact")]),
        "--inline",
        "--set",
        "data.on_bad=quarantine",
    )
    assert done.code == 0 and f"left out {place / 'pictures' / name}" in done.err.replace("\n", "")


# ---- the other exit codes


def test_a_failure_ends_with_1_and_its_cause_first(place: Path) -> None:
    recipe = recipe_file(place, method={"name": "scratch"}, teachers=[], train={"lr": 1e30})
    done = run("distill", recipe, "--inline")
    first = next(line for line in done.err.splitlines() if line.startswith("faculty: "))
    assert done.code == 1 and re.match(r"faculty: phase distill, step \d+: the term `(hr|loss)` is", first)
    assert "Traceback" not in done.err


def test_what_nobody_foresaw_ends_with_1_and_says_how_to_see_more(place: Path) -> None:
    (place / "cache").write_text("a file where a folder should be")
    done = run("teach", recipe_file(place), "--inline")
    assert done.code == 1 and "cache" in done.err and "Traceback" not in done.err


def test_debug_shows_where_it_happened(place: Path) -> None:
    with pytest.raises(Exception, match=r"absent\.yaml"):
        run("--debug", "recipe", "check", place / "absent.yaml")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_soon_and_the_same_command_goes_on(
    place: Path, number: int, code: int
) -> None:
    recipe = recipe_file(
        place, method={"name": "scratch"}, teachers=[], train={"steps": 100_000, "evaluate_every": 2}
    )
    work = subprocess.Popen(
        command("distill", recipe, "--inline"),
        cwd=place,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: list((place / "runs").rglob("step-*.json")), work)
        work.send_signal(number)
        _, said = work.communicate(timeout=180)
    finally:
        work.kill()
    assert work.returncode == code and "goes on" in said and "Traceback" not in said


# ---- doctor, track


def test_doctor_says_ok_line_by_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = run("doctor", "--json", place / "doctor.json")
    rows = json.loads((place / "doctor.json").read_text())["checks"]
    assert done.code == 0, done.out
    assert {"python", "torch", "ray", "mlflow", "devices", "cache", "tracking", "cluster"} <= {
        r["check"] for r in rows
    }
    assert len(done.out.splitlines()) == len(rows) and all(
        line.startswith("ok ") for line in done.out.splitlines()
    )
    assert all(r["ok"] and r["detail"] for r in rows)
    assert not list((place / "cache").rglob("doctor-*"))


def test_doctor_says_what_to_do_about_what_is_wrong(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (place / "file").write_text("")
    done = run("doctor", "--cache", place / "file" / "cache")
    wrong = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("NO ")}
    assert done.code == 1 and set(wrong) == {"cache", "tracking"}
    assert "cannot be written" in wrong["cache"] and "unset MLFLOW_TRACKING_URI" in wrong["tracking"]


def test_track_sync_has_nothing_to_do_where_nothing_was_spooled(place: Path) -> None:
    done = run("track", "sync", place)
    assert done.code == 0 and "nothing" in done.out


def test_the_command_is_installed_under_its_name() -> None:
    done = faculty("--version", cwd=REPOSITORY)
    assert done.returncode == 0 and re.fullmatch(r"faculty \d+\.\d+\.\d+\S*", done.stdout.strip())
