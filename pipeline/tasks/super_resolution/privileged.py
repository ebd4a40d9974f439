"""PISR's teacher as a file: what its weights must be before a student may learn from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from pipeline.cache.store import Store
from pipeline.errors import InputError
from pipeline.recipe.methods import PISR
from pipeline.recipe.recipe import Recipe
from pipeline.training import weights as trained
from students import build
from students.colour import colours_of
from teachers.privileged import Encoder, Privileged


def decoder_of(recipe: Recipe) -> Callable[[], nn.Module]:
    """Builds the decoder of PISR's teacher: the student's network, or the larger one."""
    larger = recipe.method.larger if isinstance(recipe.method, PISR) else {}
    return partial(build, recipe.student.name, recipe.scale, **{**recipe.student.options, **larger})


def load_privileged(recipe: Recipe, weights: str) -> nn.Module:
    """PISR's teacher from `weights`: the recipe's checkpoint, or the address of its training's folder.

    Raises InputError where it was trained for another scale, student or kind of teacher.
    """
    method = recipe.method
    assert isinstance(method, PISR)
    if method.checkpoint:
        data = Path(weights).read_bytes()
    else:
        data = trained.read(Store.open(weights), trained.WEIGHTS)
    try:
        state = load(data)
        facts = json.loads(_metadata(data).get("faculty", "{}"))
    except (SafetensorError, ValueError) as error:
        raise InputError(weights, "the weights.safetensors of PISR's phase 1", str(error)) from None
    wanted = {
        "kind": "teacher",
        "teacher": method.teacher,
        "architecture": recipe.student.name,
        "scale": recipe.scale,
    }
    wrong = [f"{k} {facts.get(k, 'unknown')!r}" for k, v in wanted.items() if facts.get(k) != v]
    if wrong:
        expected = ", ".join(f"{k} {v!r}" for k, v in wanted.items())
        raise InputError(weights, f"a teacher with {expected}", ", ".join(wrong))
    decoder = decoder_of(recipe)()
    network = (
        decoder
        if method.teacher == "larger"
        else Privileged(Encoder(recipe.scale, colours=colours_of(decoder)), decoder)
    )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            weights, f"a decoder with the student's options {recipe.student.options}", reason
        ) from None
    return network.eval()


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata in the head of a safetensors file."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__") or {}
