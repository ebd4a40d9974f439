"""Whole recognition runs on tiny sets: every task, every method, resumed, cached, online, by command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recognition_kit import ALL, BUDGET, EVERY_TERM, content, figures, picture_folder, run, scored
from road_kit import Untouchable, hashes, weights

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.road.results import baseline, compare_rows, finish, table, table_rows
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery


def test_a_run_of_all_methods_its_table_and_a_second_one_that_computes_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    outcome = first.everything(ALL, [0])
    files = finish(first, outcome, [])
    assert set(scored(outcome)) == {"teacher", "assistant", *(f"{m}-resnet8-x2-s0" for m in ALL)}
    rows = {row.name: row for row in table_rows(outcome)}
    assert rows["teacher (HR)"].multiply_adds > 4 * rows["scratch-resnet8-x2"].multiply_adds  # type: ignore[operator]
    assert all(0 <= figures(outcome, name)["accuracy"] <= 1 for name in scored(outcome))
    assert all(r.latency_ms is not None and r.latency_ms > 0 for r in outcome.results)
    assert "accuracy" in table(outcome) and "ms" in table(outcome)
    assert {"method", "student", "seed", "set", "gap", "accuracy", "multiply_adds"} <= set(
        compare_rows(outcome)[0]
    )
    page = Path(files.report).read_text()
    assert "Confusion" in page and "horkd-resnet8-x2" in page and "Reliability" in page
    assert (
        "How sure these figures are" in page and "rkd-resnet8-x2: F1" in page and "teacher (HR): F1" in page
    )
    low, high = (compare_rows(outcome)[0][f"balanced_accuracy_{end}"] for end in ("low", "high"))
    assert low <= compare_rows(outcome)[0]["balanced_accuracy"] <= high
    for made in files.students.values():
        assert {p.name for p in Path(made["safetensors"]).parent.iterdir()} >= {
            "resnet8_x2.onnx",
            "README.md",
        }

    before = hashes(tmp_path)
    again = run(tmp_path, Untouchable())
    finish(again, again.everything(ALL, [0]), [])
    assert hashes(tmp_path) == before


def test_variants_of_a_method_stand_beside_it_and_share_an_assistant(tmp_path: Path) -> None:
    variants = {
        "no-mmd": {**EVERY_TERM, "mmd": 0.0},
        "apart": {"name": "horkd", "union": False},
    }
    road = run(tmp_path, compare={"variants": variants})
    outcome = road.everything(["scratch", "rkd", "no-mmd", "horkd", "apart"], [0])
    assert [r["method"] for r in compare_rows(outcome)] == ["scratch", "rkd", "no-mmd", "horkd", "apart"]
    curves = {job.method: job.result()["curves"]["student"] for job in outcome.jobs}  # type: ignore[index]
    assert "train/mmd" in curves["rkd"] and "train/mmd" not in curves["no-mmd"]
    assert curves["horkd"]["train/order2"] != curves["apart"]["train/order2"]
    assert len(list((tmp_path / "cache" / "networks").glob("assistant-*"))) == 1
    with pytest.raises(InputError, match="no-mmd, apart"):
        road.check(["no-such"])


def test_variants_must_have_names_of_their_own() -> None:
    for compare, message in [
        ({"variants": {"kd": {"name": "kd"}}}, "methods' own names"),
        ({"methods": ["no-mmd"]}, "neither methods"),
        (
            {"variants": {"maps": {"name": "rkd", "map": 1.0}}},
            "compare.variants.maps.map needs cache.features",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            Recognition.model_validate(content(Path("x"), compare=compare))


def test_folds_are_runs_of_their_own_and_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"layout": "folders", "root": picture_folder(tmp_path, 2, 8), "size": 16, "views": {"count": 2}}
    file, rows = tmp_path / "recipe.yaml", tmp_path / "rows.json"
    file.write_text(yaml.safe_dump(content(tmp_path, data=data)))
    command = [
        "compare",
        str(file),
        "--methods",
        "scratch,kd",
        "--seeds",
        "1",
        "--inline",
        "--json",
        str(rows),
    ]
    assert main([*command, "--folds", "2"]) == 0
    found = json.loads(rows.read_text())["rows"]
    assert [(r["method"], r["fold"]) for r in found] == [("scratch", 1), ("kd", 1), ("scratch", 2), ("kd", 2)]
    out = capsys.readouterr().out
    mean = sum(r["accuracy"] for r in found if r["method"] == "kd") / 2
    assert any("kd-resnet8-x2" in line and f" {mean:.4f} " in line for line in out.splitlines()), out
    assert len(list((tmp_path / "runs").glob("*-fold[12]"))) == 2
    assert main([*command, "--folds", "1"]) == 2 and "at least 2" in capsys.readouterr().err
    assert main(["compare", "recipes/demo.yaml", "--folds", "2"]) == 2
    assert "data.fold" in capsys.readouterr().err


def test_another_gap_and_seed_reuse_teacher_assistant_and_their_outputs(tmp_path: Path) -> None:
    data = {"layout": "folders", "root": picture_folder(tmp_path, 2, 8), "size": 16, "views": {"count": 2}}
    run(tmp_path, data=data).everything(["horkd"], [0])
    cached = hashes(tmp_path / "cache")
    more = run(tmp_path, data=data, gap=[2, 4])
    outcome = more.everything(["horkd"], [0, 1])
    assert more.planner.shards_written == 0 and len(outcome.jobs) == 4
    assert baseline(outcome) == {}
    both = more.everything(["scratch", "horkd"], [0])
    assert baseline(both)["horkd-resnet8-x4"] == "scratch-resnet8-x4" != baseline(both)["horkd-resnet8-x2"]
    assert table(both).count("x4") == 2
    assert hashes(tmp_path / "cache") == cached


def test_a_training_that_was_stopped_goes_on_to_the_same_bits_discriminator_included(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    (whole,) = run(tmp_path).everything(["rkd"], [0]).jobs
    halted = run(tmp_path, output=str(tmp_path / "other"))
    job = halted.student(halted.prepare(["rkd"]), "rkd", 2, 0)
    from pipeline.steps.job import Listener

    def stop(values: dict[str, float], step: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        job.run(listener=Listener(sync=stop))
    state = torch.load(next((tmp_path / "other").rglob("step-000000003.pt")), weights_only=True)
    assert set(state["adversary"]) == {"modules", "optimiser"}
    critic = state["adversary"]["modules"]["discriminator"]
    assert job.result() is None
    job.run()
    assert weights(job) == weights(whole)
    assert json.dumps(job.result()["curves"]) == json.dumps(whole.result()["curves"])  # type: ignore[index]
    after = torch.load(next((tmp_path / "other").rglob("step-000000006.pt")), weights_only=True)
    moved = after["adversary"]["modules"]["discriminator"]
    assert any(not torch.equal(critic[k], moved[k]) for k in critic)
    plain = run(tmp_path)
    plain.everything(["kd"], [0])
    for file in (tmp_path / "runs").rglob("kd-*/0-student/*.pt"):
        assert "adversary" not in torch.load(file, weights_only=True)


def test_an_assistant_is_read_from_the_cache_beside_an_online_teacher(tmp_path: Path) -> None:
    method = {"name": "horkd", "gamma": 0.5}
    (cached,) = run(tmp_path, method=method).everything(["horkd"], [0]).jobs
    (online,) = run(tmp_path, method=method, cache={"online": True}).everything(["horkd"], [0]).jobs
    assert cached.outputs.keys() == {"teacher", "assistant"} and online.outputs.keys() == {"assistant"}
    one, two = (j.result()["curves"]["student"] for j in (cached, online))  # type: ignore[index]
    for term in ("order1", "order2", "order3", "soft"):
        (_, first), (_, second) = one[f"train/{term}"][0], two[f"train/{term}"][0]
        assert first == pytest.approx(second, rel=0.1), term  # two assistants, from float16 and from float32


def test_an_online_teacher_gives_the_losses_of_the_cached_one(tmp_path: Path) -> None:
    (cached,) = run(tmp_path).everything(["kd"], [0]).jobs
    (online,) = run(tmp_path, cache={"online": True}).everything(["kd"], [0]).jobs
    assert not online.outputs and cached.outputs
    one, two = (j.result()["curves"]["student"]["train/soft"] for j in (cached, online))  # type: ignore[index]
    assert one[-1][1] == pytest.approx(two[-1][1], rel=2e-3)  # float16 in the cache


def test_a_term_with_weight_zero_is_not_computed(tmp_path: Path) -> None:
    method = {**EVERY_TERM, "adversarial": 0.0, "mmd": 0.0, "pairwise": 0.0, "contrast": 0.0, "angles": 0.0}
    (job,) = run(tmp_path, method=method).everything(["rkd"], [0]).jobs
    terms = {k for k in job.result()["curves"]["student"] if k.startswith("train/")}  # type: ignore[index]
    assert terms == {f"train/{name}" for name in ("task", "soft", "feature", "distances", "loss")}


def test_feature_maps_can_be_cached_and_regressed(tmp_path: Path) -> None:
    method = {"name": "rkd", "map": 1.0}
    same = {"name": "resnet8", "options": {"width": 8}, "embedding": 8}
    outcome = run(tmp_path, method=method, student=same, cache={"features": "map"}).everything(["rkd"], [0])
    curves = outcome.jobs[0].result()["curves"]["student"]  # type: ignore[index]
    assert curves["train/map"][-1][1] > 0


@pytest.mark.parametrize("task", ["verification", "retrieval"])
def test_unseen_identities(tmp_path: Path, task: str) -> None:
    data = {
        "layout": "folders",
        "root": picture_folder(tmp_path, 6, 6),
        "size": 16,
        "split": "identities",
        "views": {"count": 2, "flip": True},
    }
    road = run(tmp_path, task=task, data=data, sampling={"identities": 2, "pictures": 4}, gap=4)
    outcome = road.everything(ALL, [0])
    finish(road, outcome, [])
    name = "horkd-resnet8-x4-s0"
    assert 0 <= figures(outcome, name)["rank1"] <= 1
    assert len(outcome.prepared.samples.classes) == 2
    curves = scored(outcome)[name].curves
    assert ("roc" if task == "verification" else "cmc") in curves
    (page,) = (tmp_path / "runs").rglob("report.md")
    assert "How sure these figures are" in page.read_text() and list(page.parent.rglob("picture_1.png"))
    if task == "retrieval":
        assert "right ones in green" in page.read_text() and list(page.parent.rglob("picture_2.png"))
        labels = Gallery(road.planner.store, outcome.prepared.samples.manifests["test"]).labels
        for answer in curves["answered"]:
            assert answer["query"] not in answer["hits"]
            assert answer["right"] == [labels[hit] == labels[answer["query"]] for hit in answer["hits"]]
    else:
        far, low, high = map(np.array, curves["band"])
        assert len(far) == len(low) == len(high) and (low <= high).all()
        assert figures(outcome, name)["auc_low"] <= figures(outcome, name)["auc_high"]


def test_the_commands_take_a_recognition_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(tmp_path)))
    out = tmp_path / "rows.json"
    arguments = [
        "compare",
        str(file),
        "--inline",
        "--methods",
        "scratch,kd",
        "--seeds",
        "2",
        "--json",
        str(out),
    ]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(r["method"], r["seed"], r["gap"]) for r in rows] == [
        ("scratch", 0, 2),
        ("scratch", 1, 2),
        ("kd", 0, 2),
        ("kd", 1, 2),
    ]
    assert main(["recipe", "check", str(file)]) == 0 and "task: classification" in capsys.readouterr().out
    assert main(["recipe", "check", str(file), "--schema"]) == 0 and "horkd" in capsys.readouterr().out
    assert main(["recipe", "check", str(file), "--set", "gap=4"]) == 2
    assert "2x2" in capsys.readouterr().err
    assert main(["compare", str(file), "--inline", "--methods", "mtkd"]) == 2
    assert main(["teach", str(file), "--inline", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teachers"]["teacher"]["views"] == 2 and found["shards_written"] == 0


@pytest.mark.slow  # tests/road/test_toy_task.py asks the same of several teachers and their fusion
@pytest.mark.ray
def test_ray_gives_the_inline_engines_weights_and_outputs(tmp_path: Path, ray_local: None) -> None:
    from pipeline.engine.ray_engine import RayEngine

    (inline,) = run(tmp_path / "a").everything(["rkd"], [0]).jobs
    engine = RayEngine()
    (spread,) = run(tmp_path / "b", engine).everything(["rkd"], [0]).jobs
    assert weights(inline) == weights(spread)
    assert hashes(tmp_path / "a/cache/outputs", "*.arrow") == hashes(tmp_path / "b/cache/outputs", "*.arrow")


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_have_the_losses_of_one(tmp_path: Path, ray_local: None) -> None:
    """Of the first step, before Adam has made rounding larger."""
    from pipeline.engine.ray_engine import RayEngine

    alone = {"name": "horkd", "assistant": False, "init": "random"}
    first = {"method": alone, "train": {**BUDGET, "log_every": 1}}
    halves = {"workers": 2, "cpus_per_worker": 1}
    (two,) = run(tmp_path / "b", RayEngine(), distill=halves, **first).everything(["horkd"], [0]).jobs
    (one,) = run(tmp_path / "a", **first).everything(["horkd"], [0]).jobs
    for name in ("loss", "task", "soft", "contrast", "order1", "order2", "order3", "group"):
        a, b = (j.result()["curves"]["student"][f"train/{name}"][0][1] for j in (one, two))  # type: ignore[index]
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7), name
