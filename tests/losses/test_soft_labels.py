"""Soft labels: of maps, decoupled, standardised."""

from __future__ import annotations

import math

import pytest
import torch
from loss_kit import pair, slow_soft
from torch import Tensor

from pipeline.errors import InputError
from pipeline.losses.soft_labels import decoupled, soft_labels, standardised


def test_soft_labels_of_maps_are_compared_on_the_students_grid() -> None:
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    flat = soft_labels(s.permute(0, 2, 3, 1).reshape(-1, 3), t.permute(0, 2, 3, 1).reshape(-1, 3))
    assert soft_labels(s, t).item() == pytest.approx(flat.item(), rel=1e-5)
    large = torch.nn.functional.interpolate(t, scale_factor=2, mode="nearest")
    assert soft_labels(s, large).item() == pytest.approx(soft_labels(s, t).item(), rel=1e-4)


def test_class_counts_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="as many classes as the student's 3"):
        soft_labels(torch.zeros(2, 3), torch.zeros(2, 4))


def slow_decoupled(s: Tensor, t: Tensor, labels: Tensor, tau: float, alpha: float, beta: float) -> float:
    """Zhao et al., equations 3 to 7, by probabilities instead of logarithms."""
    total = 0.0
    for a, b, label in zip(s, t, labels.tolist()):
        p, q = ([math.exp(float(x) / tau) for x in row] for row in (b, a))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        true = p[label] * math.log(p[label] / q[label])
        true += (1 - p[label]) * math.log((1 - p[label]) / (1 - q[label]))
        rest = 0.0
        for k in range(len(p)):
            if k != label:
                mine, theirs = q[k] / (1 - q[label]), p[k] / (1 - p[label])
                rest += theirs * math.log(theirs / mine)
        total += alpha * true + beta * rest
    return tau**2 * total / len(s)


def test_decoupled_soft_labels_are_those_of_the_paper() -> None:
    s, t = pair()
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    found = decoupled(s, t, labels, 3.0, 0.7, 5.0).item()
    assert found == pytest.approx(slow_decoupled(s, t, labels, 3.0, 0.7, 5.0), rel=1e-5)
    # Equation 6: with beta the teacher's doubt about the true class, it is the usual soft label of each sample.
    one, other, label = s[:1], t[:1], labels[:1]
    doubt = 1 - torch.softmax(other / 4, 1)[0, 0].item()
    assert decoupled(one, other, label, 4.0, 1.0, doubt).item() == pytest.approx(
        slow_soft(one, other), rel=1e-4
    )
    s.requires_grad_()
    decoupled(s, t, labels).backward()
    assert s.grad.abs().sum() > 0


def test_standardised_logits_have_no_size_of_their_own() -> None:
    s, t = pair(width=7)
    z = standardised(s)
    for row, found in zip(s.tolist(), z.tolist(), strict=True):
        mean = sum(row) / 7
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / 6)
        assert found == pytest.approx([(x - mean) / deviation for x in row], abs=1e-5)
    same = soft_labels(standardised(s), standardised(t), 2.0)
    assert soft_labels(standardised(9 * s + 5), standardised(0.3 * t - 2), 2.0).item() == pytest.approx(
        same.item(), rel=1e-4
    )
