"""Foreign ONNX files that enlarge: their scale, and those that cannot serve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pipeline.errors import InputError
from teachers.onnx_network import OnnxUpscaler


def onnx_file(path: Path, *, shape: list, output: list, out_of: str = "Resize") -> Path:
    """A foreign graph: enlarges by 3 (`Resize`) or gives its input back (`Identity`)."""
    import onnx
    from onnx import TensorProto, helper

    tensor = helper.make_tensor_value_info
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 3.0, 3.0])
    inputs = ["in", "", "scales"] if out_of == "Resize" else ["in"]
    options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    node = helper.make_node(out_of, inputs, ["out"], **(options if out_of == "Resize" else {}))
    graph = helper.make_graph(
        [node],
        "g",
        [tensor("in", TensorProto.FLOAT, shape)],
        [tensor("out", TensorProto.FLOAT, output)],
        [scales],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def test_a_foreign_onnx_file_tells_its_scale(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "f.onnx", shape=["n", 3, "h", "w"], output=["n", 3, "H", "W"])
    network = OnnxUpscaler(path)
    x = torch.rand(1, 3, 2, 5)
    assert network.scale == 3
    assert torch.equal(network(x), F.interpolate(x, scale_factor=3, mode="nearest"))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ([1, 3, 64, 64, 1], "3 or 1, height, width"),
        (["n", 4, "h", "w"], "3 or 1, height"),
        (["n", "h", "w"], "3 or 1, height"),
    ],
)
def test_onnx_files_that_cannot_serve_are_refused(shape: list, told: str, tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "f.onnx", shape=shape, output=[None] * len(shape), out_of="Identity")
    with pytest.raises(InputError, match=told):
        OnnxUpscaler(path)
