"""What `faculty submit` knows before it sends anything: the command, its recipe, its files and its variables."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from command_kit import Done, run
from road_kit import content, picture, recipe_file

from pipeline.engine import packing
from pipeline.engine.packing import pack
from pipeline.engine.submit import WORKER_COMMAND, _ended, runtime_env
from pipeline.errors import InputError

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for seed, name in enumerate("ab"):
        picture(tmp_path / "pictures" / f"{name}.png", 72, 80, seed)
    recipe_file(tmp_path, data={"train": ["pictures"]})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def submitted(*arguments: object) -> Done:
    done = run("submit", "--address", NOBODY, *arguments)
    return Done(done.code, done.out, " ".join(done.err.split()))


def passed(done: Done) -> bool:
    """All checks held: what ended it is that nobody answers."""
    return done.code == 1 and f"{NOBODY} does not take the job" in done.err


@pytest.mark.parametrize("spelling", (["--set=output=runs"], ["--set", "output=runs"]))
def test_a_relative_output_is_seen_in_every_spelling(place: Path, spelling: list[str]) -> None:
    done = submitted("run", "recipe.yaml", *spelling)
    assert done.code == 2 and "output: expected a place that outlives the job" in done.err


def test_an_absolute_output_is_seen_in_every_spelling(place: Path) -> None:
    recipe_file(place, data={"train": ["pictures"]}, output="runs")
    assert submitted("run", "recipe.yaml").code == 2
    assert passed(submitted("run", "recipe.yaml", f"--set=output={place.parent}/out"))
    assert passed(submitted("run", f"--set=output={place.parent}/out", "recipe.yaml"))


def test_a_command_line_that_the_command_does_not_take(place: Path) -> None:
    done = submitted("run", "recipe.yaml", "--stepz", "3")
    assert done.code == 2 and "--stepz" in done.err


def test_a_recognition_recipe_is_a_recipe(place: Path) -> None:
    shelf = Path(__file__).resolve().parents[2] / "recipes" / "recognition_digits.yaml"
    settings = yaml.safe_load(shelf.read_text())
    settings |= {"output": "s3://bucket/runs", "cache": {"root": "s3://bucket/cache"}}
    (place / "digits.yaml").write_text(yaml.safe_dump(settings))
    assert passed(submitted("run", "digits.yaml"))
    settings["output"] = "runs"
    (place / "digits.yaml").write_text(yaml.safe_dump(settings))
    done = submitted("run", "digits.yaml")
    assert done.code == 2 and "digits.yaml: output: expected a place that outlives the job" in done.err


def test_variables_of_the_recipe_go_along_and_a_machines_own_do_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.cli.submit import _variables
    from pipeline.progress import Quiet

    text = (place / "recipe.yaml").read_text()
    (place / "recipe.yaml").write_text(text.replace("name: r\n", "name: ${WHO}  # for ${HOME}\n"))
    monkeypatch.delenv("WHO", raising=False)
    done = submitted("run", "recipe.yaml")
    assert done.code == 2 and "the environment variable WHO" in done.err
    monkeypatch.setenv("WHO", "me")
    done = submitted("run", "recipe.yaml")
    assert passed(done) and "${HOME} is what the cluster's head has there" in done.err
    names = _variables(place / "recipe.yaml", Quiet())
    sent = runtime_env(pack(place), {"WHO": "me", "HOME": "h", "OTHER": "o"}, names)["env_vars"]
    assert sent == {"WHO": "me", "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(
    ("ignore", "path", "expected"),
    (
        ("pictures/\n", "pictures", "left out"),
        ("", "../elsewhere", "lies outside of"),
        ("", "nowhere", "found no nowhere"),
    ),
)
def test_pictures_that_the_job_would_not_find(place: Path, ignore: str, path: str, expected: str) -> None:
    (place.parent / "elsewhere").mkdir(exist_ok=True)
    (place / ".gitignore").write_text(ignore)
    recipe_file(place, data={"train": [path]})
    done = submitted("run", "recipe.yaml")
    assert done.code == 2 and "recipe.yaml: data.train.0: expected" in done.err and expected in done.err


def test_pictures_of_which_a_part_goes_along(place: Path) -> None:
    (place / "pictures" / ".rayignore").write_text("a.png\n")
    done = submitted("run", "recipe.yaml")
    assert passed(done) and "data.train.0: 2 of 3 files of pictures go along" in done.err


def test_options_of_other_commands_are_looked_up_too(place: Path) -> None:
    done = submitted("evaluate", "--model", "bicubic", "--data", "nowhere", "--scale", "2")
    assert done.code == 2 and "--data nowhere" in done.err
    assert passed(submitted("evaluate", "--model", "bicubic", "--data", "pictures", "--scale", "2"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "--model", "bicubic", "--data", "pictures", "--scale", "2", "--json", "r.json"),
        ("upscale", "pictures", "larger", "--student", "s.onnx"),
        ("export", "s.safetensors", "out"),
    ],
)
def test_results_that_would_go_with_the_job_are_refused(place: Path, arguments: tuple[str, ...]) -> None:
    for name in ("s.onnx", "s.safetensors"):
        (place / name).write_bytes(b"x")
    done = submitted(*arguments)
    assert done.code == 2 and "a shared folder, which outlives the job" in done.err
    outlives = [str(place / a) if a in ("r.json", "larger", "out") else a for a in arguments]
    assert passed(submitted(*outlives))
    done = submitted("export", "s.safetensors", str(place / "out"), "--calibrate", "nowhere")
    assert done.code == 2 and "--calibrate nowhere" in done.err


def test_a_stream_that_breaks_off_is_followed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [["one\ntw"], RuntimeError("closed with 1006"), ["one\n", "two\nth"], ["one\ntwo\nthree\n"]]
    states = iter([False, False, True])

    class Client:
        async def tail_job_logs(self, job: str):
            found = streams.pop(0)
            if isinstance(found, Exception):
                raise found
            for lines in found:
                yield lines

        def get_job_info(self, job: str) -> SimpleNamespace:
            ended = next(states)
            return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: ended))

    monkeypatch.setattr("pipeline.engine.submit.PAUSE", 0.0)
    said: list[str] = []
    assert _ended(Client(), "j", said.append).status.is_terminal()
    assert "".join(said) == "one\ntwo\nthree"
    monkeypatch.setattr("pipeline.engine.submit.PATIENCE", -1.0)
    streams[:] = [RuntimeError("closed")]
    with pytest.raises(RuntimeError):
        _ended(Client(), "j", said.append)


def test_what_goes_along_is_what_ray_would_send(tmp_path: Path) -> None:
    from zipfile import ZipFile

    from ray._private.runtime_env.packaging import create_package

    names = ("a.py", "runs/x", "cache/t.bin", "deep/runs/y", "deep/.gitignore", "deep/skip", "deep/keep")
    names += (".git/HEAD", "deep/.venv/p", "s.arrow", "mine/cache/u", "deep/__pycache__/z.pyc")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("skip\n")
    package = pack(tmp_path, ["mine/cache"])
    assert sorted(package.files) == ["a.py", "deep/.gitignore", "deep/keep", "deep/runs/y"]
    create_package(
        str(tmp_path), tmp_path / "p.zip", include_gitignore=True, excludes=[*package.excludes, "p.zip"]
    )
    with ZipFile(tmp_path / "p.zip") as sent:
        files = {i.filename: i.file_size for i in sent.infolist() if not i.is_dir()}
    assert files == package.files
    assert (tmp_path / "p.zip").stat().st_size <= package.size + 1000


def test_a_folder_beyond_the_limit_is_refused_before_anything_is_sent(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "big").mkdir()
    for name in "ab":  # holes: no byte of it is on the disk
        with (place / "big" / name).open("wb") as file:
            file.truncate(156 * 10**6)
    done = submitted("run", "recipe.yaml")
    assert done.code == 2, done.err
    assert re.search(r"at most 105 MB, .* found 312 MB in \d+ files, the most in big/. 156 MB", done.err), (
        done.err
    )
    (place / ".rayignore").write_text("big\n")
    assert passed(submitted("run", "recipe.yaml")), "its remedy"
    assert packing.LIMIT == 100 * 2**20
    with pytest.raises(InputError, match="--working-dir"):
        pack(place / "absent")


def test_the_recipes_own_outputs_stay_at_home(place: Path) -> None:
    settings = content(place, data={"train": ["pictures"]}) | {"output": "mine/out"}
    (place / "recipe.yaml").write_text(yaml.safe_dump(settings))
    from pipeline.cli.submit import _own_folders

    assert _own_folders(Path("recipe.yaml")) == ["mine/out"]


def test_the_interpreter_is_that_of_the_nodes_workers() -> None:
    line = "raylet --x=1 --python_worker_command=/a b/env/bin/python3.11 /a b/env/setup_worker.py --y --z=2"
    assert WORKER_COMMAND.search(line)[1] == "/a b/env/bin/python3.11"
