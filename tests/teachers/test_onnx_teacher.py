"""ONNX files as teachers: read, counted, gated, cached and learned from like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from command_kit import run
from onnx import TensorProto, helper
from road_kit import TEACHERS, Road, picture, recipe, recipe_file, teacher
from torch import nn

from pipeline.cache.rows import Rows
from pipeline.cost import multiply_adds, parameters
from pipeline.deploy.export import export_onnx
from pipeline.errors import InputError
from pipeline.recipe.recipe import TeacherSpec
from pipeline.tasks.super_resolution.teacher_facts import find_facts, operations
from students import build
from teachers import onnx_graph
from teachers.checkpoints import checkpoint_sha256
from teachers.gate import check
from teachers.loading import load_teacher


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the demo's teachers as a graph."""
    folder = tmp_path_factory.mktemp("onnx")
    network = load_teacher(TEACHERS / "compact_x2.safetensors").network
    export_onnx(network, folder / "compact.onnx", 2)
    return folder / "compact.onnx"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 104, seed)
    return tmp_path


def test_a_graph_is_the_teacher_that_it_was_made_of(exported: Path) -> None:
    ours, theirs = load_teacher(exported), load_teacher(TEACHERS / "compact_x2.safetensors")
    x = torch.rand(2, 3, 17, 22, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=0)
    assert (ours.info.architecture, ours.info.scale) == ("onnx", 2)
    assert ours.info.parameters == parameters(theirs.network)
    assert operations(ours) == operations(theirs) == multiply_adds(theirs.network, (1, 3, 48, 48))
    assert check(ours) == []


@pytest.mark.parametrize(
    ("name", "options"), [("edsr", {"features": 8, "blocks": 1}), ("swinir_light", {}), ("fsrcnn", {})]
)
def test_operations_are_counted_as_for_a_module(tmp_path: Path, name: str, options: dict) -> None:
    network = build(name, 2, **options).eval()
    export_onnx(network, path := tmp_path / "x.onnx", 2)
    found = onnx_graph.multiply_adds(path, (1, 3, 48, 48))
    if (
        name == "swinir_light"
    ):  # windows are cut by shapes that the graph computes: counted whole, or not at all
        assert found in (None, multiply_adds(network, (1, 3, 48, 48)))
    else:
        assert found == multiply_adds(network, (1, 3, 48, 48))


def test_a_run_learns_from_a_graph_as_from_its_checkpoint(place: Path, exported: Path) -> None:
    graph = {"checkpoint": str(exported), "name": "graph"}
    road = Road(recipe(place, teachers=[graph, teacher("compact"), teacher("edsr")]))
    _, (of_graph, of_file, _), fused, (job,) = road.distill()
    assert job.result() and fused.quality > 20 and of_graph.network.precision == "fp32"
    store = road.run.planner.store
    one, other = (
        Rows(store, t.cached.train).take("sr", np.arange(4)).astype(int) for t in (of_graph, of_file)
    )
    assert np.abs(one - other).max() <= 1 and abs(of_graph.quality - of_file.quality) < 0.01


@pytest.mark.ray
def test_actors_open_graphs(ray_local: None, place: Path, exported: Path) -> None:
    from pipeline.engine.ray_engine import RayEngine

    settings = recipe(place, teachers=[{"checkpoint": str(exported), "name": "graph"}])
    _, (here,) = Road(settings).teach()
    there = settings.model_copy(
        update={"cache": settings.cache.model_copy(update={"root": str(place / "other")})}
    )
    _, (spread,) = Road(there, RayEngine()).teach()
    assert spread.quality == pytest.approx(here.quality, abs=1e-3)


def test_the_table_and_the_command_show_it(place: Path, exported: Path) -> None:
    picture(place / "Bench" / "one.png", 64, 72, 60)
    file = recipe_file(
        place,
        teachers=[{"checkpoint": str(exported), "name": "graph"}],
        data={"test": [str(place / "Bench")]},
        method={"name": "kd"},
    )
    done = run("run", file, "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    assert rows["graph"]["role"] == "teacher" and rows["graph"]["multiply_adds"] > 1e6


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


def test_tensors_in_a_file_beside_it_are_part_of_it(tmp_path: Path, exported: Path) -> None:
    model = onnx.load(exported)
    path = tmp_path / "beside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="beside.data", size_threshold=256)
    before = checkpoint_sha256(path)
    assert load_teacher(path).info.sha256 == before and onnx_graph.files(path)[1].name == "beside.data"
    data = bytearray((tmp_path / "beside.data").read_bytes())
    data[100] ^= 1
    (tmp_path / "beside.data").write_bytes(data)
    assert checkpoint_sha256(path) != before
    (tmp_path / "beside.data").unlink()
    with pytest.raises(InputError, match=r"beside\.data"):
        checkpoint_sha256(path)


def test_what_a_graph_cannot_is_said_before_anything_starts(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(InputError, match="scale 3"):
        load_teacher(exported, scale=3)
    spec = TeacherSpec(checkpoint=str(exported), precision="bf16")
    with pytest.raises(InputError, match="auto or fp32"):
        find_facts(spec, 2, str(tmp_path / "cache")) and load_teacher(exported).precision("bf16")
    (tmp_path / "text.onnx").write_text("not a graph")
    with pytest.raises(InputError, match=r"text\.onnx"):
        load_teacher(tmp_path / "text.onnx")


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
