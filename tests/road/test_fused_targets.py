"""Fused targets on the road: one for every tile, renewed with the teachers, warned of where the best is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from road_kit import Road, Untouchable, five_pictures, pixels, recipe, teacher

AGGREGATE = {
    "kind": "aggregate",
    "dim": 8,
    "depths": [1],
    "heads": [2],
    "window": 4,
    "train": {"steps": 4, "batch": 2, "patch": 12, "lr": 1e-3, "evaluate_every": 2, "log_every": 2},
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return five_pictures(tmp_path)


@pytest.mark.parametrize(
    "fusion",
    [
        {"kind": "mean"},
        {"kind": "median"},
        {"kind": "best"},
        {"kind": "weighted", "weights": {"edsr": 0.75, "compact": 0.25}},
        {"kind": "weighted"},
        {"kind": "bands", "low": "edsr", "details": "compact"},
        {"kind": "mask"},
        {"kind": "regions"},
        AGGREGATE,
    ],
    ids=["mean", "median", "best", "weighted", "fit", "bands", "mask", "regions", "aggregate"],
)
def test_every_fusion_makes_a_target_for_every_tile(again: Path, fusion: dict) -> None:
    road = Road(recipe(again, fusion=fusion))
    tiles, taught, fused, (job,) = road.distill()
    outputs = [pixels(road, t.cached.train, "sr") for t in taught]
    targets = pixels(road, fused.cached.train, "sr")
    hr = pixels(road, tiles.train, "hr")
    assert targets.keys() == outputs[0].keys() == hr.keys() and job.result()

    def error(pictures: dict[str, np.ndarray]) -> float:
        return float(np.mean([np.square(pictures[i].astype(float) - hr[i]).mean() for i in hr]))

    for id_, target in targets.items():
        pair = np.stack([o[id_] for o in outputs]).astype(float)
        expected = {
            "mean": pair.mean(0),
            "median": pair.mean(0),
            "best": pair[np.square(pair - hr[id_]).mean((1, 2, 3)).argmin()],
            "weighted": np.tensordot((0.75, 0.25), pair, 1),
        }
        if fusion["kind"] in expected and fusion != {"kind": "weighted"}:
            assert np.abs(target - expected[fusion["kind"]]).max() <= 0.5 + 1e-4
    if fusion in ({"kind": "weighted"}, {"kind": "regions"}):
        # Rounding apart, the fit cannot lose on its own tiles.
        assert error(targets) <= 1.01 * min(map(error, outputs))
    assert error(targets) < 1.3 * max(map(error, outputs))
    assert Road(recipe(again, fusion=fusion), Untouchable()).distill()


def test_fitted_and_trained_fusions_follow_the_teachers(again: Path) -> None:
    first = Road(recipe(again, fusion=AGGREGATE)).distill()[2]
    other = Road(recipe(again, fusion=AGGREGATE, teachers=[teacher("compact"), teacher("edsr")])).distill()[2]
    assert first.network.network != other.network.network and first.cached.folder != other.cached.folder


def test_fused_targets_below_the_best_teacher_are_warned_of(again: Path) -> None:
    _, taught = Road(recipe(again), Untouchable()).teach()
    ranked = [t.label for t in sorted(taught, key=lambda t: t.quality)]

    def warnings(best: float) -> list[str]:
        fusion = {"kind": "weighted", "weights": dict(zip(ranked, (1 - best, best), strict=True))}
        road = Road(recipe(again, fusion=fusion))
        road.distill()
        return [w for w in road.warnings if "fused" in w]

    assert warnings(1.0) == []
    (warning,) = warnings(0.0)
    assert ranked[-1] in warning and "weighted" in warning and "dB" in warning
