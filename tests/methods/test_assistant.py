"""An assistant between the teachers and the student of super-resolution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from road_kit import Road, Untouchable, picture, recipe, weights

from pipeline.cache.rows import Rows
from pipeline.errors import InputError

ASSISTANT = {"name": "edsr", "options": {"features": 8, "blocks": 1}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    return tmp_path


def test_the_student_learns_from_the_assistants_cached_outputs(place: Path) -> None:
    method = {"name": "mtkd", "assistant": {**ASSISTANT, "train": {"steps": 4, "batch": 4, "patch": 12}}}
    road = Road(recipe(place, method=method))
    prepared, (job,) = road.run.distill(["mtkd"], [0])
    helper = prepared.helpers["mtkd"]
    assert helper.job is not None and helper.job.steps == 4 and helper.cached is not None
    assert job.columns["target"].train == helper.cached.path("train")
    assert helper.job.columns["target"].train == prepared.fused.cached.path("train")
    assert helper.quality > 15 and helper.rows > 0
    store = road.run.planner.store
    tiles, outputs = Rows(store, prepared.samples.train), Rows(store, helper.cached.train)
    lr = torch.from_numpy(tiles.take("lr", np.arange(2))).permute(0, 3, 1, 2).float() / 255
    expected = helper.network.open(store.uri, "cpu")(lr).mul(255).round().clamp(0, 255).byte()
    assert np.array_equal(outputs.take("sr", np.arange(2)), expected.permute(0, 2, 3, 1).numpy())
    again, (same,) = Road(recipe(place, method=method), Untouchable()).run.distill(["mtkd"], [0])
    assert weights(same) == weights(job)


def test_without_one_a_training_is_called_as_before(place: Path) -> None:
    settings = recipe(place, method={"name": "kd"})
    assert "assistant" not in settings.model_dump()["method"]


def test_an_assistant_that_does_not_exist_is_refused_before_anything_starts(place: Path) -> None:
    for wrong in ({"name": "no_such"}, {"name": "edsr", "options": {"featurez": 8}}):
        road = Road(recipe(place, method={"name": "kd", "assistant": wrong}), Untouchable())
        with pytest.raises(InputError):
            road.run.check(["kd"])
