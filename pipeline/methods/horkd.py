"""HORKD: hybrid-order relational knowledge distillation (Ge et al.; AAAI 2020); for recognition.

1. assistant at HR:  L = L_task(A) + sum_k w_k L_k(t -> a)
2. student at LR:    L = L_task(S) + sum_k w_k [ L_k(a -> s) + gamma L_k(t -> s) ]

L_k: soft labels, order 1 (itself), 2 (pairs), 3 (triplets), group; relations over the union of HR and LR items,
V = [a; s] against U = [a; a] and [t; t]. Only its abstract and captions are public: the equations are a reconstruction,
and no weight is its own. `contrast` is what others make of an item among a batch (losses/contrast.py). Terms over
relations see the whole batch of all workers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.losses import relational
from pipeline.losses.contrast import contrast
from pipeline.losses.feature import feature_regression
from pipeline.losses.gather import gathered
from pipeline.methods.base import Phase
from pipeline.methods.outputs import Lesson, active, kinds, output_phase, soft_term
from pipeline.recipe.recognition_methods import HORKD
from pipeline.recipe.schedule import Weight

ADAPTED = ("order1", "contrast")
"""What needs an embedding as wide as the teacher's."""
ORDERS = (*ADAPTED, "order2", "order3", "group")


def assistant_phase(lesson: Lesson, assistant: nn.Module) -> Phase:
    """HORKD's first step: the assistant at HR learns from the teacher."""
    recipe = lesson.recipe
    method = recipe.method
    assert isinstance(method, HORKD)
    weights = active({name: getattr(method, name) for name in ("task", "soft", *ORDERS)})

    def terms(out: dict[str, Tensor], a: Tensor, batch: Any) -> dict[str, Tensor]:
        t = batch["teacher/embedding"]
        found = _relations(method, weights, a, t, a, t, kinds(lesson, batch))
        if "soft" in weights and lesson.answers:
            found["soft"] = soft_term(
                lesson, method, method.temperature, out["logits"], "teacher/logits", batch
            )
        return found

    settings = method.assistant_train or recipe.train
    columns = (*(("teacher/logits",) if lesson.answers else ()), "teacher/embedding")
    width = lesson.width if weights.keys() & set(ADAPTED) else None
    return output_phase(lesson, assistant, settings, "assistant", weights, columns, terms, width=width)


def recogniser(lesson: Lesson, student: nn.Module) -> Phase:
    """The second step: the student at LR learns from the assistant and the teacher, both at HR."""
    recipe, width = lesson.recipe, lesson.width
    method = recipe.method
    assert isinstance(method, HORKD)
    weights = active({name: getattr(method, name) for name in ("task", "soft", *ORDERS)})
    helpers = {"teacher": method.gamma} if method.gamma or not method.assistant else {}
    if method.assistant:
        helpers["assistant"] = 1.0
    else:
        helpers["teacher"] = 1.0

    def terms(out: dict[str, Tensor], adapted: Tensor, batch: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        raw, classes = out["embedding"], kinds(lesson, batch)
        for helper, share in helpers.items():
            u = batch[f"{helper}/embedding"]
            near = batch["assistant/embedding"] if method.assistant else u
            # The assistant has the student's width; the teacher may have another, for which order 1 is adapted.
            own = adapted if helper == "teacher" else raw
            for name, value in _relations(
                method, weights, own, u, raw, u, classes, near if method.union else None
            ).items():
                found[name] = found.get(name, 0.0) + share * value
            if "soft" in weights and f"{helper}/logits" in columns:
                theirs = f"{helper}/logits"
                loss = soft_term(lesson, method, method.temperature, out["logits"], theirs, batch)
                found["soft"] = found.get("soft", 0.0) + share * loss
        return found

    silent = () if lesson.answers else ("teacher/logits",)
    columns = tuple(
        column
        for helper in helpers
        for column in (f"{helper}/logits", f"{helper}/embedding")
        if column not in silent
    )
    adapted = width if "teacher" in helpers and weights.keys() & set(ADAPTED) else None
    return output_phase(lesson, student, recipe.train, "student", weights, columns, terms, width=adapted)


def _relations(
    method: HORKD,
    weights: dict[str, Weight],
    own: Tensor,
    target: Tensor,
    v: Tensor,
    u: Tensor,
    classes: Tensor | None,
    near: Tensor | None = None,
) -> dict[str, Tensor]:
    """The orders that have a weight. `near` (B, D) are HR items that join `v` against `u` itself: "one and more"."""
    found = {}
    if "order1" in weights:
        found["order1"] = feature_regression(own, target)
    if "contrast" in weights:
        found["contrast"] = contrast(gathered(own.float()), gathered(target), classes)
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
