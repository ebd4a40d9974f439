"""From a checkpoint file, or a name of the zoo, to a teacher.

A checkpoint's network is found by its keys: Faculty's own students by their metadata, then our own networks
(`teachers.networks`), then spandrel's. All are loaded strictly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.errors import InputError, reason
from teachers import onnx_graph, zoo
from teachers.checkpoints import checkpoint_sha256, read_checkpoint
from teachers.descriptor import PLAIN, Convention, Teacher, TeacherInfo
from teachers.networks import NATIVES
from teachers.networks.native import Native, State
from teachers.onnx_network import OnnxNetwork
from teachers.spandrel_import import import_spandrel
from teachers.unwrapping import unwrap

SCALES = (1, 2, 3, 4)
ONNX = "onnx"
"""How the networks of ONNX files are called: a graph has no name of its own that tells."""
ATTENDING = frozenset(
    ("ATD", "CRAFT", "DAT", "DCTLSA", "DITN", "DRCT", "FDAT", "GRL", "HAT", "IPT", "OmniSR", "RGT", "SCUNet")
    + ("Swin2SR", "SwinIR", "Uformer")
)
"""spandrel's architectures that attend over tokens or windows."""


@dataclass(frozen=True, slots=True)
class Found:
    """A network with its weights and what its checkpoint tells about it."""

    network: nn.Module
    architecture: str
    scale: int
    parameters: int
    minimum_side: int = 1
    multiple_of: int = 1
    convolutional: bool = True
    convention: Convention = PLAIN
    others: tuple[Found, ...] = ()
    """The same weights read for other scales, where only one of those that fit is right."""


def load_teacher(
    source: str | Path,
    *,
    scale: int | None = None,
    name: str | None = None,
    architecture: str | None = None,
    value_range: float | None = None,
    bgr: bool = False,
    perceptual: bool = False,
) -> Teacher:
    """A teacher from the path of a checkpoint or an ONNX file, or a name of the zoo, on the CPU in float32.

    `scale` is what the recipe wants and must be one that the checkpoint serves; it may be left out where the
    checkpoint serves one alone. `architecture` restricts the search to one. `value_range` (1 or 255) and `bgr`
    overrule what is known of the network, for checkpoints trained in other units. `perceptual` says that it was
    trained adversarially (known for the zoo's).

    Raises InputError for a missing, truncated or unreadable file, one that holds more than tensors, an unknown
    architecture, and a scale that the checkpoint does not serve.
    """
    path, origin = Path(source), str(source)
    if not path.exists() and origin in zoo.ZOO:
        entry = zoo.ZOO[origin]
        name, origin, perceptual = name or entry.name, entry.url, perceptual or entry.perceptual
        scale, architecture = scale or entry.scale, architecture or entry.architecture
        path = zoo.fetch(entry)
    where = f"teacher {name or path.stem} ({path})"
    if not path.is_file():
        remedy = f"Names of the zoo: {', '.join(sorted(zoo.ZOO))}."
        raise InputError(where, "a checkpoint file or a name of the zoo", "neither", remedy)
    found = _onnx(path) if path.suffix.lower() == ".onnx" else _checkpoint(path, scale, architecture, where)
    if scale not in (None, found.scale):
        raise _wrong_scale(where, scale, found.architecture, (found.scale,))
    if found.scale not in SCALES:
        raise InputError(where, f"a scale of {SCALES}", f"{found.scale} ({found.architecture})")
    sha256 = checkpoint_sha256(path)
    perceptual = perceptual or any(entry.perceptual and entry.sha256 == sha256 for entry in zoo.ZOO.values())

    def teacher(found: Found, variants: tuple[Teacher, ...] = ()) -> Teacher:
        convention = found.convention
        if value_range is not None or bgr:
            convention = Convention(value_range or convention.value_range, bgr, convention.luma)
        info = TeacherInfo(
            name=name or path.stem,
            architecture=found.architecture,
            scale=found.scale,
            parameters=found.parameters,
            sha256=sha256,
            source=origin,
            minimum_side=found.minimum_side,
            multiple_of=found.multiple_of,
            convolutional=found.convolutional,
            perceptual=perceptual,
        )
        return Teacher(info, found.network, convention, variants)

    return teacher(found, tuple(teacher(other) for other in found.others))


def _checkpoint(path: Path, scale: int | None, architecture: str | None, where: str) -> Found:
    """The network of a file of tensors."""
    checkpoint, metadata = read_checkpoint(path)
    if "faculty" in metadata:
        return _student(checkpoint, metadata["faculty"], where)
    state = unwrap(
        checkpoint,
        where,
        lambda state: _recognised(state, architecture),
        expected=f"a checkpoint of {architecture or 'a known network'}",
        remedy=lambda: f"Known networks: {', '.join(_known())}.",  # spandrel is slow to import
    )
    return _network(state, scale, architecture, where)


def _onnx(path: Path) -> Found:
    """The network of a graph. Precision and layout are ONNX Runtime's own."""
    network = OnnxNetwork(path)
    convention = Convention(luma=network.run.channels == 1)
    count = onnx_graph.parameters(path)
    return Found(network, ONNX, network.scale, count, convolutional=False, convention=convention)


def _wrong_scale(where: str, scale: int | None, architecture: str, served: tuple[int, ...]) -> InputError:
    found = f"scale {' or '.join(map(str, served))} ({architecture})"
    return InputError(where, f"scale {scale}", found, "Name a checkpoint made for the recipe's scale.")


def _recognised(state: State, architecture: str | None) -> bool:
    """Whether a flat state dict is a network (that one, where it is named) that we or spandrel can build."""
    return (
        any(architecture in (None, n.architecture) and n.recognises(n.adapt(state)) for n in NATIVES)
        or _support(state, architecture) is not None
    )


def _known() -> list[str]:
    natives = {native.architecture for native in NATIVES}
    return sorted(natives | {str(arch.architecture.id) for arch in import_spandrel().MAIN_REGISTRY})


def _support(state: State, architecture: str | None) -> Any | None:
    """spandrel's architecture that detects these keys."""
    for arch in import_spandrel().MAIN_REGISTRY.architectures("detection"):
        if architecture in (None, arch.architecture.id) and arch.detect(state):
            return arch
    return None


def _network(state: dict[str, Tensor], scale: int | None, architecture: str | None, where: str) -> Found:
    for native in NATIVES:
        adapted = native.adapt(state)
        if architecture in (None, native.architecture) and native.recognises(adapted):
            return _native(native, adapted, scale, sum(value.numel() for value in state.values()), where)
    return _spandrel(state, architecture, where)


def _native(native: Native, state: State, scale: int | None, parameters: int, where: str) -> Found:
    served = native.scales(state)
    if scale is None and len(served) > 1:
        found = f"{native.architecture} weights that fit scales {', '.join(map(str, served))}"
        raise InputError(where, "the scale to use", found, "Add the scale: the file alone does not tell.")
    chosen = served[0] if scale is None else scale
    if chosen not in served:
        raise _wrong_scale(where, chosen, native.architecture, served)

    def at(scale: int, others: tuple[Found, ...] = ()) -> Found:
        network = native.build(state, scale)
        _load_strictly(network, state, native.architecture, where)
        convention = Convention(value_range=native.value_range(state))
        side = native.minimum_side
        return Found(
            network, native.architecture, scale, parameters, side, convention=convention, others=others
        )

    return at(chosen, tuple(at(other) for other in served if native.ambiguous and other != chosen))


def _load_strictly(network: nn.Module, state: State, architecture: str, where: str) -> None:
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise InputError(where, f"the tensors of {architecture}", reason(error)) from None


class SpandrelNetwork(nn.Module):
    """spandrel's descriptor as a module. It clamps to [0, 1] and unpacks outputs that are not one tensor."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model = descriptor.model
        self._descriptor = descriptor

    def forward(self, x: Tensor) -> Tensor:
        return self._descriptor(x)

    def unclamped(self, x: Tensor) -> Tensor:
        """What the network gives, for one whose white is not 1."""
        out: Tensor = self._descriptor._call_fn(self.model, x)
        return out


def _spandrel(state: dict[str, Tensor], architecture: str | None, where: str) -> Found:
    spandrel = import_spandrel()
    keys = f"{len(state)} tensors ({', '.join(list(state)[:4])}, ...)"
    support = _support(state, architecture)
    assert support is not None, "only what is recognised is loaded"
    name = str(support.architecture.id)
    try:
        descriptor = support.architecture.load(state)
    except Exception as error:  # third-party loaders guess sizes from shapes and fail in their own ways
        raise InputError(where, f"the tensors of {name}", f"{keys}; {reason(error)}") from None
    channels = (getattr(descriptor, "input_channels", 0), getattr(descriptor, "output_channels", 0))
    if not isinstance(descriptor, spandrel.ImageModelDescriptor) or channels not in ((3, 3), (1, 1)):
        raise InputError(where, "a network from RGB or luminance to the same", f"{name}, channels {channels}")
    if name == "RCAN" and "sub_mean.bias" in state and float(state["sub_mean.bias"].abs().max()) < 1.0:
        descriptor.model.rgb_range = 1  # spandrel takes 255 for granted; the mean shift tells
    size = descriptor.size_requirements
    return Found(
        SpandrelNetwork(descriptor),
        name,
        int(descriptor.scale),
        sum(parameter.numel() for parameter in descriptor.model.parameters()),
        minimum_side=max(1, size.minimum),
        multiple_of=size.multiple_of,
        convolutional=name not in ATTENDING,
        convention=Convention(luma=channels == (1, 1)),
    )


def _student(state: dict[str, Tensor], described: str, where: str) -> Found:
    """One of Faculty's own students, from the JSON under the metadata key `faculty`."""
    import students

    try:
        facts = json.loads(described)
        name, scale, options = facts["architecture"], int(facts["scale"]), dict(facts["options"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            where, "JSON with architecture, scale and options as metadata", reason(error)
        ) from None
    network = students.build(name, scale, **options)
    _load_strictly(network, state, name, where)
    parameters = sum(parameter.numel() for parameter in students.deployed(network).parameters())
    attends = name == "swinir_light" or name.removeprefix("spandrel:") in ATTENDING
    return Found(network, name, scale, parameters, convolutional=not attends)
