"""A teacher's mean over the eight moves of a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from road_kit import TEACHERS, Road, picture, recipe, teacher

from pipeline.recipe.recipe import TeacherSpec
from teachers.loading import load_teacher

EDSR = TEACHERS / "edsr_x2.safetensors"


def moves(x: np.ndarray) -> list[np.ndarray]:
    """(H, W, 3) in all eight ways."""
    return [np.rot90(y, k) for y in (x, x[:, ::-1]) for k in range(4)]


def moved_back(x: np.ndarray, number: int) -> np.ndarray:
    turned = np.rot90(x, -(number % 4))
    return turned[:, ::-1] if number >= 4 else turned


def test_it_is_the_mean_of_eight_calls_moved_back() -> None:
    alone = load_teacher(EDSR)
    both = alone.with_convention(self_ensemble=True)
    x = np.random.default_rng(0).random((13, 18, 3), np.float32)

    def run(network: object, picture: np.ndarray) -> np.ndarray:
        lr = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        return network(lr)[0].permute(1, 2, 0).numpy()

    expected = np.mean([moved_back(run(alone, y), n) for n, y in enumerate(moves(x))], axis=0)
    found = run(both, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found - run(alone, x)).max() > 1e-4
    for n, y in enumerate(moves(x)):  # and so it does to a moved picture what it does to the picture
        np.testing.assert_allclose(moved_back(run(both, y), n), found, atol=1e-5)


def test_recipes_of_before_are_as_they_were() -> None:
    assert "self_ensemble" not in TeacherSpec(checkpoint="x.pth").model_dump()
    assert TeacherSpec(checkpoint="x.pth", self_ensemble=True).model_dump()["self_ensemble"] is True


def test_its_outputs_are_cached_beside_those_of_one_call(tmp_path: Path) -> None:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 112, seed)
    pair = [teacher("edsr"), {**teacher("edsr"), "name": "edsr8", "self_ensemble": True}]
    road = Road(recipe(tmp_path, teachers=pair))
    _, (one, eight) = road.teach()
    assert one.cached.folder != eight.cached.folder
    assert eight.network.multiply_adds == 8 * one.network.multiply_adds
    assert eight.network.sha256 == one.network.sha256 and eight.network.reading == {"self_ensemble": True}
    assert eight.quality != one.quality and eight.quality == pytest.approx(one.quality, abs=1.0)
    again = Road(recipe(tmp_path, teachers=pair[1:]))
    again.teach()
    assert again.run.planner.shards_written == 0
