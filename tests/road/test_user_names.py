"""What users call things, and pictures that come out exactly right: one run with everything awkward in it, by content.

A teacher called as bicubic, test sets whose names were one in MLflow or a curve's, a black picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from road_kit import faculty, picture, recipe_file, teacher

from pipeline.data.decode import decode
from pipeline.data.degrade import downscale, modcrop, upscale
from pipeline.deploy.evaluate import bicubic, evaluate, load_set
from pipeline.means import exact_pictures, set_means
from pipeline.metrics import psnr_y, ssim_y
from pipeline.report.charts import all_charts
from pipeline.report.table import PSNR, Row, arrange, gains, render_table

SETS = ("测试集一", "测试集二", "Set (a)", "Set [a]", "held_out")
SPELLED = ("测试集一", "测试集二", "Set _x0028_a_x0029_", "Set _x005B_a_x005D_", "held_out")
BLACK = "测试集一"


@dataclass
class Ran:
    root: Path
    settings: dict[str, Any]
    out: str
    err: str
    json: dict[str, Any]

    def again(self, **changes: Any) -> dict[str, Any]:
        """The JSON of another run on the same cache."""
        file = recipe_file(self.root, **{**self.settings, **changes})
        done = faculty("run", file, "--inline", "--json", "again.json", cwd=self.root)
        assert done.returncode == 0, done.stderr
        return json.loads((self.root / "again.json").read_text())


def bicubic_figures(folder: Path) -> dict[str, tuple[float, float]]:
    """{picture: (PSNR, SSIM)} by the protocol's definition."""
    found = {}
    for path in sorted(folder.iterdir()):
        hr = modcrop(decode(path), 2)
        sr = upscale(downscale(hr, 2), 2)
        found[path.name] = (psnr_y(sr, hr, 2), ssim_y(sr, hr, 2))
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """`faculty run` with a teacher called bicubic, five sets, and a black picture in the first."""
    pytest.importorskip("mlflow")
    root = tmp_path_factory.mktemp("names")
    for seed, name in enumerate("abcde"):
        picture(root / "pictures" / f"{name}.png", 96, 96, seed)
    for seed, name in enumerate(SETS):
        picture(root / name / "one.png", 48, 52, 40 + seed)
    picture(root / BLACK / "two.png", 48, 52, 60)
    Image.new("RGB", (52, 48)).save(root / BLACK / "black.png")
    settings: dict[str, Any] = {
        "data": {"test": [str(root / name) for name in SETS]},
        "teachers": [{**teacher("edsr"), "name": "bicubic"}],
        "tracking": {"enabled": True, "system_metrics": False},
    }
    done = faculty("run", recipe_file(root, **settings), "--inline", "--json", "out.json", cwd=root)
    assert done.returncode == 0, done.stderr
    return Ran(root, settings, done.stdout, done.stderr, json.loads((root / "out.json").read_text()))


def row(result: dict[str, Any], role: str) -> dict[str, Any]:
    (found,) = [r for r in result["rows"] if r["role"] == role]
    return found


def test_a_teacher_called_bicubic_is_shown_apart_and_spoils_no_scores(ran: Ran) -> None:
    assert row(ran.json, "bicubic")["model"] == "bicubic"
    assert row(ran.json, "teacher")["model"] == "bicubic (teacher)"
    later = ran.again(name="later", teachers=[teacher("edsr")])
    for result in (ran.json, later):
        for name in SETS[1:]:
            (right,) = bicubic_figures(ran.root / name).values()
            found = row(result, "bicubic")["sets"][name]
            assert (found["psnr_y"], found["ssim_y"]) == pytest.approx(right, abs=1e-9)
    assert row(later, "teacher")["sets"] == row(ran.json, "teacher")["sets"]
    assert row(later, "teacher")["sets"]["held_out"] != row(later, "bicubic")["sets"]["held_out"]


def test_books_of_scores_that_may_be_anothers_are_not_read(ran: Ran) -> None:
    old = ran.root / "cache/scores/bicubic-x2.json"
    (book,) = ran.root.glob("cache/scores/*/bicubic-x2.json")
    old.write_text(json.dumps({place: [99.0, 1.0] for place in json.loads(book.read_text())}))
    again = ran.again(name="over")
    assert row(again, "bicubic")["sets"] == row(ran.json, "bicubic")["sets"]


def test_mlflow_has_every_set_in_parent_and_child_beside_the_validation_curve(ran: Ran) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{ran.root / 'runs/mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "r"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    parent, child = runs["r"].data.metrics, runs["mtkd-fsrcnn-s0"].data.metrics
    (student,) = [r["sets"] for r in ran.json["rows"] if r["model"] == "mtkd-fsrcnn-s0"]
    for name, spelled in zip(SETS, SPELLED, strict=True):
        for key in ("psnr_y", "ssim_y"):
            assert child[f"benchmark/{spelled}/{key}"] == student[name][key]
            assert parent[f"benchmark/{spelled}/{key}/mtkd-fsrcnn"] == student[name][key]
            bicubic_ = row(ran.json, "bicubic")["sets"][name][key]
            assert parent[f"benchmark/{spelled}/{key}/bicubic"] == bicubic_
    history = client.get_metric_history(runs["mtkd-fsrcnn-s0"].info.run_id, "held_out/psnr_y")
    assert [point.step for point in history] == [3, 6]
    assert min(child) == f"benchmark/{min(SPELLED)}/psnr_y"
    assert max(n for n in child if n.startswith("benchmark/")) < min(
        n for n in child if n.startswith("train/")
    )


def test_mlflow_names_the_data_sets_of_run_and_training_by_their_content(ran: Ran) -> None:
    from mlflow import MlflowClient
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json

    client = MlflowClient(f"sqlite:///{ran.root / 'runs/mlflow.db'}")
    experiment = client.get_experiment_by_name("r")
    assert experiment is not None
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert runs["r"].data.tags["tiles"]
    for run in (runs["r"], runs["mtkd-fsrcnn-s0"]):
        found = {i.dataset.name: i for i in run.inputs.dataset_inputs}
        assert set(found) == {"train tiles", "held_out tiles", *SETS}
        contexts = {
            name: {t.key: t.value for t in i.tags}["mlflow.data.context"] for name, i in found.items()
        }
        assert contexts == {"train tiles": "training", "held_out tiles": "validation"} | dict.fromkeys(
            SETS, "testing"
        )
        assert found["train tiles"].dataset.digest == runs["r"].data.tags["tiles"]
        rows = {name: json.loads(found[name].dataset.profile)["num_rows"] for name in found}
        assert [rows[name] for name in SETS] == [3 if name == BLACK else 1 for name in SETS]
        assert len({i.dataset.digest for i in found.values()}) == len(found)
        one = found[SETS[1]].dataset
        source = get_dataset_source_from_json(one.source, one.source_type)
        assert Path(source.uri) == ran.root / SETS[1]


def test_every_set_has_its_chart(ran: Ran) -> None:
    charts = sorted(p.name for p in (ran.root / "runs/r/report/report").glob("ladder_*.svg"))
    assert len(charts) == len(SETS)
    texts = [(ran.root / "runs/r/report/report" / name).read_text() for name in charts]
    assert all(sum(f">{name}: PSNR" in text for text in texts) == 1 for name in SETS)


def test_a_black_picture_is_left_out_of_every_mean_and_named(ran: Ran) -> None:
    figures = bicubic_figures(ran.root / BLACK)
    assert figures["black.png"] == (np.inf, pytest.approx(1.0))
    right = {
        "images": 3,
        "psnr_y": pytest.approx((figures["one.png"][0] + figures["two.png"][0]) / 2, abs=1e-9),
        "ssim_y": pytest.approx(sum(s for _, s in figures.values()) / 3, abs=1e-9),
        "exact": ["black.png"],
    }
    assert row(ran.json, "bicubic")["sets"][BLACK] == right
    assert all(r["sets"][BLACK]["exact"] == ["black.png"] for r in ran.json["rows"])
    assert all("exact" not in r["sets"]["held_out"] for r in ran.json["rows"])
    assert all(20 < r["sets"][BLACK]["psnr_y"] < 60 for r in ran.json["rows"])
    note = f"{BLACK}: 1 of 3 pictures left out of the PSNR mean"
    assert note in ran.err and note in (ran.root / "runs/r/report/report.md").read_text()
    assert "black.png" in ran.err and not {"inf", "nan", "null"} & set(ran.out.split())


def test_evaluate_and_the_run_agree_on_bicubic(ran: Ran) -> None:
    done = faculty(
        "evaluate", "--model", "bicubic", "--data", BLACK, "--scale", 2, "--json", "e.json", cwd=ran.root
    )
    assert done.returncode == 0 and "black.png" in done.stdout and "1 of 3 pictures" in done.stdout
    found = json.loads((ran.root / "e.json").read_text())["sets"][BLACK]
    right = row(ran.json, "bicubic")["sets"][BLACK]
    assert found == {**right, **{key: pytest.approx(right[key], abs=1e-12) for key in ("psnr_y", "ssim_y")}}


def test_compare_names_the_picture_in_its_rows(ran: Ran) -> None:
    file = recipe_file(ran.root, **ran.settings)
    arguments = ("compare", file, "--inline", "--methods", "mtkd,mtkd", "--seeds", 1, "--json", "c.json")
    done = faculty(*arguments, cwd=ran.root)
    assert done.returncode == 0, done.stderr
    rows = json.loads((ran.root / "c.json").read_text())["rows"]
    assert [r["set"] for r in rows] == list(SETS)  # a method named twice is one
    assert [r.get("exact") for r in rows] == [["black.png"], None, None, None, None]


def test_a_model_that_misses_black_is_judged_on_the_pictures_that_bicubic_is(ran: Ran) -> None:
    dull = evaluate(lambda lr: bicubic(2)(lr) + 1 / 255, [load_set(ran.root / BLACK, 2)], 2)[BLACK]
    assert dull["exact"] == ["black.png"] and dull["images"] == 3 and dull["psnr_y"] < 48


def test_where_all_are_exact_the_mean_is_infinite_and_shown_as_exact() -> None:
    one, other = {"a": (np.inf, 1.0), "b": (np.inf, 1.0)}, {"a": (30.0, 0.9), "b": (32.0, 0.8)}
    exact = exact_pictures([one, other])
    assert exact == ["a", "b"]
    assert set_means(one, exact) == {"images": 2, "psnr_y": np.inf, "ssim_y": 1.0, "exact": ["a", "b"]}
    assert set_means(other, exact) == {
        "images": 2,
        "psnr_y": 31.0,
        "ssim_y": pytest.approx(0.85),
        "exact": ["a", "b"],
    }
    rows = [
        Row("scratch-x", "student", {"S": {"psnr_y": [np.inf, np.inf]}}),
        Row("mtkd-x", "student", {"S": {"psnr_y": [np.inf, np.inf]}}),
        Row("kd-x", "student", {"S": {"psnr_y": [30.0, 31.0]}}),
    ]
    text = render_table(rows, baseline="scratch-x")
    assert text.count("exact") == 2 and "30.50 ±0.71" in text and "inf" not in text and "nan" not in text
    assert gains(rows, PSNR, "scratch-x") == []
    assert [cells[0].gain for cells in arrange(rows, baseline="scratch-x").cells] == [None] * 3
    (svg,) = all_charts(rows, PSNR, {}).values()
    assert "scratch-x, mtkd-x: exact" in svg
