"""Recognition's figures of merit against cases that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.tasks.recognition import intervals, metrics


def test_accuracy_balanced_accuracy_and_confusion() -> None:
    logits = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    values, curves = metrics.classification(logits, np.array([0, 0, 0, 1, 2, 2]))
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert curves["confusion"] == [[2, 1, 0], [0, 1, 0], [1, 0, 1]]


def angles(*degrees: float) -> np.ndarray:
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def test_verification_of_four_pictures_of_two_people() -> None:
    # Pairs by angle: 0-10 genuine 10, 60-90 genuine 30; impostors 0-60 60, 0-90 90, 10-60 50, 10-90 80.
    values, _ = metrics.verification(angles(0, 10, 60, 90), np.array([5, 5, 8, 8]))
    assert values["tar@far=0.1"] == values["auc"] == values["rank1"] == 1.0
    # Now 0 and 50 are one person, 60 and 90 another: genuine 50 and 30; impostors 60, 90, 10, 40.
    values, curves = metrics.verification(angles(0, 50, 60, 90), np.array([5, 5, 8, 8]))
    assert values["tar@far=0.1"] == 0.0  # the nearest pair of all are impostors
    assert values["auc"] == pytest.approx((3 + 2) / 8)  # 30 beats 60, 90, 40; 50 beats 60, 90
    assert values["rank1"] == pytest.approx(2 / 4)  # 0 and 90 have their own person nearest
    false, true = map(np.array, curves["roc"])
    assert true[false <= 0.25].max() == 0.5  # at one of four impostors, the pair 30 apart


def test_verification_needs_pairs_of_both_kinds() -> None:
    for labels in ([1, 1, 1], [1, 2, 3]):
        with pytest.raises(InputError, match="only one of these"):
            metrics.verification(angles(0, 10, 20), np.array(labels))


def test_retrieval_with_the_camera_rule() -> None:
    # Query: person 1, camera 1, at 0 degrees. Gallery by angle: 5 same person and camera (does not count), 10 other
    # person, 20 right, 30 other, 40 right: precision 1/2 and 2/4 at its right answers.
    gallery = angles(5, 10, 20, 30, 40)
    values, curves = metrics.retrieval(
        angles(0),
        gallery,
        np.array([1]),
        np.array([1, 2, 1, 3, 1]),
        np.array([1]),
        np.array([1, 1, 2, 2, 3]),
    )
    assert values["map"] == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert values["rank1"] == 0.0 and values["rank5"] == 1.0 and curves["cmc"][:3] == [0.0, 1.0, 1.0]


def test_a_query_without_an_answer_from_another_camera_is_not_counted() -> None:
    common = (np.array([1, 2]), np.array([1, 2]))
    values, _ = metrics.retrieval(angles(0, 90), angles(10, 80), *common, np.array([1, 1]), np.array([2, 1]))
    assert values["map"] == 1.0
    with pytest.raises(InputError, match="another camera"):
        metrics.retrieval(angles(0, 90), angles(10, 80), *common, np.array([1, 1]), np.array([1, 1]))


def test_iou_dice_and_auprc_over_all_pixels() -> None:
    probabilities = np.array([[[0.9, 0.8, 0.6, 0.1]], [[0.2, 0.7, 0.1, 0.1]]])
    masks = np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    values, _ = metrics.segmentation(probabilities, masks)
    assert values["iou"] == pytest.approx(2 / 5) and values["dice"] == pytest.approx(2 * 2 / (4 + 3))
    assert values["auprc"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 1 + 1 / 3 * 3 / 5)


def test_pictures_without_any_defect() -> None:
    masks = np.zeros((2, 2, 2), int)
    quiet, _ = metrics.segmentation(np.full((2, 2, 2), 0.1), masks)
    loud, _ = metrics.segmentation(np.full((2, 2, 2), 0.9), masks)
    assert quiet == {"iou": 1.0, "dice": 1.0, "auprc": 1.0} and loud == {
        "iou": 0.0,
        "dice": 0.0,
        "auprc": 0.0,
    }


def test_the_calibration_error_is_that_of_its_definition() -> None:
    generator = np.random.default_rng(3)
    logits, labels = 2 * generator.standard_normal((400, 5)), generator.integers(0, 5, 400)
    expected = 0.0
    sure = [max(np.exp(z) / np.exp(z).sum()) for z in logits]
    for b in range(15):
        inside = [i for i in range(400) if b / 15 <= sure[i] < (b + 1) / 15]
        if inside:
            right = np.mean([logits[i].argmax() == labels[i] for i in inside])
            expected += len(inside) / 400 * abs(right - np.mean([sure[i] for i in inside]))
    assert metrics.calibration_error(logits, labels) == pytest.approx(expected, abs=1e-12)
    certain = np.array([[60.0, 0.0], [0.0, 60.0]])
    assert metrics.calibration_error(certain, np.array([0, 1])) == pytest.approx(0, abs=1e-12)
    assert metrics.calibration_error(certain, np.array([1, 0])) == pytest.approx(1)


def test_an_interval_holds_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    found = [metrics.interval((generator.random(150) < 0.7).astype(float), rounds=400) for _ in range(200)]
    assert 0.89 <= np.mean([low <= 0.7 <= high for low, high in found]) <= 0.99
    low, high = metrics.interval((np.arange(1000) < 700).astype(float))
    assert (low, high) == pytest.approx((0.7 - 1.96 * 0.01449, 0.7 + 1.96 * 0.01449), abs=0.004)
    assert metrics.interval(np.ones(50)) == (1.0, 1.0)


def test_figures_of_a_network_that_diverged_are_nan_and_no_error() -> None:
    logits = np.full((6, 3), np.nan)
    logits[:2] = [[9.0, 0.0, 0.0], [0.0, 9.0, 0.0]]
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert np.isnan(metrics.calibration_error(logits, labels))
    pictures, certain, _ = metrics.reliability(logits, labels)
    assert sum(pictures) == 6 and pictures[-1] == 2 and certain[-1] > 0.99
    assert np.isnan(intervals.classification(logits, labels, rounds=4)["ece_low"])
