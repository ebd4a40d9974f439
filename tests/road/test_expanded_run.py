"""Runs whose students train over-parameterised: what is trained, what is kept, and what leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from road_kit import Road, Untouchable, picture, recipe, recipe_file, weights
from safetensors.torch import load, load_file

import students
from pipeline.cache.store import Store
from pipeline.cli import main
from pipeline.deploy.export import load_student
from pipeline.deploy.onnx_file import onnx_session
from pipeline.deploy.upscale import open_network
from pipeline.errors import InputError
from pipeline.methods.pisr import TEACHER
from pipeline.methods.taps import find
from pipeline.recipe.recipe import Recipe
from pipeline.tasks.super_resolution.training import job_fingerprint
from pipeline.training import checkpoint
from students.expansion import merged
from teachers.spandrel_import import import_spandrel

COMPACT = {"name": "compact", "options": {"features": 8, "convs": 2}}
FSRCNN = {"name": "fsrcnn", "options": {"d": 8, "s": 4, "m": 1}}
SPAN = {"name": "span", "options": {"features": 8}}
SCRATCH = {"teachers": [], "method": {"name": "scratch"}, "compare": {"methods": []}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("expanded")
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return root


def settings(root: Path, student: dict[str, Any], expand: int = 3, **changes: Any) -> Recipe:
    return recipe(root, **{**SCRATCH, "student": {**student, "expand": expand}, **changes})


def test_what_leaves_is_the_plain_network_in_every_format(place: Path, tmp_path: Path) -> None:
    changes = {**SCRATCH, "output": str(tmp_path / "runs"), "student": {**COMPACT, "expand": 3}}
    changes["data"] = {"test": [str(place / "pictures")]}
    file = recipe_file(place, **changes)
    assert main(["run", str(file), "--inline"]) == 0
    (folder,) = (tmp_path / "runs" / "r" / "students").iterdir()
    plain = students.build("compact", 2, **COMPACT["options"])
    shipped, info = load_student(next(folder.glob("*.safetensors")))
    assert info.options == COMPACT["options"] and info.facts["expand"] == 3
    assert {k: v.shape for k, v in shipped.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    assert sorted(load_file(next(folder.glob("*.safetensors")))) == sorted(plain.state_dict())
    x = torch.rand(1, 3, 13, 17)
    with torch.no_grad():
        expected = shipped(x)
    onnx = onnx_session(next(folder.glob("*.onnx")).read_bytes())(x)[0]
    state = torch.load(next(folder.glob("*.pth")), weights_only=True)
    descriptor = import_spandrel().MAIN_REGISTRY.load(state.get("params", state))
    assert descriptor.architecture.id == "Compact"
    with torch.no_grad():
        opened, scale = open_network(next(folder.glob("*.pth")))
        assert scale == 2 and torch.allclose(opened(x), expected.clamp(0, 1), atol=1e-5)
    assert np.abs(onnx.numpy() - expected.numpy()).max() < 1e-5
    card = (folder / "README.md").read_text()
    assert f"| parameters | {sum(p.numel() for p in plain.parameters()):,} |" in card
    assert "| expand | 3 |" in card
    report = (tmp_path / "runs" / "r" / "report" / "report.md").read_text()
    assert "| scratch-compact | 2.29 k |" in report


@pytest.mark.parametrize("student", [COMPACT, FSRCNN, SPAN], ids=lambda s: s["name"])
def test_a_run_stopped_goes_on_to_the_same_weights_which_are_those_of_the_plain_network(
    place: Path, tmp_path: Path, student: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, (whole,) = Road(settings(place, student, output=str(tmp_path / "whole"))).distill()
    save = checkpoint.save

    def stop(folder: Any, step: int, *args: Any, **more: Any) -> None:
        save(folder, step, *args, **more)
        raise KeyboardInterrupt

    stopped = settings(place, student, output=str(tmp_path / "stopped"))
    monkeypatch.setattr(checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        Road(stopped).distill()
    monkeypatch.setattr(checkpoint, "save", save)
    *_, (resumed,) = Road(stopped).distill()
    assert weights(resumed) == weights(whole)
    network = students.build(student["name"], 2, **student["options"])
    network.load_state_dict(load(whole.output().read_bytes("weights.safetensors")))
    # the last checkpoint holds the factors, whose averages multiply to what was written
    _, state = checkpoint.load_latest(
        Store.open(whole.output().where("0-distill")), fingerprint=whole.fingerprint
    )
    assert any("parametrizations" in key for key in state["modules"]["student"])
    trained = _trained(whole, {})
    trained.load_state_dict(state["ema"])
    for key, value in merged(trained).items():
        assert torch.equal(value, network.state_dict()[key])


def _trained(job: Any, given: dict) -> torch.nn.Module:
    """The network with which a job's last phase starts."""
    torch.manual_seed(job.seed)
    phase = job.phases("cpu")[-1]({**job.given("cpu"), **given})
    return phase.modules[phase.artefact]


def test_evaluations_and_the_table_see_one_network(place: Path, tmp_path: Path) -> None:
    """The held-out figure of the factors is that of the weights that leave."""
    road = Road(settings(place, FSRCNN, output=str(tmp_path / "runs")))
    *_, (job,) = road.distill()
    (phase,) = [make({}) for make in job.phases("cpu")]
    network = students.build("fsrcnn", 2, **FSRCNN["options"])
    network.load_state_dict(load(job.output().read_bytes("weights.safetensors")))
    values, _ = job.judge(phase, "cpu")(network.eval())
    step, figure = job.result()["curves"]["distill"]["held_out/psnr_y"][-1]
    assert step == 6 and values["held_out/psnr_y"] == pytest.approx(figure, abs=1e-3)


def test_pisr_starts_as_the_plain_teachers_decoder_and_follows_its_layer(place: Path, tmp_path: Path) -> None:
    changes = {"method": {"name": "pisr"}, "output": str(tmp_path / "runs")}
    luma = {**FSRCNN, "options": {**FSRCNN["options"], "colours": 1}}
    *_, (plain,) = Road(settings(place, luma, expand=1, **changes)).distill()
    *_, (job,) = Road(settings(place, luma, **changes)).distill()
    assert job.taught_by == plain.taught_by  # the teacher is as it was, and trained once
    start, decoder = _trained(job, {}), job.given("cpu")[TEACHER].decoder
    for key, value in merged(start).items():
        torch.testing.assert_close(value, decoder.state_dict()[key], rtol=0, atol=1e-6)
    assert find(start, "expanding")._forward_hooks
    assert {"train/hr", "train/vid"} <= set(job.result()["curves"]["distill"])
    assert {k: len(v) for k, v in weights(job).items()} == {k: len(v) for k, v in weights(plain).items()}


def test_only_what_trains_expanded_has_another_name(place: Path) -> None:
    def name(role: str = "student", **student: Any) -> str:
        made = recipe(place, student={**FSRCNN, **student}, method={"name": "pisr"})
        return job_fingerprint(made, role, 0, {})

    assert name() == name(expand=1) != name(expand=2) != name(expand=3)
    assert name("teacher") == name("teacher", expand=3)
    assert "expand" not in recipe(place).model_dump()["student"]
    assert recipe(place, student={**FSRCNN, "expand": 3}).model_dump()["student"]["expand"] == 3


@pytest.mark.parametrize("value", [0, -1, 1.5, "wide"])
def test_a_width_is_a_whole_number(place: Path, value: Any) -> None:
    with pytest.raises(ValueError, match=r"student\.expand"):
        recipe(place, student={**FSRCNN, "expand": value})


def test_a_student_without_convolutions_is_refused_before_anything_starts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.tasks.super_resolution.checks.build", lambda *_, **__: torch.nn.Linear(3, 3)
    )
    road = Road(settings(place, FSRCNN, output=str(tmp_path / "runs")), Untouchable())
    with pytest.raises(InputError, match=r"student\.expand") as caught:
        road.run.check(["scratch"])
    assert "nn.Conv2d" in str(caught.value)
