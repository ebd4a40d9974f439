"""Smaller formats: what each gives with the program that it is for, what it loses, and that a bad one stays home."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import natural_picture
from road_kit import TEACHERS, picture, recipe_file

import students
from pipeline.cli import main
from pipeline.deploy import formats
from pipeline.deploy.export import load_student, save_student
from pipeline.deploy.ncnn_file import NcnnUpscaler
from pipeline.deploy.shipping import LOSSES, Shipped, export_student
from pipeline.deploy.trial import Tile, from_folder, invented, loss
from pipeline.errors import FacultyError, InputError
from pipeline.metrics import psnr_y, quantise
from teachers.onnx_network import OnnxUpscaler

COMPACT = TEACHERS / "compact_x2.safetensors"
"""A trained network that any student's file could be."""
needs_ncnn = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ncnn", "pnnx"))), reason="ncnn and pnnx are not installed"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(6):
        picture(folder / f"{seed}.png", 120, 136, seed)
    return folder


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Shipped:
    out = tmp_path_factory.mktemp("out")
    return export_student(COMPACT, out, formats=("fp16", "int8"), trial=from_folder(pictures, 2))


def test_onnx_formats_give_nearly_the_students_pictures_and_say_what_they_lose(
    shipped: Shipped, pictures: Path
) -> None:
    assert not shipped.missing and {"fp16", "int8"} <= set(shipped.files)
    model, _ = load_student(COMPACT)
    tiles = from_folder(pictures, 2).check
    for kind, least in (("fp16", 60.0), ("int8", 40.0)):
        network = OnnxUpscaler(shipped.files[kind])
        again = loss(network, model, tiles, 2)
        assert again.measured and again.likeness > least
        assert again.db <= shipped.losses[kind].db + 1e-3 <= formats.LIMITS[kind] + 1e-3
        # And on a picture of another size than any that it was made with.
        hr = natural_picture(94, 62, 77)
        lr = torch.from_numpy(natural_picture(47, 31, 77)).permute(2, 0, 1)[None].float() / 255
        assert network(lr).shape == (1, 3, 94, 62) == (1, 3, *hr.shape[:2])


def test_the_files_are_what_they_are_called(shipped: Shipped) -> None:
    plain, half, small = (onnx.load(shipped.files[kind]) for kind in ("onnx", "fp16", "int8"))
    held = {t.data_type for t in half.graph.initializer if np.prod(t.dims) > 8}
    assert held == {onnx.TensorProto.FLOAT16}
    assert half.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    facts = [json.loads(m.metadata_props[0].value) for m in (half, small)]
    assert facts[0] == {"scale": 2, "precision": "float16", "input": "float32"}
    assert facts[1]["precision"] == "int8" and facts[1]["float32_layers"] in (0, 2, 3, 4)
    int8 = [t for t in small.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    convolutions = [n for n in plain.graph.node if n.op_type == "Conv"]
    assert len(int8) == len(convolutions) - facts[1]["float32_layers"]
    sizes = {kind: shipped.files[kind].stat().st_size for kind in ("onnx", "fp16", "int8")}
    assert sizes["fp16"] < 0.6 * sizes["onnx"] and sizes["int8"] < 0.4 * sizes["onnx"]


def test_card_and_sheet_list_each_file_with_size_and_loss(shipped: Shipped) -> None:
    card = shipped.files["card"].read_text()
    for kind in ("safetensors", "onnx", "fp16", "int8"):
        path = shipped.files[kind]
        assert f"| {path.name} | {path.stat().st_size:,} bytes |" in card
    assert shipped.losses["int8"].text in card
    sheet = json.loads(shipped.files["losses"].read_text())
    assert sheet["int8"]["loss_db"] == round(shipped.losses["int8"].db, 4)
    assert sheet["fp16"]["against_hr"] is True and "pictures" in sheet["fp16"]["tried_on"]


def unbalanced(path: Path) -> Path:
    """The trained network with one channel in its middle a thousand times as large, and the next convolution undoing
    it: the same pictures in float32, while eight bits over that range have nothing left for the other channels.
    """
    model, info = load_student(COMPACT)
    expected = model(x := torch.rand(1, 3, 12, 12))
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) >= 7
    with torch.no_grad():
        for i in range(2, len(layers) - 4):
            factor = 1000.0 if i % 2 == 0 else 1.0
            layers[i].weight[0] *= factor
            layers[i].bias[0] *= factor
            layers[i + 1].weight[:, 0] /= factor
        assert torch.allclose(model(x), expected, atol=1e-3)
    save_student(path, model, name=info.architecture, scale=info.scale, options=info.options)
    return path


def test_a_format_beyond_its_limit_is_left_out_with_its_loss(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    file = unbalanced(tmp_path / "bad.safetensors")
    out = tmp_path / "out"
    asked = ["--formats", "int8", "fp16", "--calibrate", str(pictures), "--json", str(tmp_path / "j.json")]
    assert main(["export", str(file), str(out), *asked]) == 1
    said = capsys.readouterr()
    assert "leaves without INT8: +" in said.err and "allowed: 0.3 dB" in said.err
    assert not list(out.glob("*int8*")) and (out / "compact_x2.onnx").is_file()
    result = json.loads((tmp_path / "j.json").read_text())
    assert set(result["missing"]) == {"int8"} and "int8" not in result["losses"]
    assert "int8" not in json.loads((out / LOSSES).read_text())
    assert "int8" not in (out / "README.md").read_text()


def test_values_beyond_float16_are_found_where_onnx_runtime_computes_in_float32(tmp_path: Path) -> None:
    """Activations near 10^6: infinite in float16, and ONNX Runtime's CPU would not have told."""
    model, info = load_student(COMPACT)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        layers[2].weight *= 1000
        layers[2].bias *= 1000
        layers[3].weight *= 1000
        layers[3].bias *= 1e6
        layers[4].weight /= 1e6
    save_student(
        tmp_path / "s.safetensors", model, name=info.architecture, scale=info.scale, options=info.options
    )
    made = export_student(tmp_path / "s.safetensors", tmp_path / "out", formats=("fp16",))
    assert set(made.missing) == {"fp16"} and not list((tmp_path / "out").glob("*fp16*"))


def test_int8_without_pictures_says_how_to_name_some(tmp_path: Path) -> None:
    made = export_student(COMPACT, tmp_path, formats=("int8", "fp16"))
    assert set(made.missing) == {"int8"} and "--calibrate FOLDER" in made.missing["int8"]
    assert not made.losses["fp16"].measured and "1/f" in (tmp_path / "README.md").read_text()


def test_bad_wishes_are_one_clear_error(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture
) -> None:
    lone = tmp_path / "one"
    lone.mkdir()
    shutil.copy(pictures / "0.png", lone)
    for arguments, told in (
        (["--formats", "int4"], "--formats: expected some of fp16, int8, ncnn, found 'int4'"),
        (["--calibrate", str(pictures)], "--calibrate: expected --formats with it"),
        (["--formats", "int8", "--calibrate", str(lone)], "at least two HR pictures, found 1"),
        (["--formats", "int8", "--calibrate", str(tmp_path / "no")], "nothing there"),
    ):
        assert main(["export", str(COMPACT), str(tmp_path / "out"), *arguments]) == 2
        assert told in capsys.readouterr().err


def test_the_loss_is_that_of_the_tables_psnr() -> None:
    generator = np.random.default_rng(3)
    hr = natural_picture(64, 48, 5)
    tile = Tile(natural_picture(32, 24, 5), hr)
    exact = torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255
    noise = [torch.from_numpy(generator.normal(0, s, exact.shape)).float() for s in (0.02, 0.03)]
    found = loss(lambda _: exact + noise[1], lambda _: exact + noise[0], (tile,), 2)
    ours, theirs = (psnr_y(quantise(exact + n)[0], hr, 2) for n in noise)
    assert found.measured and found.db == pytest.approx(ours - theirs, abs=1e-6)
    difference = ((exact + noise[1]).clamp(0, 1) - (exact + noise[0]).clamp(0, 1)).square().mean()
    assert found.likeness == pytest.approx(-10 * np.log10(difference.item()), abs=1e-3)
    # Of two pictures the mean of both differences, not the one of their mean error: the flat one counts as much.
    flat = Tile(np.full((32, 24, 3), 99, np.uint8), np.full((64, 48, 3), 99, np.uint8))
    level = torch.full_like(exact, 99 / 255)

    def shifted(by: float, noisy: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: level + by if x.max() == x.min() else exact + noisy

    both = loss(shifted(4 / 255, noise[1]), shifted(1 / 255, noise[0]), (tile, flat), 2)
    assert both.db == pytest.approx((found.db + 20 * np.log10(4)) / 2, abs=1e-2)
    # Without HR: what that error costs on top of one of 35 dB.
    guess = loss(lambda _: exact + noise[1], lambda _: exact + noise[0], (Tile(tile.lr),), 2)
    expected = 10 * np.log10((10**-3.5 + difference.item()) / 10**-3.5)
    assert not guess.measured and guess.db == pytest.approx(expected, abs=1e-3)
    with pytest.raises(FacultyError, match="not finite"):
        loss(lambda _: exact / 0, lambda _: exact, (tile,), 2)
    with pytest.raises(FacultyError, match="came back instead of"):
        loss(lambda _: exact[..., 1:], lambda _: exact, (tile,), 2)


def test_invented_pictures_are_always_the_same_and_look_like_photographs() -> None:
    first, again = invented(), invented()
    assert all(np.array_equal(a.lr, b.lr) for a, b in zip(first.check, again.check))
    for tile in first.check:  # neighbours go together, as white noise's do not
        values = tile.lr[..., 1].astype(float)
        assert np.corrcoef(values[:, 1:].ravel(), values[:, :-1].ravel())[0, 1] > 0.5


@needs_ncnn
@pytest.mark.parametrize(
    ("name", "scale", "options"),
    [
        ("compact", 2, {"features": 8, "convolutions": 2}),
        ("fsrcnn", 3, {"d": 8, "s": 4, "m": 1, "head": "pixelshuffle"}),
        ("fsrcnn", 2, {"d": 8, "s": 4, "m": 1, "colours": 1}),
        ("fsrcnn", 4, {"d": 8, "s": 4, "m": 1, "skip": "bilinear"}),
        ("idn", 2, {"features": 16, "blocks": 1}),
        ("vdsr", 3, {"features": 8, "depth": 3}),
    ],
)
def test_ncnns_runtime_gives_the_students_pictures(
    tmp_path: Path, name: str, scale: int, options: dict, pictures: Path
) -> None:
    """Borders too: bicubic enlargement is not ncnn's but convolutions."""
    torch.manual_seed(0)
    known = students.options(name)
    model = students.build(name, scale, **{k: v for k, v in options.items() if k in known}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.02 * torch.randn_like(p)
    path = tmp_path / "s.param"
    found = formats.write_format("ncnn", model, path, scale, from_folder(pictures, scale), None)
    assert found.measured and found.likeness > 55 and path.with_suffix(".bin").is_file()
    network = NcnnUpscaler(path, threads=2)
    assert network.scale == scale
    lr = torch.rand(2, 19, 27, 3).permute(0, 3, 1, 2)  # in memory as pictures are
    with torch.no_grad():
        assert (network(lr) - model(lr)).abs().max() < 5e-3


@needs_ncnn
def test_a_network_that_ncnn_cannot_hold_is_missing_and_the_process_lives(tmp_path: Path) -> None:
    options = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4}
    known = students.options("swinir_light")
    options = {k: v for k, v in options.items() if k in known}
    model = students.build("swinir_light", 2, **options)
    save_student(tmp_path / "s.safetensors", model, name="swinir_light", scale=2, options=options)
    made = export_student(tmp_path / "s.safetensors", tmp_path / "out", formats=("ncnn",))
    assert "a network of layers that ncnn has" in made.missing["ncnn"]
    assert not list((tmp_path / "out").glob("*.param")) and not list((tmp_path / "out").glob("*.bin"))


def test_without_ncnn_the_others_ship_and_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)  # as Python marks what cannot be imported
    monkeypatch.setitem(sys.modules, "pnnx", None)
    made = export_student(COMPACT, tmp_path, formats=("ncnn", "fp16"))
    assert "pip install 'faculty[ncnn]'" in made.missing["ncnn"] and "fp16" in made.files


@needs_ncnn
def test_foreign_ncnn_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.param"
    with pytest.raises(InputError, match=r"no s\.param"):
        NcnnUpscaler(path)
    path.write_text("7767517\n2 2\nInput in0 0 1 in0\npnnx.Expression e 1 1 in0 out0\n")
    with pytest.raises(InputError, match=r"no s\.bin"):
        NcnnUpscaler(path)
    path.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pnnx\.Expression too"):
        NcnnUpscaler(path)
    path.write_text("something else")
    with pytest.raises(InputError, match="ncnn's text format"):
        NcnnUpscaler(path)


def test_a_run_ships_what_its_recipe_asks_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 104, seed)
    changes = {
        "method": {"name": "scratch"},
        "teachers": [],
        "student": {"name": "compact", "options": {"features": 8}},
        "compare": {"methods": []},
        "train": {"steps": 1, "batch": 2, "evaluate_every": 1},
    }
    assert main(["run", str(recipe_file(tmp_path, **changes)), "--inline"]) == 0
    (folder,) = (tmp_path / "runs" / "r" / "students").iterdir()
    assert not list(folder.glob("*fp16*"))
    training = (folder / "stamp.json").read_text()
    file = recipe_file(tmp_path, **changes, export={"formats": ["fp16", "int8"]})
    capsys.readouterr()
    assert main(["run", str(file), "--inline"]) == 0
    said = capsys.readouterr()
    assert "1/1 steps" not in said.err  # no training of before is made again
    assert (folder / "stamp.json").read_text() != training
    sheet = json.loads((folder / LOSSES).read_text())
    assert sheet["fp16"]["against_hr"] is True and sheet["fp16"]["tried_on"] == "held-out tiles"
    report = (tmp_path / "runs" / "r" / "report" / "report.md").read_text()
    line = next(x for x in report.splitlines() if "fp16.onnx" in x)
    assert line.endswith(r" dB lost on held-out tiles)") and "B, " in line
    assert len([x for x in said.out.splitlines() if "students/" in x]) == 1
