"""What of a recognition recipe shapes its networks: names, identities and fingerprints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recognition_kit import BUDGET, content, recipe, run
from safetensors.torch import save_file

from pipeline.cache.order import step_seed
from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.recipe.reading import checked
from pipeline.road.results import finish
from pipeline.steps.job import located
from pipeline.tasks.recognition.classification import Classification
from pipeline.tasks.recognition.ensemble import principal
from pipeline.tasks.recognition.recipe import Network, Recognition
from pipeline.tasks.recognition.teachers import imported


def checkpoint(path: Path, options: dict[str, Any], name: str = "resnet8") -> str:
    torch.manual_seed(0)
    network = Network(name=name, options=options, embedding=12)
    save_file(Classification().build(network, (8, 8), 10).state_dict(), path)
    return str(path)


def test_teachers_are_called_the_same_after_a_round_trip(tmp_path: Path) -> None:
    """A recipe travels to workers as plain values."""
    both = [{"checkpoint": str(tmp_path / f"{name}.onnx")} for name in "ab"]
    given = {
        "teacher": None,
        "teachers": both,
        "fusion": {"kind": "weighted", "weights": {"a": 1.0, "b": 2.0}},
    }
    base = {k: v for k, v in content(tmp_path, **given).items() if v is not None}
    settings = Recognition.model_validate(base)
    assert [t.label for t in settings.teachers] == ["a", "b"]
    again = Recognition.model_validate(located(settings))
    assert [t.label for t in again.teachers] == ["a", "b"]
    assert [t.label for t in checked(Recognition, again.model_dump(mode="json"), "again").teachers] == [
        "a",
        "b",
    ]


def test_a_teacher_may_be_named_by_its_label_where_it_is_the_only_one(tmp_path: Path) -> None:
    for name in ("teacher", "resnet8", "fused"):
        method = {"name": "kd", "teacher": name}
        assert run(tmp_path, method=method).everything(["kd"], [0]).jobs[0].result() is not None
    with pytest.raises(InputError, match="method.teacher: expected one of fused, resnet8, found 'other'"):
        run(tmp_path, method={"name": "kd", "teacher": "other"}).everything(["kd"], [0])


def test_the_options_that_a_file_is_read_with_are_part_of_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    file = checkpoint(tmp_path / "net.safetensors", {}, "resnet10t")
    found = {}
    for options in ({}, {"act_layer": "silu"}):
        network = {"name": "resnet10t", "options": options, "embedding": 12}
        road = run(tmp_path, teacher={"network": network, "checkpoint": file, "train": None})
        prepared = road.prepare(["kd"])
        source = imported(
            road.task, road.recipe, road.recipe.teacher, prepared.samples, Store.open(tmp_path / "cache")
        )
        with torch.no_grad():
            answers = source.open(str(tmp_path / "cache"), "cpu")(torch.ones(1, 3, 8, 8))["logits"]
        found[source.identity] = answers.flatten().tolist()
    assert len(found) == 2 and len({tuple(v) for v in found.values()}) == 2


def test_maps_of_other_widths_meet_in_an_adapter(tmp_path: Path) -> None:
    """The teacher's have 32 channels, the student's 16."""
    road = run(tmp_path, method={"name": "rkd", "map": 1.0}, cache={"features": "map"})
    (job,) = road.everything(["rkd"], [0]).jobs
    assert job.result()["curves"]["student"]["train/map"][-1][1] > 0  # type: ignore[index]
    phase = job.phases("cpu")[0]({})
    assert phase.modules["map_adapter"].weight.shape == (32, 16, 1, 1)


def test_fewer_pictures_than_components_keep_those_that_there_are() -> None:
    few = torch.randn(6, 12)
    assert principal(few, 8)[1].shape == (12, 6)


def test_how_often_one_looks_at_an_assistant_trains_nothing_again(tmp_path: Path) -> None:
    def student(**looks: int) -> str:
        method = {"name": "horkd", "assistant_train": {**BUDGET, **looks}}
        (job,) = run(tmp_path, method=method).everything(["horkd"], [0]).jobs
        return job.fingerprint

    first = student()
    assert first == student(log_every=2, evaluate_every=6, keep=1)
    assert first != student(steps=4)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "(batch, 3, 4, 4); LR of HR x2 by bicubic (MATLAB)"),
        ({"lr": "average"}, "(batch, 3, 4, 4); LR of HR x2 by mean of gap x gap pixels"),
        (
            {"input": "enlarged"},
            "(batch, 3, 8, 8); LR of HR x2 by bicubic (MATLAB), enlarged to HR's size (bicubic)",
        ),
        ({"gap": 1}, "(batch, 3, 8, 8), as it is"),
    ],
)
def test_a_students_page_says_what_it_is_given(tmp_path: Path, changes: dict, line: str) -> None:
    road = run(tmp_path, method={"name": "scratch"}, **changes)
    (made,) = finish(road, road.everything(["scratch"], [0]), []).students.values()
    assert f"RGB, float in [0, 1], {line} |" in Path(made["safetensors"]).with_name("README.md").read_text()


def test_any_seed_trains(tmp_path: Path) -> None:
    """Dates are popular; 40 bits further they are no seeds of torch."""
    seed = 20_261_128
    (job,) = run(tmp_path, method={"name": "scratch"}, seed=seed).everything(["scratch"], [seed]).jobs
    assert job.result() is not None
    assert step_seed(3, 5, 1) == (3 << 40) + (5 << 10) + 1
    drawn = {
        step_seed(s, step, rank)
        for s in (0, 1, 1 << 24, seed, 2**62 - 1)
        for step in (0, 9)
        for rank in (0, 1)
    }
    assert len(drawn) == 20 and max(drawn) < 2**64
    assert recipe(tmp_path, seed=seed).seed == seed
