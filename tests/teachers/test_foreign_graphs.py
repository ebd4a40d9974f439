"""ONNX files from elsewhere: of luma alone, opsets of a decade, public ones as their checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from pipeline.tasks.super_resolution.teacher_facts import operations
from teachers.gate import PHOTOGRAPHS, check, crops
from teachers.gate import run as levels
from teachers.loading import load_teacher


class Grey(nn.Module):
    """Nearest x2 of luma, through a convolution that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        nn.init.zeros_(self.conv.weight)
        self.conv.weight.data[:, :, 1, 1] = 1.0
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.conv(x))


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", [("n", 1, "h", "w"), (1, 1, "h", "w"), (1, 1, 32, 32)], ids=str)
def test_graphs_of_luma_get_luma(tmp_path: Path, shape: tuple, half: bool) -> None:
    file = conv(tmp_path / "grey.onnx", list(shape), half)
    found = load_teacher(file)
    x = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    y = found(x)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    expected = (x * luma).sum(1).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert y.shape == (2, 3, 80, 48)
    assert ((y * luma).sum(1) - expected).abs().max() < (2e-3 if half else 1e-5)


def conv(path: Path, shape: list, half: bool = False, opset: int = 17) -> Path:
    """`Grey` by hand, with that input shape."""
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = Grey().conv.weight.detach().numpy().astype(dtype)
    nodes = [
        helper.make_node("Conv", ["in", "w"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["maps"], ["out"], blocksize=2, mode="CRD"),
    ]
    made = helper.make_graph(
        nodes,
        "grey",
        [helper.make_tensor_value_info("in", kind, shape)],
        [helper.make_tensor_value_info("out", kind, [None] * 4)],
        [helper.make_tensor("w", kind, weights.shape, weights.tobytes(), raw=True)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 23])
def test_opsets_of_a_decade(tmp_path: Path, opset: int) -> None:
    found = load_teacher(conv(tmp_path / "o.onnx", ["n", 1, "h", "w"], opset=opset))
    assert found(torch.rand(1, 3, 16, 16)).shape == (1, 3, 32, 32)
    assert operations(found) == 4 * 9 * 48 * 48


@pytest.mark.parametrize(
    ("file", "other"),
    [
        ("animejanai_v3_compact_x2_fp16.onnx", "animejanai_v3_compact_x2.pth"),
        ("animejanai_v3_ultracompact_x2.onnx", "animejanai_v3_ultracompact_x2.pth"),
        ("animejanai_v3_superultracompact_x2.onnx", "animejanai_v3_superultracompact_x2.pth"),
    ],
)
def test_public_graphs_are_their_checkpoints(shared: Path, file: str, other: str) -> None:
    folder = shared / "weights" / "realworld"
    graph, checkpoint = load_teacher(folder / file), load_teacher(folder / other)
    x = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(2))
    assert (graph(x) - checkpoint(x)).abs().max() < (2e-2 if "fp16" in file else 1e-3)
    assert operations(graph) == operations(checkpoint)
    assert check(graph) == []


def test_the_order_of_colours_is_no_question_to_luma(tmp_path: Path) -> None:
    found = load_teacher(conv(tmp_path / "grey.onnx", ["n", 1, "h", "w"]))
    assert found.convention.luma and check(found) == []
    x = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(5))
    assert torch.equal(found.with_convention(bgr=True)(x), found(x))


@pytest.mark.parametrize("kind", ["compact", "ultracompact", "superultracompact"])
def test_public_graphs_give_the_grey_levels_of_their_checkpoints(shared: Path, kind: str) -> None:
    folder = shared / "weights" / "realworld"
    (file,) = folder.glob(f"animejanai_v3_{kind}_x2*.onnx")
    graph, checkpoint = load_teacher(file), load_teacher(folder / f"animejanai_v3_{kind}_x2.pth")
    for crop in crops(PHOTOGRAPHS, 96):
        apart = np.abs(levels(graph, crop).astype(int) - levels(checkpoint, crop))
        assert apart.max() <= 1 and (apart > 0).mean() < 0.06, apart.max()
