"""What a student leaves the house as: safetensors, ONNX, a `.pth` for spandrel and chaiNNer, and its model card.

Every file is written whole or not at all, and the ONNX and `.pth` files are opened again with the program that they
are for and compared with the student before they are kept.
"""

from __future__ import annotations

import copy
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import students
from pipeline.cache.store import Store
from pipeline.deploy.onnx_file import PARITY, onnx_file
from pipeline.errors import FacultyError, InputError, reason
from pipeline.training.weights import pack
from students.by_spandrel import SpandrelStudent
from teachers.spandrel_import import import_spandrel

log = logging.getLogger(__name__)

_SIZES = ((16, 24), (33, 21))
"""Of the noise pictures, (height, width), on which exported files are compared with the student."""


@dataclass(frozen=True, slots=True)
class StudentInfo:
    """What a student's file says about it."""

    architecture: str
    """A name of `students.build`."""
    scale: int
    options: dict[str, Any]
    """Hyper-parameters for `students.build`; those left out have their defaults."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Whatever else was saved: method, teachers, metrics, fingerprints of recipe and cache."""


def save_student(
    path: str | Path,
    model: nn.Module,
    *,
    name: str,
    scale: int,
    options: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> StudentInfo:
    """Write a student with all that is needed to build it again, as JSON under the metadata key `faculty`.

    `metadata` must be JSON: fingerprints, teachers, metrics. `name` and `options` are those of `students.build`.
    """
    info = StudentInfo(name, scale, dict(options), dict(metadata or {}))
    text = json.dumps({**info.facts, "architecture": name, "scale": scale, "options": info.options})
    write_whole(path, pack(model.state_dict(), {"faculty": text, "format": "pt"}))
    return info


def read_network(path: str | Path, expected: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, what the file says of them) of a file that Faculty wrote.

    Raises InputError, which says what was `expected`, for a missing, damaged or foreign file.
    """
    from safetensors import SafetensorError, safe_open

    where = str(path)
    try:
        with safe_open(where, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(where, expected, f"one that cannot be read ({reason(error)})") from None
    try:
        facts = json.loads(metadata["faculty"])
    except (KeyError, ValueError):
        raise InputError(where, expected, "one without Faculty's metadata") from None
    return tensors, facts


def load_student(path: str | Path) -> tuple[nn.Module, StudentInfo]:
    """Build the student in a file: (network in evaluation mode on the CPU, what the file says of it).

    Raises InputError for a missing, damaged or foreign file.
    """
    where = str(path)
    tensors, facts = read_network(path, "a student's .safetensors file")
    try:
        info = StudentInfo(facts.pop("architecture"), facts.pop("scale"), facts.pop("options"), facts)
        model = students.build(info.architecture, info.scale, **info.options)
        model.load_state_dict(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            where, "tensors and metadata of one student", reason(error), "Export it again."
        ) from None
    return model.eval(), info


def export_onnx(model: nn.Module, path: str | Path, scale: int) -> float:
    """Write `model` as ONNX: `lr` (batch, 3, h, w) RGB in [0, 1] -> `sr` (batch, 3, scale*h, scale*w), any size.

    Returns the largest difference between ONNX Runtime and the student. Raises FacultyError, and writes nothing,
    where it exceeds `PARITY` or where the exporter cannot express the network.
    """
    model = _standing(model)
    dynamic = torch.export.Dim.DYNAMIC
    example, axes = torch.zeros(2, 3, *_SIZES[0]), {0: dynamic, 2: dynamic, 3: dynamic}
    data, difference = onnx_file(
        model,
        example,
        axes,
        "lr",
        ("sr",),
        {"scale": scale},
        path,
        lambda run: _difference(lambda x: run(x)[0], model),
    )
    require_parity(path, "ONNX Runtime", difference)
    write_whole(path, data)
    return difference


def export_pth(model: nn.Module, path: str | Path) -> str:
    """Write the plain state dict that spandrel, and with it chaiNNer, opens. Returns spandrel's architecture id.

    EDSR is written as an RCAN that gives the same picture. Raises InputError where spandrel has no such
    architecture, FacultyError where the reopened network's picture differs by more than `PARITY`.
    """
    if not hasattr(model, "spandrel_state_dict"):
        known = ", ".join(n for n in students.names() if hasattr(students.network(n), "spandrel_state_dict"))
        found = type(model).__name__
        raise InputError(
            str(path), f"an architecture of spandrel's ({known})", found, "Export it as ONNX instead."
        )
    model = _standing(model, deploy=False)
    tensors: dict[str, Tensor] = model.spandrel_state_dict()  # type: ignore[operator]
    state = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    # spandrel changes the dictionary that it is given
    try:
        descriptor: Any = import_spandrel().MAIN_REGISTRY.load(dict(state))
    except Exception as error:  # it guesses sizes from shapes: an RCAN's at x1 are taken to be 64 features
        raise FacultyError(f"{path}: spandrel takes it for another network: {reason(error)}") from None
    reopened = SpandrelStudent(descriptor.model, descriptor.scale, descriptor.size_requirements).eval()
    difference = _difference(reopened, model)
    require_parity(path, f"spandrel's {descriptor.architecture.id}", difference)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())
    return str(descriptor.architecture.id)


def _standing(model: nn.Module, *, deploy: bool = True) -> nn.Module:
    """A float32 copy on the CPU in evaluation mode, collapsed for use if `deploy`."""
    model = students.deployed(model) if deploy else copy.deepcopy(model)
    return model.cpu().float().eval().to(memory_format=torch.contiguous_format)


@torch.no_grad()
def _difference(other: Callable[[Tensor], Tensor], model: nn.Module) -> float:
    """Largest difference on noise pictures, relative to the values where these leave [-1, 1]."""
    generator = np.random.default_rng(0)
    differences = []
    for batch, (height, width) in enumerate(_SIZES, start=1):
        x = torch.from_numpy(generator.random((batch, 3, height, width), np.float32))
        expected, found = model(x), other(x)
        if found.shape != expected.shape:
            raise FacultyError(
                f"pictures of {tuple(found.shape)} came back instead of {tuple(expected.shape)}"
            )
        differences.append(((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item())
    return max(differences)


def require_parity(path: str | Path, program: str, difference: float) -> None:
    """Raise FacultyError where `program` differs from the network by more than PARITY."""
    if not difference <= PARITY:  # also where it is not a number
        raise FacultyError(
            f"{path}: {program} gives other values, off by {difference:.1e} (allowed: {PARITY:.0e})"
        )
    log.info("%s: %s gives the student's values to %.1e", path, program, difference)


def write_whole(path: str | Path, data: bytes) -> None:
    """The file appears complete or not at all."""
    path = Path(path)
    Store.open(path.parent).write_bytes(path.name, data)
