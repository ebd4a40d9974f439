"""ONNX files as people have them: of one batch, of a fixed size, of sides in multiples, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch.nn import functional as F

from pipeline.cli import main
from pipeline.errors import InputError
from teachers.onnx_network import OnnxUpscaler


def graph(
    path: Path,
    shape: list[Any],
    *,
    multiple: int = 1,
    inputs: int = 1,
    operator: str = "Resize",
    half: bool = False,
) -> Path:
    """A nearest x2 with that input shape; with a `multiple`, sides are folded by it and unfolded again."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes, name = [], "in"
    if multiple > 1:
        nodes.append(helper.make_node("SpaceToDepth", [name], ["folded"], blocksize=multiple))
        nodes.append(helper.make_node("DepthToSpace", ["folded"], ["same"], blocksize=multiple))
        name = "same"
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if operator == "Resize":
        nodes.append(helper.make_node("Resize", [name, "", "scales"], ["out"], **options))
    else:
        nodes.append(helper.make_node(operator, [name], ["out"], domain="somebody.own"))
    names = ["in", "second"][:inputs]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n in names],
        [helper.make_tensor_value_info("out", kind, [None] * 4)],
        [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 2.0, 2.0])],
    )
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("somebody.own", 1)]
    onnx.save(helper.make_model(made, opset_imports=sets, ir_version=9), path)
    return path


FREE = ["n", 3, "h", "w"]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (FREE, {}),
        (FREE, {"multiple": 8}),
        (["n", "c", "h", "w"], {}),
        ([1, 3, "h", "w"], {}),
        ([1, 3, 32, 32], {}),
        ([1, 3, 24, 40], {}),
        (FREE, {"half": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (7, 90), (33, 35), (64, 64), (75, 130)])
def test_graphs_of_any_shape_take_pictures_of_any_size(
    tmp_path: Path, shape: list[Any], options: dict[str, Any], size: tuple[int, int]
) -> None:
    network = OnnxUpscaler(graph(tmp_path / "g.onnx", shape, **options))
    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float() / 255
    if options.get("half"):
        x = x.half().float()
    assert network.scale == 2
    assert torch.equal(network(x), F.interpolate(x, scale_factor=2, mode="nearest"))


def test_an_unusual_multiple_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes pictures of any size, found 17 x 19 pixels refused"):
        OnnxUpscaler(graph(tmp_path / "g.onnx", FREE, multiple=3))


def test_a_multiple_is_found_once(tmp_path: Path) -> None:
    assert OnnxUpscaler(graph(tmp_path / "g.onnx", FREE, multiple=8)).multiple == 8
    assert OnnxUpscaler(graph(tmp_path / "h.onnx", FREE)).multiple == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [({"inputs": 2}, "2 inputs"), ({"operator": "Sharpen"}, "Sharpen"), ({"shape": ["n", 4, "h", "w"]}, "4")],
    ids=str,
)
def test_what_cannot_serve_is_named(tmp_path: Path, options: dict[str, Any], told: str) -> None:
    path = graph(tmp_path / "odd.onnx", options.pop("shape", FREE), **options)
    with pytest.raises(InputError, match=told) as caught:
        OnnxUpscaler(path)
    assert "odd.onnx" in str(caught.value)


def test_one_refused_picture_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A graph whose values overflow for one picture: it is named, the rest is done, exit code 2."""
    kind = TensorProto.FLOAT
    scales = helper.make_tensor("scales", kind, [4], [1.0, 1.0, 2.0, 2.0])
    nodes = [
        helper.make_node("Div", ["in", "in"], ["one"]),  # 0 / 0 where a value is black
        helper.make_node("Resize", ["one", "", "scales"], ["out"], mode="nearest"),
    ]
    values = [helper.make_tensor_value_info(n, kind, s) for n, s in (("in", FREE), ("out", [None] * 4))]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], [scales])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        tmp_path / "g.onnx",
    )
    (tmp_path / "in").mkdir()
    for name, level in {"a": 9, "b": 0, "c": 200}.items():
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "in" / f"{name}.png")
    arguments = [
        "upscale",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--student",
        str(tmp_path / "g.onnx"),
    ]
    assert main(arguments) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    said = capsys.readouterr().err
    assert "b.png" in said and "not finite" in said and "other 2 are done" in said


NOT_SHRUNK = [
    "onnx_batch1",
    "onnx_fixed64",
    "onnx_free_channels",
    "onnx_multiple8",
    "onnx_nearest2",
    "onnx_out255",
]


@pytest.mark.parametrize("name", NOT_SHRUNK)
def test_graphs_from_real_situations_run(shared: Path, name: str) -> None:
    """As ONNX Runtime by hand at a size that the graph takes itself."""
    path = shared / "cases" / f"{name}.onnx"
    network, session = OnnxUpscaler(path), onnxruntime.InferenceSession(str(path))
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    by_hand = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.array_equal(network(x).numpy(), by_hand)
    for size in ((1, 1), (61, 50), (100, 71)):
        assert network(torch.rand(1, 3, *size)).shape == (
            1,
            3,
            network.scale * size[0],
            network.scale * size[1],
        )


def test_published_files_in_half_and_single_precision_run(shared: Path) -> None:
    files = sorted((shared / "weights" / "realworld").glob("*.onnx"))
    assert len(files) == 3
    x = torch.rand(1, 3, 24, 31, generator=torch.Generator().manual_seed(1))
    for file in files:
        network, session = OnnxUpscaler(file), onnxruntime.InferenceSession(str(file))
        kind = np.float16 if "fp16" in file.name else np.float32
        by_hand = session.run(None, {session.get_inputs()[0].name: x.numpy().astype(kind)})[0]
        assert network.scale == 2 and np.array_equal(network(x).numpy(), by_hand.astype(np.float32))
