"""Intervals, bands and figures by class against what drawing pictures again one by one, and scikit-learn, give."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score

from pipeline.tasks.recognition import intervals, metrics

ROUNDS = 12


def test_figures_by_class_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, found = generator.integers(0, 5, 200), generator.integers(0, 4, 200)  # the last is never answered
    labels[labels == 1] = 0  # and one has no pictures
    logits = np.eye(6)[found]
    _, curves = metrics.classification(logits, labels)
    own = metrics.by_class(np.array(curves["confusion"]))
    theirs = precision_recall_fscore_support(labels, found, labels=np.arange(6), zero_division=np.nan)
    for name, expected in zip(("precision", "recall", "f1", "support"), theirs):
        known = own["support"] > 0 if name == "f1" else slice(None)
        np.testing.assert_allclose(own[name][known], expected[known], err_msg=name)
    assert np.isnan(own["precision"][4]) and np.isnan(own["recall"][1]) and own["f1"][4] == 0


def test_the_bins_of_the_reliability_diagram_make_the_calibration_error() -> None:
    generator = np.random.default_rng(1)
    logits, labels = 2 * generator.standard_normal((300, 4)), generator.integers(0, 4, 300)
    count, sure, right = map(np.array, metrics.reliability(logits, labels))
    assert count.sum() == 300
    error = (count / 300 * np.abs(right - sure)).sum()
    assert error == pytest.approx(metrics.calibration_error(logits, labels))
    inside = (np.arange(15) / 15 <= sure) & (sure <= np.arange(1, 16) / 15)
    assert inside[count > 0].all()


def faces(people: int, each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(2)
    labels = np.repeat(np.arange(people), each)
    return generator.standard_normal((people, 6))[labels] + noise * generator.standard_normal(
        (len(labels), 6)
    ), labels


@pytest.mark.parametrize(("people", "what"), [(12, "identities"), (4, "pictures")])
def test_the_band_is_that_of_pictures_drawn_again_pair_by_pair(people: int, what: str) -> None:
    """The same people (or pictures) drawn as lists, copies and all; pairs of a thing with its copy do not count."""
    embeddings, labels = faces(people, 4, 0.8)
    units = labels if what == "identities" else np.arange(len(labels))
    assert (intervals.units_of(labels) == units).all()
    unit_vectors = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    areas, tars = [], []
    for times in intervals.draws(int(units.max()) + 1, ROUNDS):
        # (copy of the unit, picture) of everything that was drawn
        drawn = [
            ((u, c), i)
            for u, n in enumerate(times.astype(int))
            for c in range(n)
            for i in np.flatnonzero(units == u)
        ]
        scores, genuine = [], []
        for (one, i), (two, j) in combinations(drawn, 2):
            if one != two and one[0] == two[0]:
                continue  # of two copies of one person (or picture)
            scores.append(unit_vectors[i] @ unit_vectors[j])
            genuine.append(labels[i] == labels[j])
        s, g = np.array(scores), np.array(genuine)
        areas.append(roc_auc_score(g, s))
        limits = [t for t in np.unique(s) if (s[~g] >= t).mean() <= 0.1]
        tars.append((s[g] >= limits[0]).mean() if limits else 0.0)
    values, band = intervals.verification(*metrics.pairs_of(embeddings, labels), labels, rounds=ROUNDS)
    far, low, high = map(np.array, band)
    for found, expected in (("auc", areas), ("tar@far=0.1", tars)):
        ends = np.quantile(expected, [0.025, 0.975])
        np.testing.assert_allclose([values[f"{found}_low"], values[f"{found}_high"]], ends, atol=1e-6)
    at = np.searchsorted(far, 0.1)
    assert (low[at], high[at]) == (values["tar@far=0.1_low"], values["tar@far=0.1_high"])
    assert (np.diff(low) >= 0).all() and (low <= high).all() and low[-1] == high[-1] == 1


def test_a_band_holds_the_roc_that_it_was_made_for() -> None:
    embeddings, labels = faces(40, 5, 0.9)
    figures, curves = metrics.verification(embeddings, labels)
    values, band = intervals.verification(*metrics.pairs_of(embeddings, labels), labels, rounds=200)
    false, true = map(np.array, curves["roc"])
    far, low, high = map(np.array, band)
    own = np.array([true[false <= f].max(initial=0.0) for f in far])
    inside = (low - 0.02 <= own) & (own <= high + 0.02)
    assert inside[far >= false[false > 0].min()].all()
    for key in ("auc", "rank1", "tar@far=0.01"):
        assert values[f"{key}_low"] < figures[key] < values[f"{key}_high"]


def test_where_nothing_can_be_drawn_there_is_no_band() -> None:
    embeddings, labels = faces(2, 2, 0.5)
    pairs, nearest = metrics.pairs_of(embeddings, labels)
    only = metrics.Pairs(*(part[:1] for part in (pairs.scores, pairs.genuine, pairs.first, pairs.second)))
    assert intervals.verification(only, nearest, labels, rounds=ROUNDS) == ({}, [])


def test_means_are_drawn_by_their_units() -> None:
    units, values = np.array([0, 0, 0, 1, 2, 2]), np.array([1.0, 1, 0, 0, 1, 0])
    expected = []
    for times in intervals.draws(3, ROUNDS).astype(int):
        drawn = np.concatenate([np.tile(values[units == u], n) for u, n in enumerate(times)])
        expected.append(drawn.mean())
    found = intervals.of_means({"rank1": values}, units, ROUNDS)
    ends = np.quantile(expected, [0.025, 0.975])
    np.testing.assert_allclose([found["rank1_low"], found["rank1_high"]], ends, atol=1e-6)


def test_balanced_accuracy_and_calibration_error_lie_inside_their_intervals() -> None:
    generator = np.random.default_rng(4)
    labels = generator.integers(0, 3, 400)
    logits = 1.5 * np.eye(3)[labels] + generator.standard_normal((400, 3))
    figures, _ = metrics.classification(logits, labels)
    found = intervals.classification(logits, labels, rounds=300)
    for key in ("balanced_accuracy", "ece"):
        assert found[f"{key}_low"] < figures[key] < found[f"{key}_high"], key
    # Near the accuracy's own, whose deviation is that of a share of 400.
    width = found["balanced_accuracy_high"] - found["balanced_accuracy_low"]
    deviation = (figures["accuracy"] * (1 - figures["accuracy"]) / 400) ** 0.5
    assert width == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_segmentation_is_drawn_by_pictures() -> None:
    generator = np.random.default_rng(5)
    masks = (generator.random((9, 6, 6)) < 0.3).astype(int)
    probabilities = np.clip(0.5 * masks + 0.6 * generator.random(masks.shape), 0, 1)
    expected = []
    for times in intervals.draws(9, ROUNDS).astype(int):
        which = np.repeat(np.arange(9), times)
        values, _ = metrics.segmentation(probabilities[which], masks[which])
        values["auprc"] = average_precision_score(masks[which].ravel(), probabilities[which].ravel())
        expected.append(values)
    found = intervals.segmentation(probabilities, masks, rounds=ROUNDS)
    for key, tolerance in (("iou", 1e-9), ("dice", 1e-9), ("auprc", 0.01)):
        ends = np.quantile([values[key] for values in expected], [0.025, 0.975])
        np.testing.assert_allclose([found[f"{key}_low"], found[f"{key}_high"]], ends, atol=tolerance)
    assert intervals.segmentation(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), rounds=5) == {}
