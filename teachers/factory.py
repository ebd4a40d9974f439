"""Teachers from code of one's own: `factory: package.module:function` returns the network."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.data.files import there
from pipeline.errors import InputError, reason
from teachers.descriptor import Teacher, TeacherInfo

SIDE = 16
"""Of the picture by which the scale is found."""
IMPORTED = "Put its folder on PYTHONPATH, on every machine of a cluster."


def function_of(place: str) -> Callable[..., Any]:
    """The function at `package.module:function`. Raises InputError where there is none."""
    where, (module, _, name) = f"factory {place}", place.partition(":")
    if not module or not name:
        raise InputError(where, "package.module:function", place)
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        # In words of its own: what an import raises is, in a worker, taken for a node without Faculty.
        raise InputError(
            where, "a function that can be imported", f"no module {error.name} here", IMPORTED
        ) from None
    except Exception as error:  # whatever somebody's module raises while it is imported
        raise InputError(where, "a function that can be imported", reason(error), IMPORTED) from error
    if not callable(found):
        raise InputError(where, "a function", type(found).__name__)
    return found


def source_of(place: str) -> Path:
    """The file that the function stands in. Raises InputError for one without a file."""
    try:
        found = Path(inspect.getsourcefile(inspect.unwrap(function_of(place))) or "")
    except TypeError:
        found = Path()
    if not found.is_file():
        raise InputError(f"factory {place}", "a function of a Python file", "one without")
    return found


def sha256(place: str, options: Mapping[str, Any]) -> str:
    """Of the function's file and its options; of the files that options name, where they are there.

    Modules that the file imports are not looked at. Raises InputError for options that JSON has not.
    """
    digest = hashlib.sha256(source_of(place).read_bytes())
    try:
        digest.update(json.dumps({"function": place.partition(":")[2], **options}, sort_keys=True).encode())
    except TypeError as error:
        expected = "options of texts, numbers, lists and tables"
        raise InputError(f"factory {place}", expected, reason(error), "Write it as a text.") from None
    for text in _texts(options):
        if there(text) and Path(text).is_file():
            with Path(text).open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    """Every text in options, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def call(place: str, options: Mapping[str, Any], where: str) -> nn.Module:
    """The network that a factory makes. What it draws at random is the same each time.

    Raises InputError naming `where` where it raises or returns no module.
    """
    function = function_of(place)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # an actor makes the network that the gate has seen
            network = function(**options)
    except Exception as error:  # as above
        raise InputError(where, f"a network of options {dict(options)}", reason(error)) from error
    if not isinstance(network, nn.Module):
        raise InputError(where, "a torch.nn.Module", type(network).__name__)
    return network


def make(place: str, options: Mapping[str, Any], *, scale: int, name: str) -> Teacher:
    """The teacher that a factory makes, on the CPU in float32. What it draws at random is the same each time.

    Raises InputError where it raises, returns no module, or one that does not take (N, 3, h, w) in [0, 1] to
    (N, 3, scale*h, scale*w).
    """
    where = f"teacher {name} (factory {place})"
    network = call(place, options, where)
    info = TeacherInfo(
        name=name,
        architecture=place.partition(":")[2],
        scale=scale,
        parameters=sum(p.numel() for p in network.parameters()),
        sha256=sha256(place, options),
        source=place,
        convolutional=False,
    )
    try:
        teacher = Teacher(info, network)
        teacher(torch.full((1, 3, SIDE, SIDE), 0.5))
    except InputError as error:
        raise InputError(where, error.expected, error.found, error.remedy) from None
    except Exception as error:  # as above
        raise InputError(where, f"a network of pictures (N, 3, {SIDE}, {SIDE})", reason(error)) from error
    return teacher
