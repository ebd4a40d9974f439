"""Pixel losses."""

from __future__ import annotations

import pytest
import torch

from pipeline.losses.pixel import charbonnier, l1


@pytest.mark.parametrize("loss", [l1, charbonnier])
def test_the_mask_keeps_pictures_and_only_them(loss) -> None:
    torch.manual_seed(0)
    prediction, target = torch.rand(4, 3, 5, 6), torch.rand(4, 3, 5, 6)
    mask = torch.tensor([True, False, True, False])
    assert loss(prediction, target, mask) == pytest.approx(loss(prediction[mask], target[mask]).item())
    assert loss(prediction, target, torch.ones(4, dtype=torch.bool)) == pytest.approx(
        loss(prediction, target).item()
    )


@pytest.mark.parametrize("loss", [l1, charbonnier])
def test_an_empty_mask_gives_zero_and_no_gradient(loss) -> None:
    prediction = torch.rand(2, 3, 4, 4, requires_grad=True)
    value = loss(prediction, torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, dtype=torch.bool))
    value.backward()
    assert value == 0 and torch.count_nonzero(prediction.grad) == 0


@pytest.mark.parametrize("loss", [l1, charbonnier])
def test_masked_pictures_cannot_spoil_the_loss(loss) -> None:
    prediction, target = torch.rand(2, 3, 4, 4, requires_grad=True), torch.rand(2, 3, 4, 4)
    target[1] = torch.nan
    value = loss(prediction, target, torch.tensor([True, False]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(prediction.grad).all()


def test_values() -> None:
    prediction, target = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[0.5, 1.0]]]])
    assert l1(prediction, target) == 0.25
    expected = ((0.25 + 1e-6) ** 0.5 + 1e-3) / 2
    assert charbonnier(prediction, target) == pytest.approx(expected)


@pytest.mark.parametrize("loss", [l1, charbonnier])
def test_half_precision_inputs_are_averaged_in_single(loss) -> None:
    prediction = torch.full((1, 1, 300, 300), 1.0, dtype=torch.float16)
    value = loss(prediction, torch.zeros_like(prediction))
    assert value.dtype == torch.float32 and value == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("loss", [l1, charbonnier])
def test_gradient(loss) -> None:
    torch.manual_seed(0)
    pair = [torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(loss, (*pair, torch.tensor([True, False])))
