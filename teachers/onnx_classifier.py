"""An ONNX file as a classifier: its logits, and as embedding an output that is named or what its last product gets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError, reason

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxClassifier(nn.Module):
    """(B, 3, H, W) as the graph wants it -> {"logits": (B, C), "embedding": (B, D)} float32, on x's device."""

    def __init__(self, data: bytes, facts: Mapping[str, Any], where: str) -> None:
        """`data` and `facts` as `prepared` gives them. Raises InputError naming `where`."""
        super().__init__()
        import onnxruntime

        wanted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 4
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(data, settings, providers=providers)
        except Exception as error:  # onnxruntime has an exception class for each of its status codes
            raise InputError(where, "an ONNX network", reason(error)) from None
        (given,) = self.session.get_inputs()
        self.given, self.number, self.where = given.name, TYPES[given.type], where
        self.batch = given.shape[0] if isinstance(given.shape[0], int) and given.shape[0] > 0 else None
        self.outputs = [facts["logits"], facts["embedding"]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pictures: Any = x.float().cpu().contiguous().numpy().astype(self.number)
        batch = self.batch or len(pictures)
        filled = -len(pictures) % batch  # a fixed batch is filled with its last picture
        padded = np.concatenate([pictures, *[pictures[-1:]] * filled])
        try:
            made = [
                self.session.run(self.outputs, {self.given: part})
                for part in np.split(padded, len(padded) // batch)
            ]
        except Exception as error:  # as above
            found = f"{' x '.join(map(str, x.shape[2:]))} pixels refused ({reason(error)})"
            raise InputError(self.where, "a network that takes these pictures", found, REMEDY) from None
        logits, embedding = (
            torch.from_numpy(np.concatenate(parts)[: len(pictures)].astype(np.float32))
            .flatten(1)
            .to(x.device)
            for parts in zip(*made, strict=True)
        )
        return {"logits": logits, "embedding": embedding}


REMEDY = "Name the side that it wants (`input: {size: [height, width]}`)."


def prepared(
    path: Path, names: Mapping[str, str]
) -> tuple[bytes, dict[str, Any], tuple[int, int] | None, int]:
    """(one file with all its tensors, {"logits": output, "embedding": output}, the only (height, width) that it takes
    or None, how many answers it gives or 0). `names` are those that the recipe gives.

    Raises InputError for a file that is no classifier of RGB pictures, or names that it has not.
    """
    import onnx

    where = str(path)
    try:
        model = onnx.load(where)
        model = onnx.shape_inference.infer_shapes(model)
    except Exception as error:  # protobuf's and onnx's own
        raise InputError(where, "an ONNX network", reason(error)) from None
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    shape = _shape(inputs[0]) if len(inputs) == 1 else []
    if len(shape) != 4 or shape[1] not in (3, None):
        found = f"{len(inputs)} inputs, the first of shape {shape}" if inputs else "no input"
        raise InputError(where, "one input (batch, 3, height, width)", found)
    have = {o.name: _shape(o) for o in graph.output}
    known = {v.name: _shape(v) for v in graph.value_info} | have
    if unknown := [name for name in names.values() if name not in known]:
        raise InputError(f"{where}: outputs", f"names of {', '.join(have)}", ", ".join(unknown))
    logits = names.get("logits") or next((name for name in have if name != names.get("embedding")), "")
    embedding = names.get("embedding") or _before(graph, logits, weights)
    if embedding is None:
        raise InputError(
            where,
            "a last product (Gemm, MatMul or Conv) before which the embedding is taken",
            f"none that makes {logits}",
            f"Name an output as `outputs: {{embedding: ...}}`, of {', '.join(have)}.",
        )
    for name in (logits, embedding):
        if name not in have:
            graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    classes = known.get(logits, [None, None])[1:2]
    size = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
    data = model.SerializeToString()
    return data, {"logits": logits, "embedding": embedding}, size, classes[0] if classes and classes[0] else 0


def _before(graph: Any, logits: str, weights: set[str]) -> str | None:
    """What the last product before `logits` gets of its picture: its embedding."""
    made = {name: node for node in graph.node for name in node.output}
    node = made.get(logits)
    while node is not None:
        given = [name for name in node.input if name not in weights]
        if node.op_type in ("Gemm", "MatMul", "Conv") and given:
            return str(given[0])
        if (
            node.op_type not in ("Add", "Identity", "Flatten", "Reshape", "Squeeze", "Softmax", "Cast")
            or not given
        ):
            return None
        node = made.get(given[0])
    return None


def _shape(value: Any) -> list[int | None]:
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]
