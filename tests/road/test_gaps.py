"""One recipe at several resolution gaps: a row, a JSON row and a point of the charts each, from one cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command_kit import run as command
from recognition_kit import content, picture_folder

from pipeline.errors import InputError
from pipeline.progress import Quiet
from pipeline.recipe.reading import checked
from pipeline.report.pareto import cost, front, latency
from pipeline.report.table import Metric, Row
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.tasks.recognition.recipe import Recognition


def recipe(root: Path, **changes: object) -> Recognition:
    return checked(Recognition, content(root, **changes), "test")


def folders(root: Path) -> dict[str, object]:
    return {"layout": "folders", "root": picture_folder(root, 2, 8), "size": 16, "views": {"count": 2}}


@pytest.mark.slow
def test_a_run_over_three_gaps_its_table_rows_and_charts(tmp_path: Path) -> None:
    compare = {"methods": ["scratch"], "gaps": [1, 2, 4, 8]}
    base = content(tmp_path, data=folders(tmp_path), method={"name": "kd"}, compare=compare)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(base))
    done = command("run", tmp_path / "recipe.yaml", "--inline", "--json", str(tmp_path / "rows.json"))
    assert done.code == 0, done.err
    assert "gap 8 leaves 2x2 pixels of 16x16; at least 4 a side are needed" in done.err
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(r["method"], r["gap"]) for r in rows] == [(m, g) for g in (1, 2, 4) for m in ("scratch", "kd")]
    costs = {r["gap"]: r["multiply_adds"] for r in rows}
    assert costs[1] > costs[2] > costs[4]
    for gap in (1, 2, 4):
        assert f"  kd-resnet8-x{gap} " in done.out, "a row of the table"
    folder = tmp_path / "runs" / "r" / "report"
    for stem in ("cost", "latency"):
        (chart,) = (folder / "report").glob(f"{stem}_*.svg")
        text = chart.read_text()
        assert all(f">{word}<" in text for word in ("x1", "x2", "x4", "kd-resnet8", "teacher (HR)"))
        assert "Pareto front" in text
    assert "gap of 1, 2 and 4" in (folder / "report.md").read_text()


def test_further_gaps_use_what_is_cached_and_leave_trainings_as_they_were(tmp_path: Path) -> None:
    data = folders(tmp_path)
    one = Run(recipe(tmp_path, data=data), InlineEngine("cpu"), Quiet())
    before = one.everything(["kd"], [0])
    settings = recipe(tmp_path, data=data, compare={"gaps": [4]})
    more = Run(settings, InlineEngine("cpu"), Quiet())
    after = more.everything(["kd"], [0])
    assert more.planner.shards_written == 0
    assert [job.gap for job in after.jobs] == [2, 4]
    assert after.jobs[0].fingerprint == before.jobs[0].fingerprint
    assert "gaps" not in one.recipe.model_dump()["compare"]
    assert more.task.gaps(more.task.single(settings)) == (2,), "a search trains at the recipe's own"


@pytest.mark.parametrize(
    ("gaps", "told"),
    [
        ([8], "compare.gaps: none fits: gap 8 leaves 2x2 pixels"),
        ([3, 8], r"none fits: data.size \(16, 16\) must be a multiple of gap \(3\); gap 8"),
        ([2, 5], "of 1, 2, 3, 4, 6, 8, 12, 16, found 5"),
        ([2, 2], "different values, found 2, 2"),
    ],
    ids=str,
)
def test_gaps_that_cannot_be_are_refused(tmp_path: Path, gaps: list[int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        recipe(tmp_path, data={"layout": "digits", "size": 16}, compare={"gaps": gaps})


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.8), (3.0, 0.8), (4.0, 0.9), (0.5, 0.1)]
    assert front(points) == [(0.5, 0.1), (1.0, 0.5), (2.0, 0.8), (4.0, 0.9)]


def test_an_error_that_should_be_small_has_its_front_below() -> None:
    metric = Metric("eer", "EER", 3, higher_is_better=False)

    def row(gap: int, eer: float, macs: int) -> Row:
        scores = {"faces": {"eer": [eer, eer + 0.01]}}
        return Row(f"kd-net-x{gap}", "student", scores, 100, macs, macs / 1e6, "kd-net", f"x{gap}")

    rows = [row(1, 0.02, 4_000_000), row(2, 0.03, 1_000_000), row(4, 0.2, 250_000)]
    for chart in (cost(rows, "faces", metric), latency(rows, "faces", metric)):
        assert chart is not None and "Pareto front" in chart and "standard deviation over seeds" in chart
    assert cost(rows[:1], "faces", metric) is None
