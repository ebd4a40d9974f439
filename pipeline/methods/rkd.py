"""RKD: resolution-aware knowledge distillation (Feng, Lai, Xie; TIP 2021); for recognition.

    L = L_task + adv * L_adv(s) + soft * KL + feature * |n(s) - n(t)|^2 + pairwise * L_PW + mmd * L_MMD
        + distances * L_D + angles * L_A + contrast * L_C

Only its abstract is public: the equations here are a reconstruction from the terms that it names, and no weight is its
own. The second line is what others make of the embeddings (losses/relational.py, losses/contrast.py); by default it and
the soft labels are on, the other terms off.
Terms over relations see the whole batch of all workers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipeline.losses import relational
from pipeline.losses.adversarial import Discriminator, deceive, discriminator_loss
from pipeline.losses.contrast import contrast
from pipeline.losses.feature import feature_regression
from pipeline.losses.gather import gathered
from pipeline.losses.mmd import mmd
from pipeline.losses.pairwise import pairwise
from pipeline.methods.base import Adversary, Batch, Modules, Phase
from pipeline.methods.outputs import DISCRIMINATOR, MAP, Lesson, active, kinds, output_phase, soft_term
from pipeline.recipe.recognition_methods import RKD

OF_THE_BATCH = {
    "pairwise": pairwise,
    "mmd": mmd,
    "distances": relational.distances,
    "angles": relational.angles,
}
"""Terms of (all students' embeddings, all teachers' embeddings)."""


def recogniser(lesson: Lesson, student: nn.Module) -> Phase:
    """The LR student; where its embedding or its map is not as wide as the teacher's, a linear map adapts it."""
    recipe, width = lesson.recipe, lesson.width
    method = recipe.method
    assert isinstance(method, RKD)
    names = ("task", "adversarial", "soft", "feature", "map", "contrast", *OF_THE_BATCH)
    weights = active({name: getattr(method, name) for name in names})
    critic = Discriminator(width) if "adversarial" in weights else None
    logits = ["teacher/logits"] if lesson.answers else []
    columns = [*logits, "teacher/embedding", *([MAP] if "map" in weights else [])]

    def terms(out: dict[str, Tensor], s: Tensor, batch: Any) -> dict[str, Tensor]:
        t = batch["teacher/embedding"]
        found = {}
        if "soft" in weights:
            found["soft"] = soft_term(
                lesson, method, method.temperature, out["logits"], "teacher/logits", batch
            )
        if "feature" in weights:
            found["feature"] = feature_regression(s, t)
        if "map" in weights:
            found["map"] = feature_regression(out["map"], batch[MAP])
        if weights.keys() & {"contrast", *OF_THE_BATCH}:
            all_s, all_t = gathered(s.float()), gathered(t)
            found |= {name: of(all_s, all_t) for name, of in OF_THE_BATCH.items() if name in weights}
            if "contrast" in weights:
                found["contrast"] = contrast(all_s, all_t, kinds(lesson, batch))
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
    return output_phase(
        lesson,
        student,
        recipe.train,
        "student",
        weights,
        tuple(columns),
        terms,
        width=width if len(weights.keys() - {"task", "soft", "map"}) else None,
        adversary=adversary,
    )
