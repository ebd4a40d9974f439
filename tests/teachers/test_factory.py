"""Teachers from code of one's own."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_kit import run
from road_kit import Road, Untouchable, picture, recipe, recipe_file, teacher
from torch import nn
from torch.nn import functional as F

from pipeline.cache.rows import Rows
from pipeline.errors import InputError
from teachers import factory
from teachers.loading import load_teacher

CODE = """
import torch
from torch import nn


def enlarging(mode="nearest", weights=None, scale=2):
    return nn.Upsample(scale_factor=scale, mode=mode)


def exchanged():
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="bicubic"), Scaled())


class Scaled(nn.Module):
    def forward(self, x):
        return x / 255


def raising():
    raise RuntimeError("no such thing")


def number():
    return 7
"""
NEAREST = {"factory": "own_networks:enlarging", "name": "own"}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of one's own, which can be imported."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_networks.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    importlib.invalidate_caches()
    for seed, name in enumerate("abcd"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 104, seed)
    return tmp_path


def test_a_run_learns_from_it(own: Path) -> None:
    road = Road(recipe(own, teachers=[NEAREST, teacher("edsr")]))
    tiles, (mine, _), fused, (job,) = road.distill()
    assert job.result() and mine.network.architecture == "enlarging" and fused.quality > 15
    store = road.run.planner.store
    lr = torch.from_numpy(Rows(store, tiles.train).take("lr", np.arange(3))).permute(0, 3, 1, 2).float() / 255
    expected = F.interpolate(lr, scale_factor=2, mode="nearest").mul(255).round().byte().permute(0, 2, 3, 1)
    assert np.array_equal(Rows(store, mine.cached.train).take("sr", np.arange(3)), expected.numpy())
    assert Road(recipe(own, teachers=[NEAREST, teacher("edsr")]), Untouchable()).distill()


def test_its_file_its_options_and_what_they_name_are_its_identity(own: Path) -> None:
    place = NEAREST["factory"]
    weights = own / "w.pth"
    weights.write_bytes(b"1")
    first = factory.sha256(place, {})
    named = factory.sha256(place, {"weights": str(weights)})
    assert len({first, factory.sha256(place, {"mode": "bicubic"}), named}) == 3
    weights.write_bytes(b"2")
    assert factory.sha256(place, {"weights": str(weights)}) != named
    (own / "code" / "own_networks.py").write_text(CODE + "\n# other\n")
    assert factory.sha256(place, {}) != first


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"factory": "own_networks:raising"}, "no such thing"),
        ({"factory": "own_networks:number"}, "torch.nn.Module, found int"),
        ({"factory": "own_networks:absent"}, "a function that can be imported"),
        ({"factory": "nowhere_at_all:f"}, "PYTHONPATH"),
        ({"factory": "own_networks"}, "package.module:function"),
        ({"factory": "own_networks:enlarging", "options": {"scale": 3}}, "made for another scale"),
        ({"factory": "own_networks:enlarging", "options": {"size": 3}}, "size"),
        ({"factory": "own_networks:enlarging", "checkpoint": "x.pth"}, "one of them"),
        ({"name": "neither"}, "one of them"),
    ],
    ids=lambda v: v.get("factory", "neither") if isinstance(v, dict) else "",
)
def test_what_cannot_be_is_one_error_before_anything_starts(own: Path, entry: dict, said: str) -> None:
    done = run("run", recipe_file(own, teachers=[entry]), "--inline")
    assert done.code == 2 and said in done.err and done.err.count("\n") <= 2, done.err
    assert not list(own.glob("cache/tiles"))


def test_the_gate_and_the_readings_are_for_it_too(own: Path) -> None:
    odd = {"factory": "own_networks:exchanged", "name": "odd"}
    with pytest.raises(InputError, match="shrunk again"):
        Road(recipe(own, teachers=[odd])).teach()
    _, (taught,) = Road(recipe(own, teachers=[{**odd, "gate": "off"}])).teach()
    assert taught.quality < 10
    (mended,) = [t for _, (t,) in [Road(recipe(own, teachers=[NEAREST])).teach()]]
    assert mended.quality > 15


@pytest.mark.ray
def test_actors_make_it_too(ray_local: None, tmp_path: Path) -> None:
    from pipeline.engine.ray_engine import RayEngine

    for seed in range(3):
        picture(tmp_path / "pictures" / f"{seed}.png", 96, 104, seed)
    entry = {"factory": "test_factory:twice", "name": "own"}  # this module: the workers' path has this folder
    _, (here,) = Road(recipe(tmp_path, teachers=[entry])).teach()
    there = recipe(tmp_path, teachers=[entry], cache={"root": str(tmp_path / "other")})
    _, (spread,) = Road(there, RayEngine()).teach()
    assert spread.quality == here.quality


def twice() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear")


def test_recipes_of_before_are_what_they_were(own: Path) -> None:
    assert set(recipe(own).model_dump()["teachers"][0]) == {"checkpoint", "name", "precision"}
    dumped = recipe(own, teachers=[NEAREST]).model_dump(mode="json")
    assert json.loads(json.dumps(dumped))["teachers"][0]["factory"] == NEAREST["factory"]
    assert load_teacher(teacher("edsr")["checkpoint"]).info.scale == 2
