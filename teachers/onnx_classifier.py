"""An ONNX file as a classifier: its logits, and as embedding an output that is named or what its last product gets; or
as an embedder: one output alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import InputError, reason
from teachers.onnx_session import Session

REMEDY = "Name the side that it wants (`input: {size: [height, width]}`)."


class OnnxClassifier(nn.Module):
    """(B, 3, H, W) as the graph wants it -> {"logits": (B, C), "embedding": (B, D)} float32, on x's device; of an
    embedder without logits.
    """

    def __init__(self, data: bytes, facts: Mapping[str, Any], where: str) -> None:
        """`data` and `facts` as `prepared` gives them. Raises InputError naming `where`."""
        super().__init__()
        self.session = Session(data, where)
        if not self.session.fits:
            found = ", ".join(f"{given.type} {given.shape}" for given in self.session.inputs)
            raise InputError(where, "one float32 or float16 input (batch, 3, height, width)", found)
        self.outputs = {name: facts[name] for name in ("logits", "embedding") if name in facts}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        names = list(self.outputs.values())
        made = self.session.run(x, "a network that takes these pictures", names, REMEDY)
        return {name: part.flatten(1).to(x.device) for name, part in zip(self.outputs, made, strict=True)}


def prepared(
    path: Path, names: Mapping[str, str], embeds: bool = False
) -> tuple[bytes, dict[str, Any], tuple[int, int] | None]:
    """(one file with all its tensors, {"logits": output, "embedding": output}, the only (height, width) that it takes
    or None). `names` are those that the recipe gives. Of what `embeds`, or has no output but its embedding, no logits:
    {"embedding": output, "embeds": True}.

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
    size = (shape[2], shape[3]) if isinstance(shape[2], int) and isinstance(shape[3], int) else None
    if embeds or list(have) == [names.get("embedding")]:
        embedding = names.get("embedding") or next(iter(have))
        if embedding not in have:
            graph.output.append(onnx.helper.make_empty_tensor_value_info(embedding))
        return model.SerializeToString(), {"embedding": embedding, "embeds": True}, size
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
    return model.SerializeToString(), {"logits": logits, "embedding": embedding}, size


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
