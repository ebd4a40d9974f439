"""Reads tensors, and nothing but tensors, from checkpoint files.

Safetensors, or torch's own format with `weights_only=True`. Pickled objects and TorchScript archives can run code
when opened and are refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError, reason
from teachers import onnx_graph


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checkpoint_sha256(path: Path) -> str:
    """Of a checkpoint's bytes; of an ONNX file's and of those with its tensors beside it."""
    return onnx_graph.sha256(path) if path.suffix.lower() == ".onnx" else file_sha256(path)


def read_checkpoint(path: Path) -> tuple[Any, dict[str, str]]:
    """What a checkpoint holds and, for safetensors, its metadata. Nothing in the file is executed.

    Raises InputError naming the file when it is damaged or asks for more than tensors.
    """
    with path.open("rb") as file:
        head = file.read(9)
    try:
        # safetensors: 8 bytes of header length, then JSON; told by content because files get renamed
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as tensors:
                return {key: tensors.get_tensor(key) for key in tensors.keys()}, tensors.metadata() or {}  # noqa: SIM118
        if head[:4] == b"PK\x03\x04":
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the bytes are foreign: unpickler, zip reader and safetensors raise all kinds
        raise (_onnx(path) or _unreadable(path, error)) from None


def _onnx(path: Path) -> InputError | None:
    """What to say of an ONNX file where tensors are wanted; None where it is none, or a damaged one."""
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # bytes that are no ONNX file: protobuf raises all kinds
        return None
    if not model.graph.node:  # a few bytes parse as a message without a content
        return None
    remedy = "Name the network's own checkpoint (.pth, .safetensors); `faculty upscale --student` takes ONNX files."
    return InputError(str(path), "a checkpoint, of tensors alone", "an ONNX file, which is intact", remedy)


def _check_archive(path: Path) -> None:
    """What torch does not look at before it opens one of its archives: the kind, and the checksums."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            remedy = "Save its state_dict() from the program that made it."
            raise InputError(str(path), "tensors only", "a TorchScript archive, which can run code", remedy)
        damaged = archive.testzip()
    if damaged is not None:
        remedy = "Copy it again; if it was saved without checksums, save it with them or as safetensors."
        raise InputError(str(path), "a whole checkpoint", f"a wrong checksum of {damaged}", remedy)


def _unreadable(path: Path, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    asked = re.search(r"GLOBAL (\S+)", text) if isinstance(error, pickle.UnpicklingError) else None
    if asked:
        found = f"a pickle that asks for {asked[1].strip('.,')}, which can run code"
        remedy = "Do not open it elsewhere unless you trust its maker; ask for a safetensors file."
        return InputError(str(path), "tensors only", found, remedy)
    # torch adds advice to what went wrong, some of it dangerous: only the cause is passed on
    cause = reason(error).rpartition("WeightsUnpickler ")[2]
    cause = re.split(r"\. | Check the documentation", cause)[0][:120]
    found = f"{path.stat().st_size} bytes that are none, or no longer ({cause})"
    return InputError(str(path), "a whole checkpoint, of tensors alone", found, "Download or copy it again.")
