"""Smaller formats of a student: ONNX in float16, ONNX in int8, ncnn. Each is opened again with the program that it is
for and compared with the student; one that loses more than its limit is left out, with the reason.
"""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.deploy import trial as trials
from pipeline.deploy.export import write_whole
from pipeline.deploy.ncnn_file import export_ncnn, remove
from pipeline.deploy.onnx_file import onnx_session
from pipeline.deploy.trial import Loss, Trial
from pipeline.errors import FacultyError, InputError, reason
from students import deployed

LIMITS = {"fp16": 0.02, "int8": 0.3, "ncnn": 0.02}
"""dB that a format may lose, and what there is besides safetensors, ONNX in float32 and `.pth`."""
SUFFIXES = {"fp16": "_fp16.onnx", "int8": "_int8.onnx", "ncnn": ".param"}
FORMATS = tuple(LIMITS)


def chosen(names: Sequence[str], where: str) -> tuple[str, ...]:
    """`names` once each, in order. Raises InputError for one that is no format."""
    if wrong := [name for name in names if name not in LIMITS]:
        raise InputError(where, f"some of {', '.join(FORMATS)}", ", ".join(map(repr, wrong)))
    return tuple(dict.fromkeys(names))


def write_format(
    kind: str, model: nn.Module, path: Path, scale: int, trial: Trial, plain: bytes | None
) -> Loss:
    """Write `model` in one of `FORMATS` and say what it loses. `plain`: its ONNX file in float32, where it has one.

    Raises FacultyError, and leaves nothing, where it cannot be written or loses more than `LIMITS` allow.
    """
    model = deployed(model).cpu().float().eval()
    if kind == "ncnn":
        found = _write_ncnn(model, path, scale, trial)
    elif plain is None:
        raise FacultyError(f"{path}: it is made from the ONNX file, and there is none")
    else:
        found = {"fp16": _write_fp16, "int8": _write_int8}[kind](model, path, scale, trial, plain)
    if not (allowed := LIMITS[kind]) >= found.db:  # also where it is not a number
        remove(path)
        raise FacultyError(f"{path}: {found.text}, on {trial.source}; allowed: {allowed} dB")
    return found


def _write_ncnn(model: nn.Module, path: Path, scale: int, trial: Trial) -> Loss:
    network = export_ncnn(model, path, scale)
    try:
        return trials.loss(network, model, trial.check, scale, {"weights": "float16"})
    except FacultyError:
        remove(path)
        raise


def _write_fp16(model: nn.Module, path: Path, scale: int, trial: Trial, plain: bytes) -> Loss:
    """Weights and layers in float16; pictures go in and come out as float32, which every program can give."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    graph = convert_float_to_float16(_parsed(plain), keep_io_types=True)
    data = _with_facts(graph, {"scale": scale, "precision": "float16", "input": "float32"})
    run = onnx_session(data)
    found = trials.loss(lambda x: run(x)[0], model, trial.check, scale, {"input": "float32"})
    # ONNX Runtime's CPU computes most of these layers in float32. What a GPU does, and whether a value leaves
    # float16's range, is PyTorch's to show, whose CPU has every layer in float16.
    half = copy.deepcopy(model).half()
    try:
        computed = trials.loss(lambda x: half(x.half()).float(), model, trial.check, scale)
    except RuntimeError as error:  # torch has no float16 of some layer on CPUs
        raise FacultyError(f"{path}: cannot be tried in float16: {reason(error)[:160]}") from error
    worse = max((found, computed), key=lambda one: one.db)
    found = replace(worse, details=found.details)
    if found.db <= LIMITS["fp16"]:
        write_whole(path, data)
    return found


def _write_int8(model: nn.Module, path: Path, scale: int, trial: Trial, plain: bytes) -> Loss:
    """Static quantisation of the convolutions as pairs of QuantizeLinear and DequantizeLinear: weights per output
    channel in int8, activations in uint8 over the range that calibration sees.

    The first and the last convolutions lose most (they hold the picture itself): they stay in float32 where the whole
    network in int8 exceeds the limit. The file says which.
    """
    if not trial.calibrate:
        remedy = "`faculty export --calibrate FOLDER` names some."
        raise InputError(str(path), "pictures to calibrate int8 on", "none", remedy)
    best: tuple[Loss, bytes] | None = None
    for kept, data in _quantised(plain, trial):
        facts = {"precision": "int8", "float32_layers": len(kept), "input": "float32"}
        data = _with_facts(_parsed(data), {"scale": scale, **facts})
        run = onnx_session(data)
        found = trials.loss(lambda x: run(x)[0], model, trial.check, scale, facts)  # noqa: B023  called at once
        if best is None or found.db < best[0].db:
            best = found, data
        if found.db <= LIMITS["int8"]:
            break
    assert best is not None
    if best[0].db <= LIMITS["int8"]:
        write_whole(path, best[1])
    return best[0]


def _quantised(plain: bytes, trial: Trial) -> Iterator[tuple[list[str], bytes]]:
    """(convolutions left in float32, the file), with more and more of them."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.tiles = iter(trial.calibrate)

        def get_next(self) -> dict[str, Any] | None:
            tile = next(self.tiles, None)
            return None if tile is None else {"lr": tile.input.numpy()}

    graph = _parsed(plain).graph
    kinds = ["Conv", "ConvTranspose"]
    names = [node.name for node in graph.node if node.op_type in kinds]
    if not names:
        raise FacultyError("there is no convolution to quantise")
    ends = [[], [names[0], names[-1]], [names[0], *names[-2:]], [names[0], *names[-3:]]]
    root = logging.getLogger()
    level = root.level
    for kept in ends:
        if len(set(kept)) >= len(names):
            return
        with tempfile.TemporaryDirectory() as folder:  # it takes files only
            source, made = Path(folder, "plain.onnx"), Path(folder, "int8.onnx")
            source.write_bytes(plain)
            root.setLevel(logging.ERROR)  # it recommends a pass that changes nothing here
            try:
                quantize_static(
                    source,
                    made,
                    Reader(),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=kinds,
                    nodes_to_exclude=kept,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
            except Exception as error:  # onnxruntime has an exception class for each of its status codes
                raise FacultyError(
                    f"ONNX Runtime cannot quantise this network: {reason(error)[:160]}"
                ) from error
            finally:
                root.setLevel(level)
            yield kept, made.read_bytes()


def _parsed(data: bytes) -> Any:
    import onnx

    return onnx.load_from_string(data)


def _with_facts(graph: Any, facts: dict[str, Any]) -> bytes:
    """The file, which says `facts` under the metadata key `faculty`."""
    del graph.metadata_props[:]
    graph.metadata_props.add(key="faculty", value=json.dumps(facts))
    return graph.SerializeToString()
