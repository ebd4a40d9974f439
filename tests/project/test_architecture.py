"""The structure that docs/architecture.md shows is the code's own, without circles."""

from __future__ import annotations

import runpy
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DRAWING = runpy.run_path(str(REPOSITORY / "docs" / "architecture.py"))


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert DRAWING["circle"](DRAWING["imports"](DRAWING["modules"]())) == []
    assert DRAWING["circle"]({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_picture_is_as_it_would_be_drawn() -> None:
    graph = DRAWING["imports"](DRAWING["modules"]())
    picture = DRAWING["drawn"](DRAWING["rooms"](graph))
    assert (REPOSITORY / "docs" / "architecture.svg").read_text() == picture, "python docs/architecture.py"


def test_nothing_outside_tasks_asks_which_task_it_is() -> None:
    for path in sorted((REPOSITORY / "pipeline").rglob("*.py")):
        if "tasks" not in path.relative_to(REPOSITORY).parts:
            text = path.read_text()
            assert ".task ==" not in text and "tasks.recognition" not in text, path
            assert "tasks.super_resolution" not in text, path


def test_files_can_be_read_in_one_sitting() -> None:
    for top in ("pipeline", "teachers", "students", "tests", "benchmarks", "docs", "tune_spaces"):
        for path in (REPOSITORY / top).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 300, path
