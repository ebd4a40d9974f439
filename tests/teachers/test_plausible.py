"""What the gate says leads somewhere: each key and option that its words name is set, and the right figures follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from road_kit import TEACHERS, Road, picture, recipe, recipe_file
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.recipe.recipe import TeacherSpec
from teachers.gate import check
from teachers.loading import load_teacher

ONNX_255 = "cases/onnx_out255.onnx"
RANGE = "expected a network of values in 0..1, found one of 0..255"
KEY = "Set `value_range: 255` on this teacher (`--value-range 255` on the command line)"


@pytest.fixture
def scaled(tmp_path: Path) -> Path:
    """The demo's compact network for values of 0..255: its layers are homogeneous but for their biases."""
    source = TEACHERS / "compact_x2.safetensors"
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    state = {k: v * 255.0 if k.endswith("bias") else v for k, v in load_file(source).items()}
    save_file(state, tmp_path / "scaled.safetensors", metadata)
    return tmp_path / "scaled.safetensors"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Four small pictures."""
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return tmp_path


def with_teacher(place: Path, file: Path, **keys: object) -> dict[str, object]:
    return {"teachers": [{"checkpoint": str(file), "name": "t", "precision": "fp32", **keys}]}


def psnr(place: Path, file: Path, *options: str) -> float:
    out = place / "scores.json"
    data = ["--data", str(place / "pictures"), "--scale", "2", "--device", "cpu"]
    assert main(["evaluate", "--model", str(file), *data, "--json", str(out), *options]) == 0
    return float(json.loads(out.read_text())["sets"]["pictures"]["psnr_y"])


def test_a_run_refuses_another_range_and_the_key_it_names_mends_it(place: Path, scaled: Path) -> None:
    with pytest.raises(InputError, match="value_range: 255") as caught:
        Road(recipe(place, **with_teacher(place, scaled))).teach()
    assert RANGE in str(caught.value) and KEY in str(caught.value)
    mended = Road(recipe(place, **with_teacher(place, scaled, value_range=255)))
    _, (taught,) = mended.teach()
    assert mended.warnings == []
    good = Road(recipe(place, **with_teacher(place, TEACHERS / "compact_x2.safetensors")))
    _, (right,) = good.teach()
    assert taught.quality == pytest.approx(right.quality, abs=0.01)


def test_gate_warn_goes_on_and_the_warning_stands_in_the_report(
    place: Path, scaled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = recipe_file(place, **with_teacher(place, scaled, gate="warn"))
    assert main(["run", str(file), "--inline"]) == 0
    assert f"teacher t (compact x2): {RANGE}" in " ".join(capsys.readouterr().err.split())
    assert RANGE in (place / "runs/r/report/report.md").read_text()
    again = Road(recipe(place, **with_teacher(place, scaled, gate="warn")))
    again.teach()  # from what the cache knows
    (warning,) = again.warnings
    assert warning.startswith(f"teacher t (compact x2): {RANGE}") and "`gate: warn`" in warning
    with pytest.raises(InputError, match="value_range: 255"):
        Road(recipe(place, **with_teacher(place, scaled))).teach()


def test_gate_off_says_nothing(place: Path, scaled: Path) -> None:
    road = Road(recipe(place, **with_teacher(place, scaled, gate="off")))
    _, (taught,) = road.teach()
    assert road.warnings == [] and taught.rows > 0


def test_readings_have_caches_of_their_own_and_defaults_none(place: Path) -> None:
    file = TEACHERS / "compact_x2.safetensors"
    default = recipe(place, **with_teacher(place, file))
    assert set(default.model_dump(mode="json")["teachers"][0]) == {"checkpoint", "name", "precision"}
    told = recipe(place, **with_teacher(place, file, channels="bgr", value_range=1, gate="warn"))
    dumped = told.model_dump(mode="json")
    assert (
        dumped["teachers"][0] | {"channels": "bgr", "value_range": 1, "gate": "warn"} == dumped["teachers"][0]
    )
    assert type(told).model_validate(dumped) == told  # what workers are given
    _, (plain,) = Road(default).teach()
    (record,) = (place / "cache/teachers").iterdir()
    assert record.name.endswith("-x2-fp32-cpu.json")
    assert not {"reading", "findings"} & set(json.loads(record.read_text()))
    _, (known,) = Road(recipe(place, **with_teacher(place, file, channels="rgb", value_range=1))).teach()
    assert known.cached.folder == plain.cached.folder  # what the loader knows, said once more
    _, (other,) = Road(told).teach()
    assert other.cached.folder != plain.cached.folder and other.network.reading == {"bgr": True}


@pytest.mark.parametrize("wrong", [{"gate": "perceptual"}, {"channels": "gbr"}, {"value_range": 2}])
def test_other_values_of_the_keys_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TeacherSpec.model_validate({"checkpoint": "x.pth", **wrong})


def test_evaluate_warns_with_a_run_s_words_and_the_option_mends_it(
    place: Path, scaled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = psnr(place, TEACHERS / "compact_x2.safetensors")
    assert "warning" not in capsys.readouterr().err
    assert psnr(place, scaled) < right - 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"warning: teacher scaled (compact x2): {RANGE}" in said and KEY in said
    assert psnr(place, scaled, "--value-range", "255") == pytest.approx(right, abs=0.01)
    assert "warning" not in capsys.readouterr().err


def test_upscale_warns_with_the_same_words_and_the_option_mends_it(
    place: Path, scaled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def large(file: Path, *options: str) -> np.ndarray:
        source = str(place / "pictures/a.png")
        assert main(["upscale", source, str(place / "large.png"), "--student", str(file), *options]) == 0
        with Image.open(place / "large.png") as opened:
            return np.asarray(opened).astype(int)

    right = large(TEACHERS / "compact_x2.safetensors")
    assert "warning" not in capsys.readouterr().err
    large(scaled)
    said = " ".join(capsys.readouterr().err.split())
    assert RANGE in said and KEY in said
    assert abs(large(scaled, "--value-range", "255") - right).max() <= 1
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "upscale"])
def test_a_graph_that_gives_0_to_255_is_warned_of(
    shared: Path, place: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = str(shared / ONNX_255)
    if command == "evaluate":
        psnr(place, Path(graph))
    else:
        assert main(["upscale", str(place / "pictures"), str(place / "out"), "--student", graph]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert f"{RANGE} in its output alone" in said and "Export it again with its output divided by 255" in said


def test_a_graph_that_gives_0_to_1_is_not(
    shared: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = str(shared / "cases/onnx_nearest2.onnx")
    assert main(["upscale", str(place / "pictures"), str(place / "out"), "--student", graph]) == 0
    assert "warning" not in capsys.readouterr().err


def rescaled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k: v * 255.0 if k.endswith("bias") else v for k, v in state.items()}


def exchanged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """IMDN x2 with blue first, in and out."""
    first, last = "fea_conv.weight", "upsampler.0."
    swapped = {
        k: v.unflatten(0, (3, 4)).flip(0).flatten(0, 1) for k, v in state.items() if k.startswith(last)
    }
    return {**state, first: state[first].flip(1), **swapped}


CASES = [
    ("imdn_x2.pth", exchanged, "channels: bgr", {"bgr": True}),
    ("realworld/animejanai_v3_compact_x2.pth", rescaled, "value_range: 255", {"value_range": 255.0}),
]


@pytest.mark.parametrize(("file", "change", "key", "reading"), CASES)
def test_altered_networks_are_named_and_as_good_as_before_in_that_reading(
    shared: Path, tmp_path: Path, file: str, change: Callable, key: str, reading: dict[str, object]
) -> None:
    good = load_teacher(shared / "weights" / file, scale=2)
    state = torch.load(shared / "weights" / file, map_location="cpu", weights_only=True)
    state = {k.removeprefix("module."): v for k, v in state.get("params", state).items()}
    torch.save(change(state), tmp_path / "altered.pth")
    altered = load_teacher(tmp_path / "altered.pth", scale=2)
    (finding,) = check(altered)
    assert f"Set `{key}` on this teacher" in finding.remedy
    mended = altered.with_convention(**reading)
    assert check(mended) == []
    x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mended(x).clamp(0, 1), good(x).clamp(0, 1), atol=2e-4, rtol=0)


@pytest.mark.slow
def test_the_reading_reaches_ray_s_actors(ray_local: None, place: Path, scaled: Path) -> None:
    from pipeline.engine.ray_engine import RayEngine

    _, (inline,) = Road(recipe(place, **with_teacher(place, TEACHERS / "compact_x2.safetensors"))).teach()
    road = Road(recipe(place, **with_teacher(place, scaled, value_range=255)), RayEngine())
    _, (taught,) = road.teach()
    assert road.warnings == [] and taught.quality == pytest.approx(inline.quality, abs=0.01)
    road = Road(recipe(place, **with_teacher(place, scaled, gate="warn", precision="auto")), RayEngine())
    road.teach()
    assert RANGE in road.warnings[0]  # through a Ray task and back
