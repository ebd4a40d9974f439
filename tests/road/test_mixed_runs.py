"""Whole runs with mixed pictures: every method, resumed, online, over two workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recognition_kit import BUDGET, EVERY_TERM, content, figures
from road_kit import weights

from pipeline.cache.manifest import load
from pipeline.cache.store import Store
from pipeline.progress import Quiet
from pipeline.road.results import compare_rows, finish, table
from pipeline.road.run import Run
from pipeline.steps.engines import InlineEngine
from pipeline.steps.job import Listener
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.showing import told

ALL = ["scratch", "kd", "rkd", "horkd"]
MIXING = {"mixup": 0.2, "cutmix": 1.0, "share": 0.8}


def run(root: Path, engine: Any = None, **changes: Any) -> Run:
    recipe = Recognition.model_validate(content(root, **changes))
    return Run(recipe, engine or InlineEngine("cpu"), Quiet())


def test_every_method_trains_on_mixed_pictures_with_the_teachers_of_before(tmp_path: Path) -> None:
    settings = {"method": EVERY_TERM, "compare": {"settings": {"kd": {"logits": "standardised"}}}}
    plain = {job.method: job for job in run(tmp_path, **settings).everything(ALL, [0]).jobs}
    kept = sorted(p.name for p in (tmp_path / "cache/networks").iterdir())
    mixed = {job.method: job for job in run(tmp_path, mixing=MIXING, **settings).everything(ALL, [0]).jobs}
    assert sorted(p.name for p in (tmp_path / "cache/networks").iterdir()) == kept  # teacher, assistant
    for method in ALL:
        assert mixed[method].fingerprint != plain[method].fingerprint
        one, two = (j[method].result()["curves"]["student"] for j in (plain, mixed))  # type: ignore[index]
        assert one.keys() == two.keys()
        for term in one:
            if term.startswith("train/"):
                assert one[term] != two[term], (method, term)
        assert mixed[method].params()["mixing"]["mixup"] == 0.2 and "mixing" not in plain[method].params()


def test_a_training_on_mixed_pictures_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(values: dict[str, float], step: int) -> None:
        raise Stop

    (whole,) = run(tmp_path, mixing=MIXING).everything(["rkd"], [0]).jobs
    halted = run(tmp_path, mixing=MIXING, output=str(tmp_path / "other"))
    job = halted.student(halted.prepare(["rkd"]), "rkd", 2, 0)
    with pytest.raises(Stop):
        job.run(listener=Listener(sync=stop))
    assert job.result() is None
    job.run()
    assert weights(job) == weights(whole)
    assert job.result()["curves"] == whole.result()["curves"]  # type: ignore[index]


def test_an_online_teacher_sees_the_mixed_pictures_themselves(tmp_path: Path) -> None:
    (cached,) = run(tmp_path, mixing=MIXING).everything(["kd"], [0]).jobs
    (online,) = run(tmp_path, mixing=MIXING, cache={"online": True}).everything(["kd"], [0]).jobs
    one, two = (j.result()["curves"]["student"] for j in (cached, online))  # type: ignore[index]
    assert one["train/task"][0][1] == pytest.approx(
        two["train/task"][0][1], rel=0.05
    )  # the same pictures and labels
    assert told(online.spec) == {"mixing": "mixup 0.2 and cutmix 1, 80% of the pictures"}
    assert one["train/soft"][0][1] != pytest.approx(two["train/soft"][0][1], rel=2e-3)


def test_students_are_scored_under_each_degradation_and_teachers_are_not(tmp_path: Path) -> None:
    plain = run(tmp_path)
    (before,) = plain.everything(["kd"], [0]).jobs
    road = run(tmp_path, lr=["bicubic", "average", "blur_noise"])
    outcome = road.everything(["kd"], [0])
    page = Path(finish(road, outcome, []).report).read_text()
    assert "bicubic (MATLAB), mean of gap x gap pixels, Gaussian blur and noise; of the same view" in page
    (job,) = outcome.jobs
    assert job.fingerprint != before.fingerprint and job.params()["lr"][2] == "blur_noise"
    keys = {"accuracy_average", "accuracy_blur_noise"}
    found = figures(outcome, job.label)
    assert keys <= set(found) and all(0 <= found[key] <= 1 for key in keys)
    assert not keys & set(figures(outcome, "teacher"))
    assert "accuracy, blur_noise" in table(outcome) and keys <= set(compare_rows(outcome)[0])

    # The figure is that of a recipe whose tests are made so.
    other = Recognition.model_validate({**job.recipe, "lr": "blur_noise"})
    gallery = Gallery(
        Store.open(other.cache.root),
        load(Store.open(other.cache.root), outcome.prepared.samples.path("test")),
    )
    net = job.source().load(road.output)
    assert found["accuracy_blur_noise"] == job.task.scores(net, gallery, other, 2, "cpu")[0]["accuracy"]
    watched = job.result()["curves"]["student"]  # type: ignore[index]
    assert "held_out/accuracy" in watched and not any("blur" in name for name in watched)

    # A student of one degradation may be scored under the others too, and is the same student.
    road = run(tmp_path, lr_scored=["blur_noise"])
    outcome = road.everything(["kd"], [0])
    (same,) = outcome.jobs
    assert same.fingerprint == before.fingerprint
    found = figures(outcome, same.label)
    assert "accuracy_average" not in found and "accuracy, blur_noise" in table(outcome)
    net = same.source().load(road.output)
    assert found["accuracy_blur_noise"] == same.task.scores(net, gallery, other, 2, "cpu")[0]["accuracy"]


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_have_the_losses_of_one_on_mixed_pictures(tmp_path: Path, ray_local: None) -> None:
    """Of the first step, before Adam has made rounding larger."""
    from pipeline.engine.ray_engine import RayEngine

    alone = {"name": "horkd", "assistant": False, "init": "random"}
    first = {"method": alone, "mixing": MIXING, "train": {**BUDGET, "log_every": 1}}
    halves = {"workers": 2, "cpus_per_worker": 1}
    (two,) = run(tmp_path / "b", RayEngine(), distill=halves, **first).everything(["horkd"], [0]).jobs
    (one,) = run(tmp_path / "a", **first).everything(["horkd"], [0]).jobs
    for name in ("loss", "task", "soft", "contrast", "order1", "order2", "order3", "group"):
        a, b = (j.result()["curves"]["student"][f"train/{name}"][0][1] for j in (one, two))  # type: ignore[index]
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7), name
