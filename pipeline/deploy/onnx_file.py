"""A network as an ONNX file, compared with the network before it is kept.

PyTorch's exporter takes seconds for a small network, and a comparison leaves dozens of the same structure. So the graph
that it made of one is kept as it is before weights are computed into each other, and the next network's weights are put
into it, which is kept wherever the comparison then holds.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import FacultyError, reason

log = logging.getLogger(__name__)

PARITY = 1e-4
"""Largest difference from the student, on values of [0, 1], at which an exported file is kept."""
STRUCTURES = 8
"""Files of networks that are kept for others of their structure."""
Run = Callable[[Tensor], list[Tensor]]

_known: dict[str, tuple[Any, Any]] = {}
"""By structure: the exporter's program, and its graph with weights as the network has them."""


def onnx_file(
    model: nn.Module,
    example: Tensor,
    axes: Mapping[int, Any],
    name: str,
    outputs: tuple[str, ...],
    facts: Mapping[str, Any],
    path: str | Path,
    compare: Callable[[Run], float],
) -> tuple[bytes, float]:
    """`model`, of one input `name` with the dynamic `axes`, as an ONNX file, and what `compare` says of it.

    `compare` gets ONNX Runtime's outputs for an input and returns their largest difference from the network's. `path`
    names the file in errors. Raises FacultyError where the exporter cannot express the network.
    """
    key = _structure(model, example, axes, name, outputs)
    if key in _known:
        data = _finished(*_known[key], model, facts)
        try:
            if (difference := compare(onnx_session(data))) <= PARITY:
                return data, difference
        except FacultyError as error:
            log.info("%s: only looks like another network, and is exported for itself: %s", path, error)
    program = _exported(model, example, axes, name, outputs, path)
    graph = program.model_proto
    whole = _holds(graph, model)
    if whole:
        _known[key] = program, graph
        while len(_known) > STRUCTURES:
            del _known[next(iter(_known))]
    data = _finished(program, graph if whole else None, model, facts)
    return data, compare(onnx_session(data))


def _structure(
    model: nn.Module, example: Tensor, axes: Mapping[int, Any], name: str, outputs: tuple[str, ...]
) -> str:
    """What networks have in common whose files differ in their weights alone, as far as can be seen from outside."""
    shapes = [(key, tuple(x.shape), str(x.dtype)) for key, x in model.state_dict().items()]
    return repr(
        (type(model).__qualname__, repr(model), shapes, tuple(example.shape), sorted(axes), name, outputs)
    )


def _holds(proto: Any, model: nn.Module) -> bool:
    """Whether every weight is in the file under its name, as it is: nothing was computed from several of them."""
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    for key, x in model.state_dict().items():
        if not x.is_floating_point():
            continue
        if key not in found or not torch.equal(torch.from_numpy(numpy_helper.to_array(found[key]).copy()), x):
            return False
    return True


def _finished(program: Any, graph: Any, model: nn.Module, facts: Mapping[str, Any]) -> bytes:
    """The file of a network: its weights in the graph, if there is one for all, simplified as the exporter does it."""
    import onnx_ir
    from onnx import numpy_helper

    if graph is not None:
        proto, weights = type(graph)(), model.state_dict()
        proto.CopyFrom(graph)
        for tensor in proto.graph.initializer:
            if tensor.name in weights:
                array = weights[tensor.name].contiguous().numpy()
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        program.model = onnx_ir.serde.deserialize_model(proto)
    program.optimize()
    proto = program.model_proto
    _without_places(proto.graph)
    proto.metadata_props.add(key="faculty", value=json.dumps(dict(facts)))
    return bytes(proto.SerializeToString())


def _exported(
    model: nn.Module,
    example: Tensor,
    axes: Mapping[int, Any],
    name: str,
    outputs: tuple[str, ...],
    path: str | Path,
) -> Any:
    """What the exporter makes of a network. Raises FacultyError where it cannot express it."""
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it reports every decomposition and a missing torchvision
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=(dict(axes),),
            input_names=[name],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
            optimize=False,
        )
    except Exception as error:  # the exporter raises what the failing pass raises
        raise FacultyError(f"{path}: this network cannot be written as ONNX: {_why(error)}") from error
    finally:
        quiet.setLevel(level)
    assert program is not None
    return program


def _why(error: BaseException) -> str:
    """The exporter's cause, whose first sentence says it; the rest is advice to the network's programmer."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", reason(error))
    return re.split(r"(?<=[a-z)])\. |\s\(Size-like|\(consult", text)[0][:200]


def _without_places(graph: Any) -> None:
    """Take out what the exporter notes of where the code lay on this machine."""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del part.metadata_props[:]


def onnx_session(data: bytes) -> Callable[[Tensor], list[Tensor]]:
    """The file opened with ONNX Runtime on the CPU: its outputs for an input."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised

    session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def run(x: Tensor) -> list[Tensor]:
        try:
            return [torch.from_numpy(value) for value in session.run(None, {given.name: x.numpy()})]
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            size = " x ".join(map(str, x.shape[2:]))
            raise FacultyError(
                f"the ONNX file fails for pictures of {size} pixels: {reason(error)[:160]}"
            ) from None

    return run
