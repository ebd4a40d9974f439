"""Losses of mixed pictures against probabilities computed one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.losses.mixed import mixed_entropy, mixed_logits
from pipeline.losses.soft_labels import soft_labels
from pipeline.methods.outputs import Lesson, kinds, soft_term
from pipeline.recipe.recognition_methods import KD
from pipeline.tasks.recognition.classification import Classification
from pipeline.tasks.recognition.recipe import TaskLoss

TAU = 4.0


def soft(z: Tensor, tau: float) -> np.ndarray:
    e = np.exp(z.double().numpy() / tau)
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "label": torch.tensor([0, 2, 1, 4]),
        "partner/label": torch.tensor([3, 2, 0, 1]),
        "share": torch.tensor([0.3, 0.8, 1.0, 0.0]),
        "teacher/logits": 5 * torch.randn(4, 5),
        "partner/teacher/logits": 5 * torch.randn(4, 5),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_tasks_loss_is_the_entropy_against_both_labels(
    batch: dict[str, Tensor], smoothing: float
) -> None:
    z = torch.randn(4, 5)
    log_p = np.log(soft(z, 1.0))
    total = 0.0
    for i, lam in enumerate(batch["share"].tolist()):
        target = np.full(5, smoothing / 5)
        target[batch["label"][i]] += (1 - smoothing) * lam
        target[batch["partner/label"][i]] += (1 - smoothing) * (1 - lam)
        total -= (target * log_p[i]).sum() / 4
    found = Classification().loss({"logits": z}, batch, TaskLoss(smoothing=smoothing))
    assert found.item() == pytest.approx(total, rel=1e-5)
    own = {"label": batch["label"]}
    alone = mixed_entropy(z, batch["label"], batch["partner/label"], torch.ones(4), smoothing)
    torch.testing.assert_close(
        alone, Classification().loss({"logits": z}, own, TaskLoss(smoothing=smoothing))
    )


def test_mixed_logits_are_those_of_the_mixture_at_their_temperature(batch: dict[str, Tensor]) -> None:
    a, b, lam = batch["teacher/logits"], batch["partner/teacher/logits"], batch["share"]
    expected = lam[:, None].numpy() * soft(a, TAU) + (1 - lam[:, None].numpy()) * soft(b, TAU)
    found = mixed_logits(a.requires_grad_(), b, lam, TAU)
    assert not found.requires_grad and torch.isfinite(found).all()
    np.testing.assert_allclose(soft(found, TAU), expected, rtol=1e-5)
    np.testing.assert_allclose(
        soft(found, TAU)[2:], np.stack([soft(a.detach(), TAU)[2], soft(b, TAU)[3]]), rtol=1e-5
    )
    far = mixed_logits(torch.tensor([[6e4, -6e4]]), torch.tensor([[-6e4, 6e4]]), torch.tensor([0.25]), 1.0)
    np.testing.assert_allclose(far.softmax(1), [[0.25, 0.75]], rtol=1e-5)


@pytest.mark.parametrize("logits", ["plain", "standardised"])
def test_soft_labels_of_mixed_pictures_are_the_divergence_from_the_mixture(
    batch: dict[str, Tensor], logits: Any
) -> None:
    task, method = Classification(), KD(name="kd", logits=logits)
    lesson = Lesson(None, partial(task.loss, settings=TaskLoss()), task.imitate, "label")
    z = (3 * torch.randn(4, 5)).requires_grad_()

    def compared(x: Tensor) -> Tensor:
        x = x.detach().double()
        return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) if logits == "standardised" else x

    lam = batch["share"][:, None].numpy()
    p = lam * soft(compared(batch["teacher/logits"]), TAU)
    p += (1 - lam) * soft(compared(batch["partner/teacher/logits"]), TAU)
    expected = TAU**2 * (p * np.log(p / soft(compared(z), TAU))).sum(1).mean()
    found = soft_term(lesson, method, TAU, z, "teacher/logits", batch)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    found.backward()
    assert z.grad is not None and z.grad.abs().sum() > 0

    whole = {**batch, "share": torch.ones(4)}
    unmixed = soft_term(lesson, method, TAU, z, "teacher/logits", {"teacher/logits": batch["teacher/logits"]})
    torch.testing.assert_close(soft_term(lesson, method, TAU, z, "teacher/logits", whole), unmixed)
    if logits == "plain":
        torch.testing.assert_close(unmixed, soft_labels(z, batch["teacher/logits"], TAU))
        assert not math.isclose(found.item(), unmixed.item(), rel_tol=0.01)


def test_decoupled_soft_labels_of_mixed_pictures_have_each_label_as_the_true_class(
    batch: dict[str, Tensor],
) -> None:
    """lam DKD(y_a) + (1 - lam) DKD(y_b) of the mixed soft labels, by probabilities."""
    task, method = Classification(), KD(name="kd", logits="decoupled", alpha=0.7, beta=5.0)
    lesson = Lesson(None, partial(task.loss, settings=TaskLoss()), task.imitate, "label")
    z = (3 * torch.randn(4, 5)).requires_grad_()
    q = soft(z.detach(), TAU)
    lam = batch["share"][:, None].numpy()
    p = lam * soft(batch["teacher/logits"], TAU) + (1 - lam) * soft(batch["partner/teacher/logits"], TAU)
    expected = 0.0
    for i, share in enumerate(batch["share"].tolist()):
        for label, weight in ((batch["label"][i], share), (batch["partner/label"][i], 1 - share)):
            true, mine = p[i, label], q[i, label]
            binary = true * math.log(true / mine) + (1 - true) * math.log((1 - true) / (1 - mine))
            rest, ours = (np.delete(x[i], label) / (1 - x[i, label]) for x in (p, q))
            expected += weight * (0.7 * binary + 5.0 * (rest * np.log(rest / ours)).sum()) / 4
    found = soft_term(lesson, method, TAU, z, "teacher/logits", batch)
    assert found.item() == pytest.approx(TAU**2 * expected, rel=1e-4)
    found.backward()
    assert z.grad is not None and z.grad.isfinite().all() and z.grad.abs().sum() > 0

    whole = {**batch, "share": torch.ones(4)}
    own = {"label": batch["label"], "teacher/logits": batch["teacher/logits"]}
    torch.testing.assert_close(
        soft_term(lesson, method, TAU, z, "teacher/logits", whole),
        soft_term(lesson, method, TAU, z, "teacher/logits", own),
    )


def test_the_class_of_a_mixed_picture_is_that_of_its_greater_share() -> None:
    """What contrast calls one of the own class; masks have none."""
    task = Classification()
    lesson = Lesson(None, partial(task.loss, settings=TaskLoss()), task.imitate, "label")
    label, other = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])
    plain = kinds(lesson, {"label": label})
    assert plain is not None and plain.tolist() == [1, 2, 3, 4]
    lam = torch.tensor([1.0, 0.6, 0.4, 0.0])
    mixed = kinds(lesson, {"label": label, "partner/label": other, "share": lam})
    assert mixed is not None and mixed.tolist() == [1, 2, 7, 8]
    masks = replace(lesson, truth="mask")
    assert kinds(masks, {"mask": torch.zeros(4, 1, 8, 8)}) is None
