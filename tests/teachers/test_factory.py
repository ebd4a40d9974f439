"""Teachers from code of one's own."""

from __future__ import annotations

import importlib
import json
import os
import sys
from datetime import date
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


class Wide(nn.Module):
    # Of values in 0..255, a little flatter about the middle of them, with more red than it was given.

    def forward(self, x):
        y = nn.functional.interpolate(x, scale_factor=2).sub(127.5).mul(0.99).add(127.5)
        return y + torch.tensor([4.0, 0.0, 0.0]).view(1, 3, 1, 1)


def wide():
    return Wide()


class Looking(nn.Module):
    # Leaves torch on its way.

    def forward(self, x):
        return torch.from_numpy(x.contiguous().numpy().repeat(2, 2).repeat(2, 3))


def looking():
    return Looking()


class Drawn(nn.Module):
    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(0.9 + 0.1 * torch.rand(1))
        self.deep = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        return nn.functional.interpolate(x, scale_factor=2) * self.level


def drawn():
    return Drawn()


def pair():
    return nn.Identity()


exec("def unwritten(): return nn.Upsample(scale_factor=2)")


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
        ({"factory": "own_networks:unwritten"}, "a function of a Python file"),
        ({"factory": "own_networks:pair"}, "made for another scale"),
        ({"factory": "own_networks:enlarging", "options": {"mode": date(2024, 1, 1)}}, "not JSON"),
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
def test_actors_make_it_too(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.engine.ray_engine import RayEngine

    # A Ray that a test before has stopped is started anew, by this process' environment.
    here_ = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here_), str(here_.parent), str(here_.parents[1])]))
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


def test_a_network_of_0_to_255_is_named_and_the_key_mends_it(own: Path) -> None:
    entry = {"factory": "own_networks:wide", "name": "own", "precision": "fp32"}
    with pytest.raises(InputError, match="Set `value_range: 255` on this teacher"):
        Road(recipe(own, teachers=[entry])).teach()
    for channels, reddened in (("rgb", 0), ("bgr", 2)):
        road = Road(recipe(own, teachers=[{**entry, "value_range": 255, "channels": channels}]))
        tiles, (taught,) = road.teach()
        store = road.run.planner.store
        lr = Rows(store, tiles.train).take("lr", np.arange(3)).astype(float).repeat(2, 1).repeat(2, 2)
        expected = (lr - 127.5) * 0.99 + 127.5
        expected[..., reddened] += 4.0
        made = Rows(store, taught.cached.train).take("sr", np.arange(3)).astype(float)
        assert np.abs(made - expected.clip(0, 255)).max() <= 0.51
        assert road.warnings == []


def test_code_that_leaves_torch_teaches_and_is_not_counted(own: Path) -> None:
    _, (taught,) = Road(recipe(own, teachers=[{"factory": "own_networks:looking", "name": "own"}])).teach()
    assert taught.network.multiply_adds is None and taught.quality > 15
    _, (counted,) = Road(recipe(own, teachers=[NEAREST])).teach()
    assert counted.network.multiply_adds == 0  # nothing to multiply: known


def test_what_is_drawn_at_random_is_the_same_in_every_process(own: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    one, other = (factory.make("own_networks:drawn", {}, scale=2, name="own") for _ in range(2))
    assert torch.equal(one.network.level, other.network.level)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's draws are touched


def test_files_are_found_however_deep_options_name_them(own: Path) -> None:
    place, weights = NEAREST["factory"], own / "w.pth"
    seen = set()
    for content in (b"1", b"2"):
        weights.write_bytes(content)
        seen |= {factory.sha256(place, {"parts": [{"file": str(weights)}]})}
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["raising", "number", "pair", "absent"])
def test_it_is_refused_before_any_engine_is_asked(own: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"own_networks:{name}"):
        Road(
            recipe(own, teachers=[{"factory": f"own_networks:{name}", "name": "own"}]), Untouchable()
        ).teach()


@pytest.mark.ray
def test_workers_that_cannot_import_it_say_what_to_do(ray_local: None, own: Path) -> None:
    """This process has the module's folder on its path, the workers have not."""
    from pipeline.engine.ray_engine import RayEngine

    with pytest.raises(InputError, match="PYTHONPATH, on every machine"):
        Road(recipe(own, teachers=[NEAREST]), RayEngine()).teach()
