"""Figures of merit, from scikit-learn where it has them. All are in [0, 1], higher is better but for the ECE.

Verification: every pair of test pictures, by cosine similarity. Retrieval: Market-1501's rule, by which gallery
pictures of the query's identity from the query's camera are neither right nor wrong. Segmentation: over all pixels of
all pictures together, so a picture with an empty mask counts by its false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import InputError

FARS = (0.1, 0.01, 0.001)
RANKS = 20
BINS = 15
"""Of certainty."""
HITS = 8
"""Answers of a query that are kept to be shown."""
MOST_SHOWN = 1000
MOST_PAIRS = 8_000_000
Curves = dict[str, Any]


def classification(logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], Curves]:
    """Accuracy with its interval, balanced accuracy and calibration error of (n, K) logits and (n,) labels; curves: the
    confusion matrix (K, K), and [pictures, mean certainty, share that is right] of each bin of certainty.
    """
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

    found = logits.argmax(axis=1)
    matrix = confusion_matrix(labels, found, labels=np.arange(logits.shape[1]))
    values = {
        "accuracy": float(accuracy_score(labels, found)),
        "balanced_accuracy": float(balanced_accuracy_score(labels, found)),
        "ece": calibration_error(logits, labels),
    }
    low, high = interval((found == labels).astype(float))
    curves = {"confusion": matrix.tolist(), "reliability": reliability(logits, labels)}
    return {**values, "accuracy_low": low, "accuracy_high": high}, curves


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """ECE of (n, K) logits and (n,) labels: the mean distance between how sure a network is and how often it is right,
    over `bins` equal ranges of the first (Guo, Pleiss, Sun, Weinberger, ICML 2017, equation 3).
    """
    sure, right, number = binned(logits, labels, bins)
    gaps = [abs((right[number == b] - sure[number == b]).sum()) for b in range(bins)]
    return float(sum(gaps) / len(labels))


def binned(
    logits: np.ndarray, labels: np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(probability of the answer, whether it is right, number of its bin), (n,) each; logits that are not finite have a
    probability of nan, in the first bin."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    sure = 1 / np.exp(shifted).sum(axis=1)
    number = np.minimum((np.nan_to_num(sure) * bins).astype(int), bins - 1)
    return sure, logits.argmax(axis=1) == labels, number


def reliability(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> list[list[float]]:
    """[pictures, mean certainty, share that is right] of each bin of the calibration error; 0 where it is empty."""
    sure, right, number = binned(logits, labels, bins)
    inside = np.bincount(number, minlength=bins)
    means = [np.bincount(number, weights=x, minlength=bins) / np.maximum(inside, 1) for x in (sure, right)]
    return [inside.tolist(), *(x.tolist() for x in means)]


def by_class(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """`precision`, `recall`, `f1` and `support` (K,) of a confusion matrix (K, K), true classes by row.

    Precision is nan for a class that is never answered, recall and F1 for one without pictures.
    """
    right, support, answered = np.diag(matrix).astype(float), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        precision, recall = right / answered, right / support
        f1 = np.where(support > 0, 2 * right / (support + answered), np.nan)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def interval(values: np.ndarray, share: float = 0.95, rounds: int = 2000) -> tuple[float, float]:
    """Of the mean of (n,) values: the central `share` of means of as many drawn again with replacement, `rounds` times
    (percentile bootstrap: Efron, Tibshirani, 1993, section 13.3). The same each time.
    """
    generator = np.random.default_rng(0)
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(rounds)]
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def verification(embeddings: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], Curves]:
    """TAR at FAR, area under the ROC curve over all pairs, and rank-1 (nearest other picture) of (n, D) embeddings.

    TAR at FAR f is the share of genuine pairs accepted at the lowest threshold at which at most f of the impostors are.
    Raises InputError where there is no genuine or no impostor pair.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    pairs, nearest = pairs_of(embeddings, labels)
    false, true, _ = roc_curve(pairs.genuine, pairs.scores, drop_intermediate=False)
    values = {f"tar@far={f:g}": float(true[false <= f].max(initial=0.0)) for f in FARS}
    values["auc"] = float(roc_auc_score(pairs.genuine, pairs.scores))
    values["rank1"] = float(nearest.mean())
    thin = np.unique(np.linspace(0, len(false) - 1, 400).astype(int))
    return values, {"roc": [false[thin].tolist(), true[thin].tolist()]}


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of pictures."""

    scores: np.ndarray
    """(p,) cosine similarities."""
    genuine: np.ndarray
    """(p,) whether both show the same identity."""
    first: np.ndarray
    second: np.ndarray
    """(p,) numbers of the pictures."""


def pairs_of(embeddings: np.ndarray, labels: np.ndarray) -> tuple[Pairs, np.ndarray]:
    """(all pairs of pictures, whether each picture's nearest other one is of its identity (n,)) of (n, D) embeddings.

    Of more than MOST_PAIRS every so many-th. Raises InputError where there is no genuine or no impostor pair.
    """
    similar = _cosines(embeddings, embeddings)
    first, second = np.triu_indices(len(labels), 1)
    if len(first) > MOST_PAIRS:
        step = -(-len(first) // MOST_PAIRS)
        first, second = first[::step], second[::step]
    genuine = labels[first] == labels[second]
    if genuine.all() or not genuine.any():
        raise InputError("test set", "pairs of one identity and pairs of two", "only one of these")
    return Pairs(similar[first, second], genuine, first, second), _nearest(similar, labels)


def nearest(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each picture's nearest other one is of its class, (n,), of (n, D) embeddings."""
    return _nearest(_cosines(embeddings, embeddings), labels)


def _nearest(similar: np.ndarray, labels: np.ndarray) -> np.ndarray:
    np.fill_diagonal(similar, -np.inf)
    found: np.ndarray = labels[similar.argmax(axis=1)] == labels
    return found


def retrieval(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    same: np.ndarray | None = None,
) -> tuple[dict[str, float], Curves]:
    """mAP and CMC of (q, D) queries against a (g, D) gallery; `same` (q,) is each query's own place there, or -1.

    A query without a right answer left is not counted. Raises InputError where none has one. Curves: the CMC, and of
    each query that counts `answered`: {"query", "precision" (average), "rank" (of the first right answer, from 0),
    "hits" (the first HITS of the gallery), "right" (of these)}.
    """
    answers = answered(queries, gallery, query_labels, gallery_labels, query_cameras, gallery_cameras, same)
    ranks = np.array([answer["rank"] for answer in answers])
    cmc = [float(np.mean(ranks < k)) for k in range(1, RANKS + 1)]
    precision = float(np.mean([answer["precision"] for answer in answers]))
    return {"map": precision, "rank1": cmc[0], "rank5": cmc[4]}, {"cmc": cmc, "answered": answers}


def some(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MOST_SHOWN of the queries that count, evenly spaced: the same ones for every network."""
    return answers[:: -(-len(answers) // MOST_SHOWN)]


def answered(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
    same: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """What each query that counts was answered, as `retrieval` says. Raises InputError where none counts."""
    from sklearn.metrics import average_precision_score

    similar = _cosines(queries, gallery)
    found: list[dict[str, Any]] = []
    for i in range(len(queries)):
        usable = ~((gallery_labels == query_labels[i]) & (gallery_cameras == query_cameras[i]))
        if same is not None and same[i] >= 0:
            usable[same[i]] = False
        right = (gallery_labels == query_labels[i])[usable]
        if not right.any():
            continue
        scores = similar[i, usable]
        order = np.argsort(-scores, kind="stable")
        found.append(
            {
                "query": i,
                "precision": float(average_precision_score(right, scores)),
                "rank": int(right[order].argmax()),
                "hits": np.flatnonzero(usable)[order[:HITS]].tolist(),
                "right": right[order[:HITS]].tolist(),
            }
        )
    if not found:
        raise InputError("test set", "queries with a right answer from another camera", "none")
    return found


def segmentation(probabilities: np.ndarray, masks: np.ndarray) -> tuple[dict[str, float], Curves]:
    """IoU and Dice of the defect at probability 0.5, and the area under precision-recall: (n, H, W) and 0/1 masks.

    Where no picture has a defect these are 1 without false alarms and 0 with them.
    """
    from sklearn.metrics import average_precision_score

    found, truth = probabilities > 0.5, masks.astype(bool)
    both, either = int((found & truth).sum()), int((found | truth).sum())
    total = int(found.sum()) + int(truth.sum())
    values = {
        "iou": both / either if either else 1.0,
        "dice": 2 * both / total if total else 1.0,
        "auprc": float(average_precision_score(truth.ravel(), probabilities.ravel()))
        if truth.any()
        else float(not found.any()),
    }
    return values, {}


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    return unit(a.astype(np.float64)) @ unit(b.astype(np.float64)).T
