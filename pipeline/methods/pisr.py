"""PISR: learning with privileged information (Lee, Lee, Kim, Ham; ECCV 2020; arXiv 2007.07524).

Phase 1 (`teacher`, a training of its own that students share) trains an encoder E that sees the HR picture y, and a
decoder G_T of the student's architecture:
    L_T = mean|G_T(E(y)) - y| + lambda_T * mean|E(y) - x|,   lambda_T = 1e-4, x the bicubic LR
Phase 2 (`pisr`): the student starts as G_T and follows its features f_T at one layer:
    L_S = mean|S(x) - y| + lambda_S * VID(f_S, f_T),   lambda_S = 1e-6

Differences from the released code: the teacher runs without gradients and only as far as the compared layer; the last
step's weights count, and are evaluated; the encoder starts as a box filter. Ours, off by default: `distill`, MTKD's
loss on the fused target of a recipe's teachers, and `relational`, what the features of a batch are to each other. A
luma student is trained on luma, as published; an RGB one on RGB.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.losses.pixel import l1
from pipeline.losses.relational import pooled_relations
from pipeline.losses.variational import VID
from pipeline.losses.wavelet import WaveletLoss
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, masked_hr, seen_by
from pipeline.methods.taps import Tap, Until, channels, layer_of
from pipeline.recipe.methods import PISR
from pipeline.recipe.settings import Train
from students.colour import colours_of, grey
from teachers.privileged import Encoder, Privileged

TEACHER = "teacher"
"""Name of phase 1 and of what it hands on."""


def teacher(method: PISR, settings: Train, make: Callable[[], nn.Module], scale: int) -> list[PhaseBuilder]:
    """Phase 1; `make` builds the decoder, or the whole teacher where it is `larger`."""

    def build(_: Modules) -> Phase:
        return (_privileged if method.teacher == "privileged" else _larger)(method, settings, make(), scale)

    return [build]


def _privileged(method: PISR, settings: Train, decoder: nn.Module, scale: int) -> Phase:
    network = Privileged(Encoder(scale, colours=colours_of(decoder)), decoder)
    seen, code = seen_by(decoder), Tap(network, "encoder")

    def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
        batch = seen(batch)
        terms = {"hr": l1(modules[TEACHER](batch["hr"]), batch["hr"])}
        return terms | {"imitation": l1(code.take(), batch["lr"])}

    return Phase(
        name=TEACHER,
        modules={TEACHER: network},
        sources=("lr", "hr"),
        losses=losses,
        weights={"hr": 1.0, "imitation": method.imitation},
        settings=method.pretrain or settings,
        artefact=TEACHER,
        inputs=("hr",),
        require_hr=True,
        shown=_code,
    )


def _code(network: nn.Module, hr: Tensor) -> Tensor:
    """What the encoder hands over, as an RGB picture of LR size, stretched to [0, 1]: its brightness is its own."""
    assert isinstance(network, Privileged)
    code = network.code(hr)
    low, high = code.amin((1, 2, 3), keepdim=True), code.amax((1, 2, 3), keepdim=True)
    code = (code - low) / (high - low).clamp_min(1e-6)
    code = code * (219 / 255) + 16 / 255 if code.shape[1] == 1 else code
    return grey(code) if code.shape[1] == 1 else code


def _larger(method: PISR, settings: Train, network: nn.Module, scale: int) -> Phase:
    seen = seen_by(network)

    def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
        batch = seen(batch)
        return {"hr": l1(modules[TEACHER](batch["lr"]), batch["hr"])}

    return Phase(
        name=TEACHER,
        modules={TEACHER: network},
        sources=("lr", "hr"),
        losses=losses,
        weights={"hr": 1.0},
        settings=method.pretrain or settings,
        artefact=TEACHER,
        require_hr=True,
    )


def pisr(method: PISR, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """Phase 2; the artefact `teacher` is phase 1's network. Raises InputError for a layer that the student lacks."""
    wavelet = WaveletLoss(low=1 / 3)
    guided = method.vid != 0 or method.relational != 0
    if guided:
        layer_of(student(), method.layer)

    def build(artefacts: Modules) -> Phase:
        network = student()
        taught = copy.deepcopy(artefacts[TEACHER]).requires_grad_(False)
        decoder = taught.decoder if isinstance(taught, Privileged) else taught
        if method.init:
            start(network, decoder)
        modules, frozen = {"student": network}, {}
        guide: _Guide | None = None
        if guided:
            guide = _Guide(method, network, taught, decoder)
            frozen[TEACHER] = taught
            if method.vid != 0:
                modules["vid"] = guide.vid()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            sr = modules["student"](batch["lr"])
            terms = {"hr": masked_hr(sr, batch)}
            if guide is not None:
                f_s, f_t = guide.tap.take(), guide.features(batch)
                if method.vid != 0:
                    terms["vid"] = modules["vid"](f_s, f_t)
                if method.relational != 0:
                    terms["relational"] = pooled_relations(f_s, f_t)
            if method.distill != 0:
                terms["distill"] = wavelet(sr, batch["target"])
            return terms

        return Phase(
            name="distill",
            modules=modules,
            sources=("lr", "hr") if method.distill == 0 else ("lr", "hr", "target"),
            losses=losses,
            weights={
                "hr": method.hr,
                "vid": method.vid,
                "relational": method.relational,
                "distill": method.distill,
            },
            settings=settings,
            artefact="student",
            require_hr=guided or method.distill == 0,
            frozen=frozen,
        )

    return [build]


class _Guide:
    """The teacher's features for a batch, and the student's beside them."""

    def __init__(self, method: PISR, student: nn.Module, taught: nn.Module, decoder: nn.Module) -> None:
        self.method, self.taught = method, taught
        self.layer = layer_of(student, method.layer)
        self.widths = channels(student, self.layer), channels(decoder, self.layer)
        self.until, self.tap = Until(decoder, self.layer), Tap(student, self.layer)

    def vid(self) -> VID:
        """The loss with untrained heads."""
        method = self.method
        return VID(*self.widths, distribution=method.distribution, scale_per=method.scale_per)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """f_T (B, C, h, w), no gradient."""
        if isinstance(self.taught, Privileged):
            return self.until(self.taught.code(batch["hr"]))
        return self.until(batch["lr"])


def start(student: nn.Module, decoder: nn.Module) -> None:
    """Copy the decoder's weights into the student. Raises InputError where they are not of one architecture."""
    own, given = student.state_dict(), decoder.state_dict()
    shapes = {k: tuple(v.shape) for k, v in own.items()}
    found = {k: tuple(v.shape) for k, v in given.items()}
    if shapes != found:
        key = next(k for k in {**shapes, **found} if shapes.get(k) != found.get(k))
        raise InputError(
            "the privileged teacher's decoder",
            f"the student's own architecture ({key}: {shapes.get(key, 'absent')})",
            f"{key}: {found.get(key, 'absent')}",
            "Train phase 1 with this student, or set method.init: false.",
        )
    student.load_state_dict(given)
