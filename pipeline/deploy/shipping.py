"""A trained student as the files that leave with it. A format that cannot hold the network is missing and said; the
others are there all the same.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import students
from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.deploy.export import export_onnx, export_pth, load_student, save_student
from pipeline.deploy.formats import SUFFIXES, write_format
from pipeline.deploy.model_card import MADE, model_card
from pipeline.deploy.trial import Loss, Trial, invented
from pipeline.errors import FacultyError, InputError, reason
from students import deployed

LOSSES = "formats.json"
"""Beside a student's smaller formats: {format: {loss_db, psnr_to_pytorch, against_hr, ...}}."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """What an export wrote."""

    files: dict[str, Path]
    """{"safetensors" | "onnx" | "pth" | "fp16" | "int8" | "ncnn" | "ncnn_bin" | "losses" | "card": path}"""
    missing: dict[str, str] = field(default_factory=dict)
    """{format: why it could not be written}"""
    losses: dict[str, Loss] = field(default_factory=dict)
    """{format: what it loses}, of the smaller ones"""


def attempt(write: Callable[[], Any]) -> str:
    """Write a file; return why it could not be, or an empty string. What a broken exporter prints is kept quiet."""
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            write()
    except FacultyError as error:
        return str(error)
    return ""


def export_student(
    source: Path,
    out: Path,
    facts: Mapping[str, Any] | None = None,
    *,
    half: bool = False,
    formats: Sequence[str] = (),
    trial: Trial | None = None,
) -> Shipped:
    """Write a trained student's file as safetensors, ONNX, .pth (where spandrel has it), smaller `formats`
    (`formats.FORMATS`, tried on `trial`, else on invented pictures) and model card into `out`.

    `half` stores the safetensors in float16. Raises InputError for a file that is no student's.
    """
    model, info = load_student(source)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{info.architecture.replace(':', '-')}_x{info.scale}"
    files = {"safetensors": out / f"{stem}.safetensors"}
    _require_free(Path(source), out, files["safetensors"], half)
    save_student(
        files["safetensors"],
        copy.deepcopy(model).half() if half else model,
        name=info.architecture,
        scale=info.scale,
        options=info.options,
        metadata={**info.facts, **(facts or {})},
    )
    writers: dict[str, Callable[[Path], Any]] = {
        "onnx": lambda path: export_onnx(deployed(model), path, info.scale)
    }
    if hasattr(model, "spandrel_state_dict"):
        writers["pth"] = lambda path: export_pth(model, path)
    missing = {}
    losses: dict[str, Loss] = {}
    plain: bytes | None = None
    trial = trial or invented()

    def smaller(kind: str, path: Path) -> None:
        losses[kind] = write_format(kind, model, path, info.scale, trial, plain)

    for kind in formats:
        writers[kind] = partial(smaller, kind)
    for kind, write in writers.items():
        path = out / f"{stem}{SUFFIXES.get(kind, f'.{kind}')}"
        if why := attempt(partial(write, path)):
            missing[kind] = why.removeprefix(f"{path}: ")
        else:
            files[kind] = path
        if kind == "onnx" and kind in files:
            plain = path.read_bytes()
    if "ncnn" in files:
        files["ncnn_bin"] = files["ncnn"].with_suffix(".bin")
    if losses:
        files["losses"] = out / LOSSES
        kept = {kind: {**found.facts, "tried_on": trial.source} for kind, found in losses.items()}
        records.save(Store.open(out), LOSSES, kept)
    files["card"] = out / "README.md"
    model_card(files["card"], load_student(files["safetensors"])[1], listed(files, losses, trial))
    return Shipped(files, missing, losses)


def _require_free(source: Path, out: Path, target: Path, half: bool) -> None:
    """Raise InputError where something that someone may want would be replaced."""
    remedy = "Choose another output folder."
    if half and target.exists() and target.samefile(source):
        raise InputError(str(target), "a name for the copy in float16", "the student itself", remedy)
    card = out / "README.md"
    if card.exists() and MADE not in card.read_text(errors="replace"):
        raise InputError(str(card), "the card of an earlier export, or nothing", "another page", remedy)


def listed(files: Mapping[str, Path], losses: Mapping[str, Loss], trial: Trial) -> list[tuple[str, str, str]]:
    """(name, size, loss) of each file but the card, for the card."""
    rows = []
    for kind, path in files.items():
        if kind in ("card", "losses"):
            continue
        said = f"{losses[kind].text}, on {trial.source}" if kind in losses else ""
        rows.append((path.name, f"{path.stat().st_size:,} bytes", said))
    return rows


def missing_note(student: str, missing: Mapping[str, str]) -> str:
    """The warning of a student that leaves without a format."""
    return "; ".join(f"{student} leaves without {kind.upper()}: {why}" for kind, why in missing.items())


def check_student(name: str, scale: int, options: Mapping[str, Any], known: Store) -> str:
    """Try what a training and its export will do with a student of spandrel's, once; our own are tested.

    Returns a warning where it will leave without ONNX, else an empty string; `known` keeps the answer. Raises
    InputError for a network that a batch does not train, or that does not take pictures of any size.
    """
    if not name.startswith("spandrel:"):
        return ""
    facts = {"student": name, "scale": scale, "options": dict(options), "torch": str(torch.__version__)}
    rel = f"probes/{fingerprint(facts)}.json"
    if (found := records.load(known, rel)) is not None:
        return str(found["warning"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = students.build(name, scale, **options)
        _try(name, "a batch of two pictures forwards and backwards", lambda: _step(network))
        _try(name, "one picture of 17 x 21 pixels", lambda: network.eval()(torch.rand(1, 3, 17, 21)))
        # Some choose their way by the first picture of a batch.
        _try(
            name, "several pictures at once when it is used", lambda: network.eval()(torch.rand(3, 3, 17, 21))
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "student.onnx")
            why = attempt(lambda: export_onnx(network, path, scale)).removeprefix(f"{path}: ")
    warning = missing_note(f"student {name}", {"onnx": why}) if why else ""
    records.save(known, rel, {"warning": warning})
    return warning


def _step(network: torch.nn.Module) -> None:
    network.train()(torch.rand(2, 3, 16, 16)).mean().backward()
    if not any(p.grad is not None for p in network.parameters()):
        raise RuntimeError("no parameter gets a gradient")


def _try(name: str, what: str, act: Callable[[], Any]) -> None:
    try:
        act()
    except Exception as error:  # third-party networks fail in their own ways
        remedy = "Other options may do, or another student: `faculty students`."
        raise InputError(f"student {name}", f"a network that takes {what}", reason(error), remedy) from error
