"""MTKD: multi-teacher knowledge distillation (Jiang, Feng, Zhang, Bull; ECCV 2024; arXiv 2404.09571).

Stage 1 (`aggregation`) trains the DCTSwin network that turns the N teachers' pictures into one, with L1 against HR:
    L_agg = mean|A(T_1(x), ..., T_N(x)) - y|
Stage 2 (`mtkd`) trains the student on that fused picture, with a wavelet loss, and on HR:
    L = L_dwt(S(x), A(...)) + alpha * mean|S(x) - y|,   alpha = 0.1
    L_dwt(P, Q) = sum_k mean|H_k(P) - H_k(Q)| + mean|LL_K(P) - LL_K(Q)|,   Haar, K = 1

Differences from the released code: the wavelet loss is used (its stage-2 file has plain L1 there), its low band counts
the whole batch, the teachers and the aggregation network run once, before training, instead of in every step, and the
fused target is read from the cache. Ours, off by default: `low`, `relational`, `handover`, `dual_tree`, schedules of
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.losses.pixel import PIXEL, l1
from pipeline.losses.relational import relations
from pipeline.losses.wavelet import WaveletLoss, dwt2
from pipeline.methods.base import Batch, Modules, Phase, PhaseBuilder, masked_hr, seen_by
from pipeline.recipe.fusion import Aggregate
from pipeline.recipe.methods import MTKD
from pipeline.recipe.settings import Train
from teachers.aggregation import Aggregation

GRID = 4
"""Cells a side in which a patch's details are averaged for the relational term."""


def aggregation(
    config: Aggregate, n_teachers: int, scale: int, skip_weights: Sequence[float] = ()
) -> list[PhaseBuilder]:
    """Stage 1, on cached teacher outputs `teacher0` .. `teacherN-1` (B, 3, sH, sW) in [0, 1], in recipe order."""
    names = tuple(f"teacher{i}" for i in range(n_teachers))

    def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
        outputs_BNCHW = torch.stack([batch[name] for name in names], dim=1)
        return {"hr": l1(modules["aggregation"](outputs_BNCHW), batch["hr"])}

    def build(_: Modules) -> Phase:
        return Phase(
            name="aggregation",
            modules={"aggregation": network(config, n_teachers, scale, skip_weights)},
            sources=("lr", "hr", *names),
            losses=losses,
            weights={"hr": 1.0},
            settings=config.train,
            artefact="aggregation",
            inputs=names,
            require_hr=True,
        )

    return [build]


def network(
    config: Aggregate, n_teachers: int, scale: int, skip_weights: Sequence[float] = ()
) -> Aggregation:
    """The aggregation network that a recipe describes; `skip_weights` start the sum of `skip: weighted`."""
    return Aggregation(
        n_teachers,
        scale,
        dim=config.dim,
        depths=config.depths,
        heads=config.heads,
        window=config.window,
        mlp_ratio=config.mlp_ratio,
        drop_path=config.drop_path,
        official=config.official,
        skip="none" if config.official else config.skip,
        skip_weights=list(skip_weights) or None,
    )


def mtkd(method: MTKD, settings: Train, student: Callable[[], nn.Module]) -> list[PhaseBuilder]:
    """Stage 2. Tiles without HR are trained on the fused target alone."""
    scheduled = not isinstance(method.low, float)
    low = method.low if isinstance(method.low, float) else 0.0
    wavelet = WaveletLoss(method.wavelet, method.level, method.mode, dual_tree=method.dual_tree, low=low)
    whole = WaveletLoss(method.wavelet, method.level, method.mode, dual_tree=method.dual_tree)
    pixel = PIXEL[method.pixel]

    def build(_: Modules) -> Phase:
        network = student()
        seen = seen_by(network)

        def losses(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            batch = seen(batch)
            sr = modules["student"](batch["lr"])
            terms = {"distill": wavelet(sr, batch["target"]), "hr": masked_hr(sr, batch, pixel)}
            if (
                scheduled
            ):  # the transform is linear, so what the details leave of the loss is the low band's part
                terms["low"] = whole(sr, batch["target"]) - terms["distill"]
            if method.relational != 0:
                terms["relational"] = relations(details(sr), details(batch["target"]))
            return terms

        return Phase(
            name="distill",
            modules={"student": network},
            sources=("lr", "hr", "target"),
            losses=losses,
            weights=method.weights(),
            settings=settings,
            artefact="student",
        )

    return [build]


def details(picture: Tensor) -> Tensor:
    """How much detail is where: (B, C, H, W) -> (B, C*3*16), mean magnitudes of the finest Haar bands on a grid."""
    _, (bands,) = dwt2(picture)
    return F.adaptive_avg_pool2d(bands.abs().flatten(1, 2), GRID).flatten(1)
