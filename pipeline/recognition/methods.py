"""The methods: what a phase's losses are. s, t, a: embeddings of student (LR), teacher and assistant (HR views).

`teacher`  L = L_task(T(x_H))
`scratch`  L = L_task(S(x_L))
`kd`       L = L_task + soft * tau^2 KL(z_T || z_S)
`rkd`      L = L_task + adv * L_adv(s) + soft * KL + feature * |n(s) - n(t)|^2 + pairwise * L_PW + mmd * L_MMD
`horkd`    1. assistant at HR:  L = L_task(A) + sum_k w_k L_k(t -> a)
           2. student at LR:    L = L_task(S) + sum_k w_k [ L_k(a -> s) + gamma L_k(t -> s) ]
           L_k: soft labels, order 1 (itself), 2 (pairs), 3 (triplets), group; relations over the union of HR and LR
           items, V = [a; s] against U = [a; a] and [t; t]

RKD is Feng, Lai, Xie, TIP 2021, HORKD is Ge et al., AAAI 2020. Of both only abstracts (and captions) are public: their
equations here are reconstructions from the terms that they name, and no weight is theirs. t and a come from the cache.
Terms over relations see the whole batch of all workers.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.losses import relational
from pipeline.losses.adversarial import Discriminator, deceive, discriminator_loss
from pipeline.losses.feature import feature_regression
from pipeline.losses.gather import gathered
from pipeline.losses.mmd import mmd
from pipeline.losses.pairwise import pairwise
from pipeline.losses.soft_labels import soft_labels
from pipeline.methods.base import Adversary, Batch, Modules, Phase
from pipeline.recipe.schedule import Weight
from pipeline.recipe.settings import Budget
from pipeline.recognition.recipe import HORKD, KD, RKD, Recognition, Scratch
from pipeline.recognition.tasks import task_loss

Fill = Callable[[MutableMapping[str, Tensor]], None]
"""Adds the teacher's outputs to a batch where they are not cached."""
STUDENT, ADAPTER, DISCRIMINATOR = "student", "adapter", "discriminator"


def task_phase(recipe: Recognition, network: nn.Module, settings: Budget, name: str = "teacher") -> Phase:
    """A network that learns the task alone."""
    return _phase(recipe, network, settings, name, {"task": 1.0}, (), lambda *_: {})


def student_phase(
    recipe: Recognition, student: nn.Module, teacher_width: int, fill: Fill | None = None
) -> Phase:
    """The recipe's method at LR. `teacher_width` is the width of t; where s has another, a linear map adapts s."""
    method = recipe.method
    if isinstance(method, Scratch):
        return _phase(recipe, student, recipe.train, "student", {"task": method.task}, (), lambda *_: {})
    if isinstance(method, KD):
        return _kd(recipe, method, student, fill)
    if isinstance(method, RKD):
        return _rkd(recipe, method, student, teacher_width, fill)
    return _horkd(recipe, method, student, teacher_width, fill)


def _kd(recipe: Recognition, method: KD, student: nn.Module, fill: Fill | None) -> Phase:
    weights = _active({"task": method.task, "soft": method.soft})

    def terms(out: dict[str, Tensor], s: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"soft": soft_labels(out["logits"], batch["teacher/logits"], method.temperature)}

    return _phase(recipe, student, recipe.train, "student", weights, ("teacher/logits",), terms, fill=fill)


def _rkd(recipe: Recognition, method: RKD, student: nn.Module, width: int, fill: Fill | None) -> Phase:
    names = ("task", "adversarial", "soft", "feature", "map", "pairwise", "mmd")
    weights = _active({name: getattr(method, name) for name in names})
    critic = Discriminator(width) if "adversarial" in weights else None
    columns = ["teacher/logits", "teacher/embedding", *(["teacher/map"] if "map" in weights else [])]

    def terms(out: dict[str, Tensor], s: Tensor, batch: Any) -> dict[str, Tensor]:
        t = batch["teacher/embedding"]
        found = {}
        if "soft" in weights:
            found["soft"] = soft_labels(out["logits"], batch["teacher/logits"], method.temperature)
        if "feature" in weights:
            found["feature"] = feature_regression(s, t)
        if "map" in weights:
            found["map"] = feature_regression(out["map"], batch["teacher/map"])
        if "pairwise" in weights or "mmd" in weights:
            all_s, all_t = gathered(s.float()), gathered(t)
            if "pairwise" in weights:
                found["pairwise"] = pairwise(all_s, all_t)
            if "mmd" in weights:
                found["mmd"] = mmd(all_s, all_t)
        if critic is not None:
            found["adversarial"] = deceive(critic, s)
            batch["student/embedding"] = s.detach()
        return found

    adversary = None
    if critic is not None:

        def contest(modules: Modules, batch: Batch) -> dict[str, Tensor]:
            loss = discriminator_loss(
                modules[DISCRIMINATOR], batch["student/embedding"], batch["teacher/embedding"]
            )
            return {"discriminator": loss}

        adversary = Adversary({DISCRIMINATOR: critic}, contest, lr=method.discriminator_lr)
    return _phase(
        recipe,
        student,
        recipe.train,
        "student",
        weights,
        tuple(columns),
        terms,
        fill=fill,
        width=width if len(weights.keys() - {"task", "soft", "map"}) else None,
        adversary=adversary,
    )


ORDERS = ("order1", "order2", "order3", "group")


def assistant_phase(
    recipe: Recognition, assistant: nn.Module, teacher_width: int, fill: Fill | None = None
) -> Phase:
    """HORKD's first step: the assistant at HR learns from the teacher."""
    method = recipe.method
    assert isinstance(method, HORKD)
    weights = _active({name: getattr(method, name) for name in ("task", "soft", *ORDERS)})

    def terms(out: dict[str, Tensor], a: Tensor, batch: Any) -> dict[str, Tensor]:
        t = batch["teacher/embedding"]
        found = _relations(method, weights, a, t, a, t)
        if "soft" in weights:
            found["soft"] = soft_labels(out["logits"], batch["teacher/logits"], method.temperature)
        return found

    settings = method.assistant_train or recipe.train
    columns = ("teacher/logits", "teacher/embedding")
    width = teacher_width if "order1" in weights else None
    return _phase(recipe, assistant, settings, "assistant", weights, columns, terms, fill=fill, width=width)


def _horkd(recipe: Recognition, method: HORKD, student: nn.Module, width: int, fill: Fill | None) -> Phase:
    """HORKD's second step: the student at LR learns from the assistant and the teacher, both at HR."""
    weights = _active({name: getattr(method, name) for name in ("task", "soft", *ORDERS)})
    helpers = {"teacher": method.gamma} if method.gamma or not method.assistant else {}
    if method.assistant:
        helpers["assistant"] = 1.0
    else:
        helpers["teacher"] = 1.0

    def terms(out: dict[str, Tensor], adapted: Tensor, batch: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        raw = out["embedding"]
        for helper, share in helpers.items():
            u = batch[f"{helper}/embedding"]
            near = batch["assistant/embedding"] if method.assistant else u
            # The assistant has the student's width; the teacher may have another, for which order 1 is adapted.
            own = adapted if helper == "teacher" else raw
            for name, value in _relations(
                method, weights, own, u, raw, u, near if method.union else None
            ).items():
                found[name] = found.get(name, 0.0) + share * value
            if "soft" in weights:
                loss = soft_labels(out["logits"], batch[f"{helper}/logits"], method.temperature)
                found["soft"] = found.get("soft", 0.0) + share * loss
        return found

    columns = tuple(f"{helper}/{column}" for helper in helpers for column in ("logits", "embedding"))
    adapted = width if "teacher" in helpers and "order1" in weights else None
    return _phase(recipe, student, recipe.train, "student", weights, columns, terms, fill=fill, width=adapted)


def _relations(
    method: HORKD,
    weights: dict[str, Weight],
    own: Tensor,
    target: Tensor,
    v: Tensor,
    u: Tensor,
    near: Tensor | None = None,
) -> dict[str, Tensor]:
    """The orders that have a weight. `near` (B, D) are HR items that join `v` against `u` itself: "one and more"."""
    found = {}
    if "order1" in weights:
        found["order1"] = feature_regression(own, target)
    if not weights.keys() & {"order2", "order3", "group"}:
        return found
    v, u = gathered(v.float()), gathered(u)
    if near is not None and near.shape[1] == v.shape[1]:
        v, u = torch.cat([gathered(near).to(v), v]), torch.cat([u, u])
    if "order2" in weights:
        found["order2"] = relational.distances(v, u)
    if "order3" in weights:
        found["order3"] = relational.angles(v, u, method.anchors)
    if "group" in weights:
        found["group"] = relational.group(v, u)
    return found


def _phase(
    recipe: Recognition,
    network: nn.Module,
    settings: Budget,
    name: str,
    weights: dict[str, Weight],
    columns: tuple[str, ...],
    terms: Callable[[dict[str, Tensor], Tensor, Any], dict[str, Tensor]],
    *,
    fill: Fill | None = None,
    width: int | None = None,
    adversary: Adversary | None = None,
) -> Phase:
    """A phase whose losses are the task's and `terms(outputs, adapted embedding, batch)`."""
    modules = {STUDENT: network}
    own = cast(nn.Linear, network.embed).out_features
    if width is not None and width != own:
        modules[ADAPTER] = nn.Linear(own, width)

    def losses(live: Modules, batch: Batch) -> dict[str, Tensor]:
        if fill is not None and columns:
            fill(cast(MutableMapping[str, Tensor], batch))
        out = live[STUDENT](batch["lr"])
        s = live[ADAPTER](out["embedding"]) if ADAPTER in live else out["embedding"]
        return {"task": task_loss(out, batch, recipe.loss), **terms(out, s, batch)}

    target = "mask" if recipe.task == "segmentation" else "label"
    read = ("hr",) if fill is not None and columns else columns
    return Phase(
        name=name,
        modules=modules,
        sources=("lr", target, *read),
        losses=losses,
        weights=weights,
        settings=settings,
        artefact=STUDENT,
        adversary=adversary,
    )


def _active(weights: dict[str, Weight]) -> dict[str, Weight]:
    """Those that are not 0 throughout; the task stays."""
    return {name: w for name, w in weights.items() if name == "task" or w != 0}
