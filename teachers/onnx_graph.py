"""What an ONNX file says of its network without being run: its files, its parameters, its multiply-adds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, reason

Shape = tuple[int, ...]
LEARNED = (
    "Conv",
    "ConvTranspose",
    "MatMul",
    "Gemm",
    "PRelu",
    "BatchNormalization",
    "LayerNormalization",
    "Add",
    "Mul",
)
"""Operators with tensors that were learned, behind their first input."""

UNCOUNTED = frozenset(
    (
        "Attention",
        "ConvInteger",
        "DeformConv",
        "Einsum",
        "GRU",
        "If",
        "LSTM",
        "Loop",
        "MatMulInteger",
        "QLinearConv",
    )
    + ("QLinearMatMul", "RNN", "Scan")
)
"""Operators that multiply in ways of their own, or that hold graphs: a sum without them would be no figure."""


def files(path: Path) -> list[Path]:
    """The file, and those beside it that hold its larger tensors. Raises InputError for a damaged file."""
    names = {
        entry.value
        for tensor in _read(path).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [path, *(path.parent / name for name in sorted(names))]


def sha256(path: Path) -> str:
    """Of the file, and of the files with its tensors where it has some. Raises InputError where one is missing."""
    digest = hashlib.sha256()
    for file in files(path):
        if not file.is_file():
            raise InputError(str(path), f"its tensors in {file.name} beside it", "nothing there")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def parameters(path: Path) -> int:
    """How many numbers the weights of its convolutions, products and normalisations hold; constants are none."""
    graph = _read(path).graph
    used = {name for node in graph.node if node.op_type in LEARNED for name in node.input[1:]}
    return sum(math.prod(tensor.dims) for tensor in graph.initializer if tensor.name in used and tensor.dims)


def multiply_adds(path: Path, shape: Shape) -> int | None:
    """Multiply-adds for one input of `shape` (1, channels, height, width), counted as `pipeline.cost` does.

    A graph of a fixed size is counted at that size, and by its share of pixels. None where the graph does not tell
    the shapes of all that it multiplies, or multiplies by operators whose work is not known.
    """
    import onnx

    model = _read(path)
    graph = model.graph
    if model.functions or any(n.domain not in ("", "ai.onnx") or n.op_type in UNCOUNTED for n in graph.node):
        return None
    stored = {tensor.name for tensor in graph.initializer}  # old files list them among the inputs
    dims = next(value for value in graph.input if value.name not in stored).type.tensor_type.shape.dim
    sides = [dim.dim_value or side for dim, side in zip(dims[2:], shape[2:])]
    fixed = (dims[0].dim_value or 1, shape[1], *sides)
    for dim, size in zip(dims, fixed):
        dim.Clear()
        dim.dim_value = size
    del graph.value_info[:]  # its shapes are those of other inputs
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        known = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
        count = sum(_operations(graph.node, known))
    except (KeyError, onnx.shape_inference.InferenceError):
        return None
    return round(count * math.prod(shape) / math.prod(fixed))


def _read(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx have exceptions of their own for damaged files
        raise InputError(str(path), "an ONNX network", reason(error)) from None


def _shapes(graph: Any) -> dict[str, Shape]:
    """{tensor: shape} of all whose shape is a number in every dimension."""
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = tuple(attribute.t.dims)
    return found


def _operations(nodes: Any, known: Mapping[str, Shape]) -> Iterator[int]:
    for node in nodes:
        if node.op_type == "Conv":
            yield math.prod(known[node.output[0]]) * math.prod(known[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            yield math.prod(known[node.input[0]]) * math.prod(known[node.input[1]][1:])
        elif node.op_type == "MatMul":
            yield math.prod(known[node.output[0]]) * known[node.input[0]][-1]
        elif node.op_type == "Gemm":
            inner = next((a.i for a in node.attribute if a.name == "transA"), 0)
            yield math.prod(known[node.output[0]]) * known[node.input[0]][0 if inner else -1]
