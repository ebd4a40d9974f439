"""ONNX files as teachers: read, counted, gated, cached and learned from like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from command_kit import run
from onnx import TensorProto, helper
from road_kit import TEACHERS, Road, Untouchable, picture, recipe, recipe_file, teacher
from test_onnx_network import graph as plain_graph

from pipeline.cache.rows import Rows
from pipeline.cost import multiply_adds, parameters
from pipeline.deploy.export import export_onnx
from pipeline.engine.teach import sizes
from pipeline.errors import InputError
from pipeline.recipe.recipe import Teach, TeacherSpec
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
    ("name", "options"),
    [
        ("edsr", {"features": 8, "blocks": 1}),
        pytest.param("swinir_light", {}, marks=pytest.mark.slow),
        ("fsrcnn", {}),
    ],
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
@pytest.mark.slow
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


def altered(source: Path, path: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    """The graph with a change."""
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, path)
    return path


def named_input(dims: list, kind: int = TensorProto.FLOAT) -> Callable[[onnx.GraphProto], None]:
    """Another shape of the input; that of the output follows from it."""

    def change(graph: onnx.GraphProto) -> None:
        graph.input[0].CopyFrom(helper.make_tensor_value_info(graph.input[0].name, kind, dims))
        graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, kind, [None] * 4))
        del graph.value_info[:]

    return change


@pytest.mark.parametrize(
    "dims", [[4, 3, "h", "w"], [4, 3, 32, 32], [1, 3, 40, "w"], ["n", 3, 64, 64]], ids=str
)
def test_fixed_batches_and_sides_are_counted_and_run_as_the_free_graph(
    tmp_path: Path, exported: Path, dims: list
) -> None:
    free, fixed = (
        load_teacher(exported),
        load_teacher(altered(exported, tmp_path / "f.onnx", named_input(dims))),
    )
    x = torch.rand(6, 3, 24, 24, generator=torch.Generator().manual_seed(3))
    inner = (
        slice(None),
        slice(None),
        slice(0, 24),
        slice(0, 24),
    )  # mirrored borders reach as far as layers do
    torch.testing.assert_close(fixed(x)[inner], free(x)[inner], atol=1e-4, rtol=0)
    assert fixed(x).shape == (6, 3, 48, 48)
    assert operations(fixed) == operations(free) and check(fixed) == []


def hidden(graph: onnx.GraphProto) -> None:
    """The output through a branch that is always taken: work inside of it is not seen from outside."""
    last = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["made" if name == last else name for name in node.output]
    shape = helper.make_tensor_value_info("branch", TensorProto.FLOAT, [None] * 4)
    branches = {
        f"{word}_branch": helper.make_graph(
            [helper.make_node("Identity", ["made"], ["branch"])], word, [], [shape]
        )
        for word in ("then", "else")
    }
    graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    graph.node.append(helper.make_node("If", ["yes"], [last], **branches))


def test_what_cannot_be_counted_is_no_figure_and_teaches_all_the_same(place: Path, exported: Path) -> None:
    file = altered(exported, place / "hidden.onnx", hidden)
    assert operations(load_teacher(file)) is None
    picture(place / "Bench" / "one.png", 64, 72, 60)
    graph = {"checkpoint": str(file), "name": "graph"}
    content = {"teachers": [graph, teacher("edsr")], "data": {"test": [str(place / "Bench")]}}
    done = run("run", recipe_file(place, **content), "--inline", "--json", place / "out.json")
    assert done.code == 0, done.err
    rows = {r["model"]: r for r in json.loads((place / "out.json").read_text())["rows"]}
    assert rows["graph"]["multiply_adds"] is None and rows["edsr"]["multiply_adds"] > 1e6
    (line,) = [row for row in done.out.splitlines() if row.strip().startswith("graph ")]
    assert line.split()[1:5:3] == ["121", "-"] or line.split()[3] == "-", line
    (record,) = [
        json.loads(p.read_text()) for p in (place / "cache/teachers").iterdir() if "onnx" in p.read_text()
    ]
    assert record["multiply_adds"] is None


def test_actors_are_shared_out_where_nobody_counted() -> None:
    network = SimpleNamespace(multiply_adds=None)
    task = SimpleNamespace(samples=SimpleNamespace(rows=10))
    tasks = {"a": (network, [task] * 4), "b": (network, [task] * 4)}
    assert sizes(Teach(), tasks, slots=4) == {"a": 2, "b": 2}


def test_a_file_that_lists_its_tensors_as_inputs_is_counted(tmp_path: Path, exported: Path) -> None:
    def listed(graph: onnx.GraphProto) -> None:
        """As files of IR version 3 do, in any order."""
        pictures = list(graph.input)
        del graph.input[:]
        for tensor in graph.initializer:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        graph.input.extend(pictures)

    found = load_teacher(altered(exported, tmp_path / "old.onnx", listed))
    assert operations(found) == operations(load_teacher(exported))
    assert found(torch.rand(1, 3, 20, 20)).shape == (1, 3, 40, 40)


def test_a_graph_has_the_threads_of_its_process(exported: Path) -> None:
    found = load_teacher(exported)
    x = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(4))
    before, one = torch.get_num_threads(), found(x)
    try:
        torch.set_num_threads(2)
        assert torch.allclose(found(x), one, atol=1e-5)
        assert found.network.run.graph.session.get_session_options().intra_op_num_threads == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found(x), one)
    assert found.network.run.graph.session.get_session_options().intra_op_num_threads == before


def test_a_graph_that_gives_0_to_255_is_refused_with_what_mends_it(shared: Path, place: Path) -> None:
    file = shared / "cases" / "onnx_out255.onnx"
    with pytest.raises(InputError, match=r"one of 0\.\.255 in its output alone") as caught:
        Road(recipe(place, teachers=[{"checkpoint": str(file)}])).teach()
    assert "output divided by 255" in str(caught.value) and "`gate: warn`" in str(caught.value)


@pytest.mark.parametrize("name", ["batch1", "fixed64", "free_channels", "multiple8", "nearest2"])
def test_graphs_from_real_situations_teach(shared: Path, place: Path, name: str) -> None:
    entry = {"checkpoint": str(shared / "cases" / f"onnx_{name}.onnx"), "name": "graph"}
    road = Road(recipe(place, teachers=[entry]))
    _, (taught,) = road.teach()
    assert taught.network.architecture == "onnx" and taught.quality > 15 and road.warnings == []


@pytest.mark.parametrize(
    ("shape", "inputs", "operator", "said"),
    [
        (["n", 3, "h", "w"], 2, "Resize", "2 inputs"),
        (["n", 4, "h", "w"], 1, "Resize", "4"),
        (["n", 3, "h", "w"], 1, "Sharpen", "Sharpen"),
    ],
)
def test_a_run_refuses_other_graphs_before_anything_starts(
    place: Path, shape: list, inputs: int, operator: str, said: str
) -> None:
    file = plain_graph(place / "odd.onnx", shape, inputs=inputs, operator=operator)
    with pytest.raises(InputError, match=said) as caught:
        Road(recipe(place, teachers=[{"checkpoint": str(file)}]), Untouchable()).teach()
    assert "odd.onnx" in str(caught.value) and not list(place.glob("cache/tiles"))
