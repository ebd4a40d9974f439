"""Teachers made elsewhere: what a recipe says of one, as a network by value and the bytes that it is opened from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.cache.fingerprint import fingerprint
from pipeline.cost import multiply_adds, parameters
from pipeline.errors import InputError
from pipeline.tasks.recognition.recipe import Recognition, RecognitionTeacher
from pipeline.tasks.recognition.settings import Boundary as Asked
from pipeline.training.weights import pack
from teachers import factory
from teachers.checkpoints import read_checkpoint
from teachers.classifier import (
    PLAIN,
    Boundary,
    Public,
    columns_of,
    open_classifier,
    timm_boundary,
    timm_classifier,
)
from teachers.networks import cifar_resnet
from teachers.unwrapping import unwrap


@dataclass(frozen=True, slots=True)
class Found:
    """A classifier or an embedder made elsewhere."""

    public: Public
    data: bytes
    """Its file in the cache."""
    facts: dict[str, Any]
    """`name`, `options`, `embedding` (its width), `layer` (before which that is taken; None where the network gives one
    itself), `parameters`, `multiply_adds` of one picture or None.
    """
    identity: str

    @property
    def embeds(self) -> bool:
        """Whether it gives no logits."""
        return self.public.embeds


def present(spec: RecognitionTeacher) -> None:
    """Refuse, before others are trained, one whose function or file is not there. Raises InputError."""
    if spec.factory:
        factory.function_of(spec.factory)
    if spec.checkpoint and not Path(spec.checkpoint).is_file():
        raise InputError(spec.checkpoint, "a checkpoint", "no such file")


def found_elsewhere(spec: RecognitionTeacher, recipe: Recognition, classes: Sequence[str]) -> Found | None:
    """The network of a recipe's teacher, an embedder for verification and retrieval; None where it is one of ours.

    Raises InputError naming the file, and both lists where its classes are not the data's.
    """
    embeds = spec.embedder or recipe.identities
    made = _read(spec, embeds)
    if made is None:
        return None
    public, data, name, known = made
    where = spec.checkpoint or f"teacher {spec.label}"
    if recipe.task != "classification" and not recipe.identities:
        raise InputError(where, f"a network of this project for {recipe.task}", "a network made elsewhere")
    if recipe.cache.features != "none":
        raise InputError(
            where, "a network that is trained here, for cache.features", "a network made elsewhere"
        )
    if embeds:
        public = replace(public, facts={**public.facts, "embeds": True})
    size = recipe.hr_size
    network = open_classifier(public, data, where, size)
    if network.embeds and not embeds:  # it says so itself
        public = replace(public, facts={**public.facts, "embeds": True})
    asked = classes and not network.embeds
    columns = columns_of(where, network.answers, spec.classes, classes) if asked else ()
    counts = known or {
        "parameters": parameters(network),
        "multiply_adds": multiply_adds(network, (1, 3, *size)),
    }
    facts = {"name": name, "options": {}, "embedding": network.width, "layer": network.layer, **counts}
    said = {"kind": public.kind, "facts": public.facts, "columns": columns, "boundary": str(public.boundary)}
    place = public.facts.get("place")
    content = factory.sha256(place, public.facts["options"]) if place else hashlib.sha256(data).hexdigest()
    return Found(
        replace(public, columns=columns), data, facts, fingerprint({**said, "content": content})[:16]
    )


def _read(spec: RecognitionTeacher, embeds: bool) -> tuple[Public, bytes, str, dict[str, Any]] | None:
    """(network, bytes, name, counts where they are known without it)."""
    bare = 0 if embeds else None
    facts: dict[str, Any]
    if spec.factory:
        facts = {"place": spec.factory, "options": spec.options}
        return Public("factory", facts, _boundary(spec.input)), b"", spec.label, {}
    if spec.timm and spec.pretrained:
        network = timm_classifier(spec.timm, bare, pretrained=True)
        facts = {"name": spec.timm, **({"classes": 0} if embeds else {})}
        boundary = _boundary(spec.input, timm_boundary(network))
        return Public("timm", facts, boundary), pack(network.state_dict()), spec.timm, {}
    if not spec.checkpoint:
        return None
    path = Path(spec.checkpoint)
    if not path.is_file():
        raise InputError(spec.checkpoint, "a checkpoint", "no such file")
    if path.suffix.lower() == ".onnx":
        return _onnx(spec, path, embeds)
    if spec.timm:
        own = timm_classifier(spec.timm, bare)
        head = f"{own.default_cfg['classifier']}.weight"  # type: ignore[index, union-attr]
        wanted = own.state_dict().keys()
        state = unwrap(
            read_checkpoint(path)[0],
            spec.checkpoint,
            lambda state: wanted <= state.keys() if embeds else state.keys() == wanted,
            expected=f"the weights of timm's {spec.timm}",
            remedy=lambda: "Name in `timm` the network that the file was made with.",
        )
        facts = {"name": spec.timm, "classes": 0 if embeds else len(state[head])}
        if embeds:  # its file may have a head
            state = {name: state[name] for name in wanted}
        return Public("timm", facts, _boundary(spec.input, timm_boundary(own))), pack(state), spec.timm, {}
    tensors = read_checkpoint(path)[0]
    try:
        state = unwrap(
            tensors, spec.checkpoint, cifar_resnet.recognised, expected="a CIFAR ResNet", remedy=lambda: ""
        )
    except InputError:
        return None  # one of ours, which says itself what does not fit
    boundary = _boundary(spec.input, Boundary(None, *cifar_resnet.STATISTICS))
    return Public("cifar_resnet", {}, boundary), pack(state), spec.label, {}


def _onnx(spec: RecognitionTeacher, path: Path, embeds: bool) -> tuple[Public, bytes, str, dict[str, Any]]:
    from teachers import onnx_graph
    from teachers.onnx_classifier import prepared

    data, facts, size = prepared(path, {str(k): v for k, v in spec.outputs.items()}, embeds)
    boundary = _boundary(spec.input, Boundary(size))
    shape = (1, 3, *(boundary.size or (32, 32)))
    counts = {
        "parameters": onnx_graph.parameters(path),
        "multiply_adds": onnx_graph.multiply_adds(path, shape) if boundary.size else None,
    }
    return Public("onnx", facts, boundary), data, spec.label, counts


def _boundary(asked: Asked, own: Boundary | None = None) -> Boundary:
    own = own or Boundary()
    size = (asked.size, asked.size) if isinstance(asked.size, int) else asked.size
    if asked.value_range != 1.0 and asked.mean is None and asked.std is None:
        return Boundary(size or own.size, *PLAIN, asked.value_range)
    return Boundary(size or own.size, asked.mean or own.mean, asked.std or own.std, asked.value_range)
