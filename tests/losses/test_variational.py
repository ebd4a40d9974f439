"""VID against the likelihood written out with SciPy, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.errors import FacultyError
from pipeline.losses.variational import FLOOR, LOOK_EVERY, VID

DISTRIBUTIONS = ("laplace", "gaussian")


def features(channels: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(2, channels, 4, 5, generator=torch.Generator().manual_seed(channels), dtype=dtype)


def vid(distribution: str, scale_per: str = "element") -> VID:
    torch.manual_seed(0)
    return VID(3, 5, distribution=distribution, scale_per=scale_per).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("scale_per", ["element", "channel"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_loss_is_the_mean_negative_log_likelihood(distribution: str, scale_per: str) -> None:
    loss, student, teacher = vid(distribution, scale_per), features(3), features(5)
    with torch.no_grad():
        location, spread = loss.location(student).numpy(), loss.spread(student).numpy()
        found = float(loss(student, teacher))
    law = (
        stats.laplace(location, spread)
        if distribution == "laplace"
        else stats.norm(location, np.sqrt(spread))
    )
    assert found == pytest.approx(-law.logpdf(teacher.numpy()).mean(), rel=1e-9)
    assert spread.shape == (2, 5, 4, 5)


@pytest.mark.parametrize("scale_per", ["element", "channel"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_gradient_is_that_of_finite_differences(distribution: str, scale_per: str) -> None:
    loss, student, teacher = vid(distribution, scale_per), features(3).requires_grad_(), features(5)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), (student,), eps=1e-7, atol=1e-4, rtol=1e-3)
    parameters = tuple(loss.parameters())
    names = [name for name, _ in loss.named_parameters()]

    def by_parameters(*values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, dict(zip(names, values)), (student.detach(), teacher))

    assert torch.autograd.gradcheck(by_parameters, parameters, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_the_teacher_gets_no_gradient() -> None:
    teacher = features(5).requires_grad_()
    vid("laplace")(features(3).requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_the_published_heads_have_12770_parameters() -> None:
    assert sum(p.numel() for p in VID(56, 56).parameters()) == 12_770


def test_autocast_changes_nothing() -> None:
    loss = vid("laplace").float()
    student, teacher = features(3, torch.float32), features(5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(student, teacher)
    assert inside.dtype == torch.float32 and torch.equal(inside, loss(student, teacher))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_scale_that_underflows_stays_finite_and_is_told(distribution: str) -> None:
    loss = VID(3, 5, distribution=distribution)  # type: ignore[arg-type]
    with torch.no_grad():
        loss.scale[-1].bias.fill_(-200.0)  # softplus gives exactly 0 in float32
    student, teacher = features(3, torch.float32).requires_grad_(), features(5, torch.float32)
    value = loss(student, teacher)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    assert loss.spread(student).min().item() == pytest.approx(FLOOR[distribution])
    with pytest.raises(
        FacultyError, match=rf"{distribution} scale of VID has underflowed: 100%.*scale_per: channel"
    ):
        for _ in range(LOOK_EVERY):
            loss(student, teacher)


def test_a_collapse_in_a_captured_step_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is replayed cannot raise; the loop looks whether terms are finite."""
    loss = VID(3, 5)
    student, teacher = features(3, torch.float32), features(5, torch.float32)
    plain = loss(student, teacher)
    monkeypatch.setattr("pipeline.losses.variational._captured", lambda x: True)
    assert torch.equal(loss(student, teacher), plain)
    with torch.no_grad():
        loss.scale[-1].bias.fill_(-200.0)
    assert loss(student, teacher).isnan()


def test_features_of_other_sizes_are_refused_with_both_sizes() -> None:
    with pytest.raises(FacultyError, match=r"\(2, 3, 4, 5\).*\(2, 5, 8, 10\).*method.layer"):
        vid("laplace")(features(3), torch.rand(2, 5, 8, 10, dtype=torch.float64))
