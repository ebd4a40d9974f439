"""What a message advises is done here as it is written, and helps."""

# ruff: noqa: F811  (fixtures of tracking_kit)
from __future__ import annotations

import logging
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from command_kit import make_place, run
from road_kit import flip, recipe_file, teacher
from tracking_kit import begin, migrated, no_ambient_store, points  # noqa: F401


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_place(tmp_path / "what? #1 'quoted' [a]")


def advised(text: str) -> list[list[str]]:
    """The commands between backticks, as a shell splits them, without `faculty`."""
    return [shlex.split(line)[1:] for line in re.findall(r"`(faculty [^`]*)`", text)]


def test_the_settings_are_explained_also_where_a_recipe_is_refused(place: Path) -> None:
    file = recipe_file(place, train={"stepz": 4})
    refused = run("run", file)
    (command,) = advised(refused.err)
    done = run(*[file if word == "FILE" else word for word in command])
    assert refused.code == 2 and done.code == 0 and re.search(r"^ *steps: ", done.out, re.M)


def test_a_cache_that_is_not_there_is_made_by_the_command_that_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    file = recipe_file(place, teachers=[teacher("compact")])
    missing = run("cache", "ls", "cache")
    (command,) = advised(missing.err)
    assert missing.code == 2 and "cache.root" in missing.err
    assert run(*[file if word == "RECIPE" else word for word in command], "--inline").code == 0
    assert run("cache", "ls", "cache").code == 0


def test_a_damaged_shard_is_mended_by_what_verify_prints(place: Path) -> None:
    file = recipe_file(place, teachers=[teacher("compact")])
    assert run("teach", file, "--inline").code == 0
    flip(sorted((place / "cache" / "outputs").rglob("*.arrow"))[0])
    found = run("cache", "verify", place / "cache")
    assert found.code == 1
    for line in (line for line in found.out.splitlines() if line.startswith("rm ")):
        subprocess.run(line, shell=True, check=True)
    assert run("teach", file, "--inline").code == 0
    assert run("cache", "verify", place / "cache").code == 0


def test_what_is_extra_in_a_cache_is_deleted_by_the_command_that_verify_prints(place: Path) -> None:
    assert run("teach", recipe_file(place, teachers=[teacher("compact")]), "--inline").code == 0
    shard = sorted((place / "cache" / "outputs").rglob("*.arrow"))[0]
    shard.with_name("stray.arrow").write_bytes(shard.read_bytes())
    found = run("cache", "verify", place / "cache")
    (command,) = advised(found.out)
    assert found.code == 1 and run(*command).code == 0
    assert run("cache", "verify", place / "cache").code == 0


def test_what_a_store_did_not_get_is_uploaded_by_the_command_that_is_logged(
    place: Path, migrated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = place / "runs"
    folder.mkdir()
    database = folder / "mlflow.db"
    database.write_bytes(migrated.read_bytes())
    tracker = begin(folder)
    tracker.metrics({"loss": 1.0}, 0)
    assert tracker.flush()
    database.rename(folder / "away.db")
    database.mkdir()  # no database can be opened there
    with caplog.at_level(logging.WARNING):
        tracker.metrics({"loss": 2.0}, 1)
        tracker.close(timeout=180)
    database.rmdir()
    (folder / "away.db").rename(database)
    (line,) = [m for m in caplog.messages if "later: " in m]
    done = run(*shlex.split(line.split("later: faculty ")[1]))
    assert done.code == 0, done.err
    assert points(tracker, "loss") == [(0, 1.0), (1, 2.0)]


def test_inline_and_a_cluster_exclude_each_other_until_one_is_left_out(place: Path) -> None:
    file = recipe_file(place, teachers=[teacher("compact")])
    refused = run("teach", file, "--inline", "--address", "auto")
    assert refused.code == 2 and "Leave one of them out" in refused.err
    assert run("teach", file, "--inline").code == 0


def test_an_unknown_teacher_is_found_in_the_list_that_is_named(place: Path) -> None:
    refused = run("teach", recipe_file(place, teachers=[{"checkpoint": "swinir-m-x5"}]), "--inline")
    assert refused.code == 2
    for command in advised(refused.err):
        assert "swinir-m-x4" in run(*command).out


def test_a_method_twice_is_trained_once(place: Path) -> None:
    file = recipe_file(place, method={"name": "scratch"}, teachers=[])
    done = run("compare", file, "--inline", "--methods", "scratch,scratch", "--seeds", 1)
    assert done.code == 0, done.err
