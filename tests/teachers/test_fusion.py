"""Fixed fusions, and weights fitted by least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.data.degrade import downscale, upscale
from pipeline.errors import InputError
from teachers.agreement import Mask, fuse_mask, masks
from teachers.fusion import (
    FUSIONS,
    Bands,
    WeightFit,
    Weights,
    fuse_bands,
    fuse_best,
    fuse_mean,
    fuse_median,
    fuse_weighted,
    fusion,
)


def tiles(seed: int = 0, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(20, 236, (count, 9, 8, 3), dtype=np.uint8)


def teachers(hr: np.ndarray, *spreads: float) -> list[np.ndarray]:
    """Teachers whose errors are independent, of the given standard deviations in grey levels."""
    rng = np.random.default_rng(1)
    return [np.clip(np.rint(hr + rng.normal(0, s, hr.shape)), 0, 255).astype(np.uint8) for s in spreads]


def error(fused: np.ndarray, hr: np.ndarray) -> float:
    return float(np.mean((fused.astype(float) - hr) ** 2))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_mean_and_median_agree_with_numpy(count: int) -> None:
    outputs = [tiles(seed) for seed in range(count)]
    for fuse, reference in ((fuse_mean, np.mean), (fuse_median, np.median)):
        exact = reference(np.stack(outputs).astype(np.float64), axis=0)
        fused = fuse(outputs)
        assert fused.dtype == np.uint8
        np.testing.assert_array_equal(fused, np.floor(exact + 0.5 + 1e-9))


def test_sums_do_not_wrap_around() -> None:
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    for fuse in (fuse_mean, fuse_median):
        assert (fuse([white] * 5) == 255).all()
    assert (fuse_weighted([white, white], weights=Weights((1.0, 1.0))) == 255).all()
    assert (fuse_weighted([white, white], weights=Weights((-1.0, 0.5))) == 0).all()


def test_median_ignores_one_blunder() -> None:
    good = tiles()
    np.testing.assert_array_equal(fuse_median([good, 255 - good, good]), good)


def test_best_chooses_tile_by_tile() -> None:
    hr = tiles()
    left, right = hr + np.uint8(4), hr + np.uint8(4)
    left[1:3], right[3] = hr[1:3] + 1, hr[3] - 1
    fused = fuse_best([left, right], hr)
    np.testing.assert_array_equal(fused, np.stack([left[0], left[1], left[2], right[3], left[4]]))


def test_best_compares_squared_errors_without_overflow() -> None:
    hr = np.zeros((1, 64, 64, 3), np.uint8)
    near, far = hr + np.uint8(150), hr + np.uint8(255)
    np.testing.assert_array_equal(fuse_best([far, near], hr), near)


def test_best_needs_hr() -> None:
    with pytest.raises(InputError, match="with HR"):
        fuse_best([tiles()])


def test_given_weights_and_offset() -> None:
    a, b = tiles(1), tiles(2)
    fused = fuse_weighted([a, b], weights=Weights((0.25, 0.75), -3.0))
    expected = np.clip(np.floor(0.25 * a + 0.75 * b - 3.0 + 0.5), 0, 255)
    np.testing.assert_array_equal(fused, expected)


def test_affine_fit_recovers_a_known_mixture() -> None:
    a, b = tiles(1), tiles(2)
    hr = np.rint(0.3 * a + 0.5 * b + 20).astype(np.uint8)
    fit = WeightFit(2)
    fit.add([a, b], hr)
    weights = fit.solve()
    assert weights.values == pytest.approx((0.3, 0.5), abs=5e-3)
    assert weights.offset == pytest.approx(20, abs=1.0)
    assert np.abs(fuse_weighted([a, b], weights=weights).astype(int) - hr).max() <= 1


def test_affine_fit_equals_least_squares_in_memory() -> None:
    hr = tiles()
    outputs = teachers(hr, 3, 5, 9)
    fit = WeightFit(3)
    fit.add(outputs, hr)
    design = np.stack([*(x.reshape(-1) for x in outputs), np.ones(hr.size)], 1).astype(float)
    expected = np.linalg.lstsq(design, hr.reshape(-1).astype(float), rcond=None)[0]
    weights = fit.solve()
    assert [*weights.values, weights.offset] == pytest.approx(expected, abs=1e-6)


def test_convex_fit_finds_the_best_point_of_the_simplex() -> None:
    hr = tiles()
    outputs = teachers(hr, 3, 5, 30)
    fit = WeightFit(3)
    fit.add(outputs, hr)
    values = np.array(fit.solve(convex=True).values)
    assert values.min() >= 0 and values.sum() == pytest.approx(1.0)

    stacked = np.stack(outputs).reshape(3, -1).astype(float)

    def cost(weights: np.ndarray) -> float:
        return float(np.mean((weights @ stacked - hr.reshape(-1)) ** 2))

    steps = np.linspace(0, 1, 41)
    grid = [np.array([a, b, 1 - a - b]) for a, b in itertools.product(steps, steps) if a + b <= 1]
    assert cost(values) <= min(map(cost, grid)) + 1e-9


def test_convex_fit_drops_a_teacher_that_only_harms() -> None:
    hr = tiles()
    good = teachers(hr, 2)[0]
    blurred = np.clip(128 + 3.0 * (good - 128.0), 0, 255).astype(np.uint8)
    fit = WeightFit(2)
    fit.add([good, np.maximum(good, blurred)], hr)
    assert fit.solve(convex=True).values == pytest.approx((1.0, 0.0), abs=0.02)


def test_fitted_weights_beat_the_mean_where_one_teacher_leads() -> None:
    hr = tiles()
    outputs = teachers(hr, 2, 6, 6)
    fit = WeightFit(3)
    fit.add(outputs, hr)
    for convex in (True, False):
        fused = fuse_weighted(outputs, weights=fit.solve(convex=convex))
        assert error(fused, hr) < error(fuse_mean(outputs), hr)
        assert error(fused, hr) < error(outputs[0], hr)


@pytest.mark.parametrize("convex", [True, False])
def test_batches_and_merged_parts_give_the_weights_of_the_whole(convex: bool) -> None:
    hr = tiles(count=6)
    outputs = teachers(hr, 3, 5)
    whole, first, second = WeightFit(2), WeightFit(2), WeightFit(2)
    whole.add(outputs, hr)
    first.add([x[:1] for x in outputs], hr[:1])
    first.add([x[1:2] for x in outputs], hr[1:2])
    second.add([x[2:] for x in outputs], hr[2:])
    first.merge(second)
    parts, expected = first.solve(convex=convex), whole.solve(convex=convex)
    assert parts.values == pytest.approx(expected.values)
    assert parts.offset == pytest.approx(expected.offset, abs=1e-6)


@pytest.mark.parametrize("convex", [True, False])
def test_equal_teachers_share_their_weight(convex: bool) -> None:
    hr = tiles()
    (teacher,) = teachers(hr, 3)
    fit = WeightFit(2)
    fit.add([teacher, teacher], hr)
    left, right = fit.solve(convex=convex).values
    assert left == pytest.approx(right) and left + right == pytest.approx(1.0, abs=0.02)


def test_fitting_on_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="training tiles"):
        WeightFit(2).solve()


def test_the_registry_names_what_it_knows() -> None:
    assert fusion("mean") is fuse_mean and set(FUSIONS) == {
        "mean",
        "median",
        "best",
        "weighted",
        "bands",
        "mask",
        "regions",
    }
    with pytest.raises(InputError, match="mean, median, best, weighted"):
        fusion("product")


def test_outputs_that_do_not_match_are_refused() -> None:
    with pytest.raises(InputError, match="one shape"):
        fuse_mean([tiles(count=4), tiles(count=5)])
    with pytest.raises(InputError, match="uint8"):
        fuse_median([tiles().astype(np.float32)])
    with pytest.raises(InputError, match="at least one"):
        fuse_mean([])
    with pytest.raises(InputError, match="2 weights"):
        fuse_weighted([tiles(), tiles()], weights=Weights((1.0,)))


def test_bands_are_the_low_band_of_one_and_the_details_of_another() -> None:
    rng = np.random.default_rng(5)
    low, sharp = rng.integers(60, 190, (2, 3, 16, 24, 3), np.uint8)
    same = fuse_bands([low, sharp], weights=Bands(0, 0, "bior4.4", (1.0, 1.0)))
    assert np.array_equal(same, low)
    fused = fuse_bands([low, sharp], weights=Bands(0, 1, "haar", (1.0,))).astype(float)

    def means(x: np.ndarray) -> np.ndarray:
        return x.reshape(3, 8, 2, 12, 2, 3).astype(float).mean((2, 4), keepdims=True)

    def details(x: np.ndarray) -> np.ndarray:
        return (x.reshape(3, 8, 2, 12, 2, 3) - means(x)).reshape(x.shape)

    expected = (means(low) + np.zeros((3, 8, 2, 12, 2, 3))).reshape(low.shape) + details(sharp.astype(float))
    inside = (expected > 0) & (expected < 255)
    assert np.abs(fused - expected)[inside].max() <= 0.5 + 1e-9
    half = fuse_bands([low, sharp], weights=Bands(0, 1, "haar", (0.5,))).astype(float)
    mixed = (expected + low) / 2
    assert np.abs(half - mixed)[(mixed > 0) & (mixed < 255)].max() <= 0.5 + 1e-9
    with pytest.raises(InputError, match="fusion bands"):
        fuse_bands([low], weights=Bands(0, 1, "haar", (1.0,)))


def test_masks_are_by_agreement_with_lr_around_each_pixel() -> None:
    generator = np.random.default_rng(6)
    hr = upscale(generator.integers(60, 190, (12, 16, 3), np.uint8), 2)[None]
    lr = downscale(hr[0], 2)[None]
    left, right = hr.copy(), hr.copy()
    left[:, :, 16:] += 30  # each teacher is off in one half
    right[:, :, :16] += 30
    fused = fuse_mask([left, right], weights=Mask(0, 1.0), lr=lr)
    assert np.array_equal(fused[:, :, :10], hr[:, :, :10]) and np.array_equal(fused[:, :, 22:], hr[:, :, 22:])
    assert np.array_equal(fuse_mask([hr, hr], weights=Mask(3, 0.1), lr=lr), hr)
    # By the definition, in numpy, at one LR pixel and its 3 x 3 square.
    errors = [
        np.square(downscale(t[0], 2).astype(float) - lr[0]).mean(-1)[4:7, 7:10].mean() for t in (left, right)
    ]
    soft = np.exp(-np.array(errors) / (2 * 20.0**2))
    found = masks([left, right], lr, Mask(1, 20.0))[:, 0, 5, 8]
    assert found == pytest.approx(soft / soft.sum(), rel=1e-5)
    with pytest.raises(InputError, match="LR"):
        fuse_mask([hr], weights=Mask(0, 1.0), lr=None)
    same = fuse_mask([lr, lr], weights=Mask(1, 1.0), lr=lr)  # scale 1
    assert np.array_equal(same, lr)
