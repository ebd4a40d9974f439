"""From a checkpoint file, or a name of the zoo, to a teacher.

Only tensors are ever read: safetensors, or torch's format with `weights_only=True`. Pickled objects and TorchScript
archives can run code and are refused. A checkpoint's network is found by its keys: Faculty's own students by their
metadata, then our own networks (`teachers.networks`), then spandrel's. All are loaded strictly.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers.descriptor import Convention, Teacher, TeacherInfo
from teachers.networks import NATIVES
from teachers.networks.native import Native, State
from teachers.spandrel_import import import_spandrel

log = logging.getLogger(__name__)

SCALES = (2, 3, 4)
NESTS = ("params_ema", "params-ema", "params", "model_state_dict", "state_dict", "model", "net")
"""Top-level keys under which training code keeps the tensors, the better ones first."""
PREFIXES = ("module.", "netG.", "model.")
TRANSFORMERS = frozenset(
    "ATD CRAFT DAT DCTLSA DITN DRCT GRL HAT IPT OmniSR RGT SCUNet Swin2SR SwinIR Uformer FDAT".split()
)
"""spandrel's architectures that attend over tokens or windows."""


def load_teacher(
    source: str | Path,
    *,
    scale: int | None = None,
    name: str | None = None,
    architecture: str | None = None,
    value_range: float | None = None,
    bgr: bool = False,
) -> Teacher:
    """A teacher from a checkpoint's path or a name of the zoo (`teachers.zoo`), on the CPU in float32.

    `scale` is what the recipe wants and must be one that the checkpoint serves; it may be left out where the
    checkpoint serves one alone. `architecture` restricts the search to one. `value_range` (1 or 255) and `bgr`
    overrule what is known of the network, for checkpoints trained in other units.

    Raises InputError for a missing, truncated or unreadable file, one that holds more than tensors, an unknown
    architecture, and a scale that the checkpoint does not serve.
    """
    from teachers import zoo

    path, origin, perceptual = Path(source), str(source), False
    if not path.exists() and str(source) in zoo.ZOO:
        entry = zoo.ZOO[str(source)]
        name, origin, perceptual = name or entry.name, entry.url, entry.perceptual
        scale = entry.scale if scale is None else scale
        path = zoo.fetch(entry)
    where = f"teacher {name or path.stem} ({path})"
    if not path.is_file():
        remedy = f"Names of the zoo: {', '.join(sorted(zoo.ZOO))}."
        raise InputError(where, "a checkpoint file or a name of the zoo", "neither", remedy)
    checkpoint, metadata = read_checkpoint(path)
    if "faculty" in metadata:
        found = build_student(checkpoint, metadata["faculty"], where)
    else:
        found = build_network(unwrap(checkpoint, where), scale, architecture, where)
    network, facts = found
    if scale not in (None, facts["scale"]):
        raise InputError(where, f"scale {scale}", f"scale {facts['scale']}", "Name a checkpoint made for it.")
    if facts["scale"] not in SCALES:
        raise InputError(where, f"a scale of {SCALES}", f"scale {facts['scale']}")
    convention = facts.pop("convention")
    if value_range is not None or bgr:
        convention = Convention(value_range or convention.value_range, bgr, convention.luma)
    info = TeacherInfo(
        name=name or path.stem,
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=file_sha256(path),
        source=origin,
        perceptual=perceptual,
        **facts,
    )
    return Teacher(info, network, convention)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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

            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except MemoryError:
        raise
    except Exception as error:  # the bytes are foreign: unpickler, zip reader and safetensors raise all kinds
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> InputError:
    text = " ".join(str(error).split())
    if "TorchScript" in text:
        remedy = "Save its state_dict() from the program that made it."
        return InputError(str(path), "tensors only", "a TorchScript archive, which can run code", remedy)
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in text:
        asked = next(
            (word for word in text.split() if "." in word.strip(".,") and "/" not in word), "an object"
        )
        found = f"a pickle that asks for {asked.strip('.,')}, which can run code"
        remedy = "Do not open it elsewhere unless you trust its maker; ask for a safetensors file."
        return InputError(str(path), "tensors only", found, remedy)
    found = (
        f"a file of {path.stat().st_size} bytes that cannot be read ({type(error).__name__}: {text[:160]})"
    )
    return InputError(str(path), "a whole checkpoint", found, "Download or copy it again.")


def unwrap(checkpoint: Any, where: str) -> dict[str, Tensor]:
    """The flat state dict inside a checkpoint: nesting keys and prefixes of parallel wrappers taken away."""
    state = checkpoint
    while isinstance(state, Mapping):
        nested = next((state[nest] for nest in NESTS if isinstance(state.get(nest), Mapping)), None)
        if nested is None and len(state) == 1 and isinstance(only := next(iter(state.values())), Mapping):
            nested = only
        if nested is None:
            break
        state = nested
    if not isinstance(state, Mapping) or not state:
        raise InputError(where, "a state dict", type(state).__name__ if state else "an empty one")
    state = {str(key): value for key, value in state.items()}
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    if not all(isinstance(value, Tensor) for value in state.values()):
        odd = next(key for key, value in state.items() if not isinstance(value, Tensor))
        raise InputError(where, "a state dict of tensors", f"{type(state[odd]).__name__} under {odd!r}")
    return state


def build_network(
    state: dict[str, Tensor], scale: int | None, architecture: str | None, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    for native in NATIVES:
        adapted = native.adapt(state)
        if architecture in (None, native.architecture) and native.recognises(adapted):
            return build_native(native, adapted, scale, where)
    return build_spandrel(state, architecture, where)


def build_native(
    native: Native, state: State, scale: int | None, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    served = native.scales(state)
    if scale is None and len(served) > 1:
        remedy = "Add the scale; its tensors alone do not tell."
        raise InputError(
            where, f"a scale, for {native.architecture}", f"a checkpoint that fits {served}", remedy
        )
    chosen = served[0] if scale is None else scale
    if chosen not in served:
        expected, found = f"scale {scale}", f"scale {' or '.join(map(str, served))} ({native.architecture})"
        raise InputError(where, expected, found, "Name a checkpoint made for it.")
    network = native.build(state, chosen)
    load_strictly(network, state, native.architecture, where)
    facts = {
        "architecture": native.architecture,
        "scale": chosen,
        "minimum_side": native.minimum_side,
        "convention": Convention(value_range=native.value_range(state)),
    }
    return network, facts


def load_strictly(network: nn.Module, state: State, architecture: str, where: str) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        found = " ".join(str(error).split())[:400]
        raise InputError(where, f"the tensors of {architecture}", found) from None


class SpandrelNetwork(nn.Module):
    """spandrel's descriptor as a module. It clamps to [0, 1] and unpacks outputs that are not one tensor."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model = descriptor.model
        self._descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        return self._descriptor(x)


def build_spandrel(
    state: dict[str, Tensor], architecture: str | None, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    spandrel = import_spandrel()
    registry = spandrel.MAIN_REGISTRY
    tried = [native.architecture for native in NATIVES] + [arch.architecture.id for arch in registry]
    keys = f"{len(state)} tensors ({', '.join(list(state)[:4])}, ...)"
    support = next(
        (
            arch
            for arch in registry.architectures("detection")
            if architecture in (None, arch.architecture.id) and arch.detect(state)
        ),
        None,
    )
    if support is None:
        expected = "a known network" if architecture is None else f"a checkpoint of {architecture}"
        raise InputError(where, expected, keys, f"Tried: {', '.join(sorted(tried))}.")
    id = str(support.architecture.id)
    try:
        descriptor = support.architecture.load(state)
    except Exception as error:  # third-party loaders guess sizes from shapes and fail in their own ways
        found = f"{keys}; {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(where, f"the tensors of {id}", found) from None
    channels = (getattr(descriptor, "input_channels", 0), getattr(descriptor, "output_channels", 0))
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels not in ((3, 3), (1, 1)):
        raise InputError(
            where, "a network from RGB or luminance to the same", f"{id} with channels {channels}"
        )
    size = descriptor.size_requirements
    facts = {
        "architecture": id,
        "scale": int(descriptor.scale),
        "minimum_side": max(1, size.minimum),
        "multiple_of": size.multiple_of,
        "convolutional": id not in TRANSFORMERS,
        "convention": Convention(luma=channels == (1, 1)),
    }
    return SpandrelNetwork(descriptor), facts


def build_student(state: dict[str, Tensor], text: str, where: str) -> tuple[nn.Module, dict[str, Any]]:
    """One of Faculty's own students, described by the JSON under the metadata key `faculty`."""
    import students

    try:
        described = json.loads(text)
        name, scale, options = described["architecture"], int(described["scale"]), dict(described["options"])
    except (ValueError, TypeError, KeyError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(where, "JSON with architecture, scale and options as metadata", found) from None
    network = students.build(name, scale, **options)
    load_strictly(network, state, name, where)
    return network, {"architecture": name, "scale": scale, "convention": Convention()}
