"""Weights over progress."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.recipe.schedule import Piecewise, Ramp, weight_at


def test_a_number_is_constant() -> None:
    assert [weight_at(0.25, p) for p in (0.0, 0.5, 1.0)] == [0.25] * 3


def test_a_linear_ramp_is_flat_outside_its_interval() -> None:
    ramp = Ramp(kind="linear", start=2.0, end=0.0, begin=0.25, until=0.75)
    assert [ramp(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [2.0, 2.0, 1.0, 0.0, 0.0]


def test_a_cosine_ramp_meets_the_linear_one_at_ends_and_middle_only() -> None:
    ramp = Ramp(kind="cosine", start=0.0, end=1.0)
    assert [ramp(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert ramp(0.25) == pytest.approx(0.146447, abs=1e-6)


def test_piecewise_interpolates_between_its_points() -> None:
    schedule = Piecewise(kind="piecewise", points=((0.2, 1.0), (0.6, 3.0), (0.8, 0.0)))
    assert [schedule(p) for p in (0.0, 0.2, 0.4, 0.6, 0.7, 0.9)] == pytest.approx(
        [1.0, 1.0, 2.0, 3.0, 1.5, 0.0]
    )


@pytest.mark.parametrize("points", [((0.5, 1.0), (0.5, 2.0)), ((0.5, 1.0), (0.2, 2.0)), ((0.5, 1.0),)])
def test_points_must_rise(points: tuple) -> None:
    with pytest.raises(ValidationError):
        Piecewise(kind="piecewise", points=points)


def test_a_ramp_needs_an_interval() -> None:
    with pytest.raises(ValidationError, match="below until"):
        Ramp(kind="linear", start=0.0, end=1.0, begin=0.5, until=0.5)
