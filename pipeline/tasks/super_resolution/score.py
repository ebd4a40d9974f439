"""Scores on benchmark sets: bicubic, teachers, their fusion and students, each picture once, under the
published protocol.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load as load_tensors

from pipeline.cache.fingerprint import file_sha256
from pipeline.cache.store import Store
from pipeline.cost import multiply_adds, parameters
from pipeline.data.decode import decode_stored
from pipeline.data.degrade import downscale, modcrop, upscale
from pipeline.data.pairs import overlap
from pipeline.data.views import whole
from pipeline.deploy import perceptual
from pipeline.deploy.evaluate import predict
from pipeline.metrics import psnr_rgb, psnr_y, ssim_y, to_y
from pipeline.recipe.degradation import Chain
from pipeline.recipe.fusion import Aggregate
from pipeline.tasks.super_resolution.fuse import fuse_levels
from pipeline.tasks.super_resolution.teacher_facts import TeacherFacts, load
from pipeline.training import weights
from students import build, deployed

Role = Literal["bicubic", "beside", "teacher", "fused", "student"]
COST_SIDE = 48
MOST = 99.0
"""dB: what pictures without a difference count."""
BOOKS = "scores/2"
"""Where known scores lie, with the version of what is kept: in the first, two models of one name could share a file."""


@dataclass(frozen=True, slots=True)
class Model:
    """Something that turns LR into HR, by value."""

    name: str
    """How tables call it: no other of a run is called so."""
    role: Role
    identity: str
    """Equal identities give equal pictures. Whatever is kept of a model is kept under it, never under its name."""
    facts: TeacherFacts | None = None
    weights: tuple[str, str] | None = None
    """(store, file) of a student's or an aggregation network's safetensors."""
    fusion: dict[str, Any] | None = None
    """Of the fused: {"kind", "weights", "config", "teachers": their identities in order}."""
    row: str = ""
    """The table's row, which the seeds of one training share; empty: a row of its own."""

    @property
    def group(self) -> str:
        """The name of its row."""
        return self.row or self.name


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """Score these models on one picture. Teachers needed by the fused one are in the list before it."""

    set_name: str
    picture: str
    path: str
    scale: int
    models: tuple[Model, ...]
    wanted: tuple[str, ...]
    """Identities whose scores are asked for."""
    keep_pictures: bool = False
    lr: str = ""
    """Where the picture's LR lies; empty: it is made of HR by MATLAB's bicubic."""
    moved: tuple[int, int] = (0, 0)
    """Whole LR pixels by which that LR is moved: models and HR are compared on what the two share."""
    reference: str = ""
    """Identity of the model, one of `models`, that the others are compared with; empty: none."""
    degradation: str | Chain = "bicubic"
    """How LR is made of the picture."""
    perceptual: tuple[str, ...] = ()
    """Keys of the perceptual distances to HR that are asked for too."""

    def run(self, device: str = "cpu") -> Scored:
        stored, grey = decode_stored(self.path)
        hr = modcrop(stored, self.scale)
        lr = self._lr(hr)
        if self.moved != (0, 0):
            lr, hr = (np.ascontiguousarray(p) for p in overlap(lr, hr, self.moved, self.scale))
        pictures: dict[str, np.ndarray] = {}
        for model in self.models:
            pictures[model.identity] = self._picture(model, lr, hr, pictures, device)
        scores = {
            key: (
                psnr_y(pictures[key], hr, self.scale, grey),
                ssim_y(pictures[key], hr, self.scale, grey),
            )
            for key in self.wanted
        }
        against = {
            key: near(pictures[key], pictures[self.reference], lr, self.scale)
            for key in self.wanted
            if self.reference and key != self.reference
        }
        seen = {key: perceptual.measured(self.perceptual, pictures[key], hr, device) for key in self.wanted}
        kept = {"LR": lr, **pictures, "HR": hr} if self.keep_pictures else {}
        return Scored(self.set_name, self.picture, scores, kept, against, seen)

    def _lr(self, hr: np.ndarray) -> np.ndarray:
        """LR of a mod-cropped HR picture: of a pair as it is, else made."""
        if self.lr:
            return decode_stored(self.lr)[0]
        return whole(hr, file_sha256(self.path), self.degradation, self.scale)

    def _picture(
        self, model: Model, lr: np.ndarray, hr: np.ndarray, pictures: dict[str, np.ndarray], device: str
    ) -> np.ndarray:
        if model.role == "bicubic":
            return upscale(lr, self.scale)
        if model.role != "fused":
            return predict(upscaler(model, self.scale, device), lr, self.scale, device)
        assert model.fusion is not None
        outputs = [pictures[key] for key in model.fusion["teachers"]]
        if model.fusion["kind"] != "aggregate":
            return fuse_levels(
                model.fusion["kind"], [o[None] for o in outputs], hr[None], model.fusion["weights"], lr[None]
            )[0]
        network = upscaler(model, self.scale, device)
        stacked = torch.from_numpy(np.stack(outputs)).to(device).permute(0, 3, 1, 2).float()[None] / 255
        return predict(lambda _: network(stacked), lr, self.scale, device)


@dataclass(frozen=True, slots=True)
class Scored:
    """One picture's scores {identity: (PSNR dB, SSIM)} and, where asked for, its pictures: LR, HR, and by identity."""

    set_name: str
    picture: str
    scores: dict[str, tuple[float, float]]
    pictures: dict[str, np.ndarray]
    against: dict[str, tuple[float, float, float]]
    """{identity: (fidelity, consistency, sharpness)}, where there is a reference."""
    perceptual: dict[str, dict[str, float]]
    """{identity: {key: distance to HR}}, where they are asked for and can be had."""


def near(sr: np.ndarray, reference: np.ndarray, lr: np.ndarray, scale: int) -> tuple[float, float, float]:
    """How near (H, W, 3) uint8 is to another model's picture: (fidelity dB, consistency dB, sharpness).

    Fidelity: PSNR-Y against it; consistency: of the picture, shrunk again, against LR, both at most 99; sharpness:
    gradient energy of luma over that of the other.
    """
    fidelity = min(psnr_y(sr, reference, scale), MOST)
    consistency = min(psnr_rgb(downscale(sr, scale), lr, 2), MOST)
    return fidelity, consistency, _energy(sr) / max(_energy(reference), 1e-9)


def _energy(picture: np.ndarray) -> float:
    """Mean squared difference of neighbouring grey levels of luma."""
    y = to_y(picture).astype(np.float64)
    return float(np.square(np.diff(y, axis=0)).mean() + np.square(np.diff(y, axis=1)).mean())


_LOADED: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {}


def upscaler(model: Model, scale: int, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The callable behind a model; kept for the next picture in this process."""
    key = (model.identity, device)
    if key not in _LOADED:
        _LOADED[key] = _load(model, scale, device)
    return _LOADED[key]


def _load(model: Model, scale: int, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if model.facts is not None:
        teacher = load(model.facts, device)
        return lambda lr: teacher.upscale(lr, tile=None)
    assert model.weights is not None
    data = weights.read(Store.open(model.weights[0]), model.weights[1])
    if model.role == "fused":
        from pipeline.methods.mtkd import network

        assert model.fusion is not None
        net: torch.nn.Module = network(
            Aggregate(**model.fusion["config"]), len(model.fusion["teachers"]), scale
        )
    else:
        facts = student_facts(data)
        net = build(facts["architecture"], scale, **facts["options"])
    net.load_state_dict(load_tensors(data))
    return deployed(net).to(device).eval()


def student_facts(data: bytes) -> dict[str, Any]:
    """What a student's safetensors say of themselves."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["faculty"])


def cost(model: Model, scale: int) -> tuple[int, int | None] | None:
    """(parameters, multiply-adds for one 48 x 48 LR picture) of a single network; None for bicubic and fusions."""
    if model.facts is not None:
        return model.facts.parameters, model.facts.multiply_adds
    if model.role != "student":
        return None
    net = upscaler(model, scale, "cpu")
    assert isinstance(net, torch.nn.Module)
    return parameters(net), multiply_adds(net, (1, 3, COST_SIDE, COST_SIDE))
