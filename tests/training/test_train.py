"""The training loop on real tiles: resume, workers, averages, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import REPOSITORY
from torch import nn

from pipeline.cache.manifest import Manifest
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.losses.pixel import l1
from pipeline.methods.base import Phase, masked_hr
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Train
from pipeline.tasks.super_resolution import tiles as tiling
from pipeline.training import cpu
from pipeline.training.loop import learning_rate, train
from pipeline.training.surroundings import Hooks
from students.expansion import expand

SETTINGS = Train(steps=12, batch=4, patch=12, lr=1e-3, evaluate_every=4, log_every=3, clip=1.0, ema=0.9)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.PReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )


def phase(settings: Train = SETTINGS, **changes: object) -> Phase:
    made = Phase(
        name="distill",
        modules={"student": small()},
        sources=("lr", "hr"),
        losses=lambda m, b: {"hr": l1(m["student"](b["lr"]), b["hr"])},
        weights={"hr": 1.0},
        settings=settings,
        artefact="student",
    )
    return replace(made, **changes)


def make_cache(pictures: Path, root: Path, **data: object) -> tuple[Store, Manifest]:
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "scale": 2,
            "data": {"train": [str(pictures)], "tile": 48, "holdout": 0.0, **data},
            "cache": {"root": str(root), "shard_mb": 0.05},
            "train": {"patch": 12},
            "method": {"name": "scratch"},
        }
    )
    store = Store.open(root)
    plan = tiling.plan(recipe, store)
    receipts = {**plan.kept, **{t.key: t.run() for t in plan.steps}}
    return store, plan.manifest(receipts, held_out=False)


@pytest.fixture
def cache(tiny_pictures: Path, tmp_path: Path) -> tuple[Store, Manifest]:
    return make_cache(tiny_pictures, tmp_path / "cache")


def sampler(cache: tuple[Store, Manifest], batch: int = 4) -> Sampler:
    sources = {name: Source(*cache, name) for name in ("lr", "hr")}
    return Sampler(sources, scale=2, patch=12, batch=batch, seed=5, margin=4)


def run(cache: tuple[Store, Manifest], folder: Path, made: Phase, hooks: Hooks | None = None) -> Phase:
    train(
        made,
        sampler(cache),
        folder=Store.open(folder),
        fingerprint="f",
        seed=5,
        device=torch.device("cpu"),
        hooks=hooks,
    )
    return made


def bits(module: nn.Module) -> list[bytes]:
    return [v.numpy().tobytes() for v in module.state_dict().values()]


class Killed(Exception):
    pass


def killer(at: int) -> Callable[[dict, int], None]:
    def die(metrics: dict, step: int) -> None:
        if step == at:
            raise Killed

    return die


def test_training_lowers_the_loss(cache: tuple, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    hooks = Hooks(log=lambda values, step: seen.append((step, values["train/loss"])))
    run(cache, tmp_path / "a", phase(SETTINGS.model_copy(update={"steps": 60, "lr": 3e-3})), hooks)
    assert [s for s, _ in seen][:3] == [3, 4, 6] and seen[-1][1] < 0.6 * seen[0][1]


@pytest.mark.parametrize("factor, optimiser", [(1, "adam"), (3, "adam"), (1, "muon")])
@pytest.mark.parametrize("at", [4, 8])
def test_a_run_killed_and_resumed_has_the_bits_of_one_that_was_not(
    cache: tuple, tmp_path: Path, at: int, factor: int, optimiser: str
) -> None:
    def made() -> Phase:
        settings = SETTINGS.model_copy(update={"optimiser": optimiser})
        return phase(settings, modules={"student": expand(small(), factor)})

    whole = run(cache, tmp_path / "whole", made())
    with pytest.raises(Killed):
        run(cache, tmp_path / "parts", made(), Hooks(sync=killer(at)))
    resumed = run(cache, tmp_path / "parts", made())
    assert bits(resumed.modules["student"]) == bits(whole.modules["student"])


def test_a_finished_run_is_not_trained_again(cache: tuple, tmp_path: Path) -> None:
    first = run(cache, tmp_path / "a", phase())
    steps: list[int] = []
    again = run(cache, tmp_path / "a", phase(), Hooks(log=lambda _, step: steps.append(step)))
    assert steps == [] and bits(again.modules["student"]) == bits(first.modules["student"])


def test_the_artefact_carries_the_average_of_its_weights(cache: tuple, tmp_path: Path) -> None:
    averaged = run(cache, tmp_path / "a", phase()).modules["student"]
    last = run(cache, tmp_path / "b", phase(SETTINGS.model_copy(update={"ema": 0.0}))).modules["student"]
    assert bits(averaged) != bits(last)


def test_a_term_that_is_not_finite_stops_the_run_with_step_term_and_tiles(
    cache: tuple, tmp_path: Path
) -> None:
    calls = iter(range(100))

    def losses(modules: dict, batch: dict) -> dict:
        value = l1(modules["student"](batch["lr"]), batch["hr"])
        return {"hr": value, "odd": value * (float("nan") if next(calls) == 5 else 1.0)}

    with pytest.raises(FacultyError) as caught:
        run(cache, tmp_path / "a", phase(losses=losses, weights={"hr": 1.0, "odd": 1.0}))
    assert (
        "step 5" in str(caught.value)
        and "`odd`" in str(caught.value)
        and ":" in str(caught.value).split("Samples")[1]
    )
    assert all(i in str(caught.value) for i in sampler(cache).batch(5).ids)


def test_rows_without_hr_weigh_nothing_in_the_hr_term(tiny_pictures: Path, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    os.rename(tiny_pictures / "d.png", lonely / "d.png")
    mixed = make_cache(tiny_pictures, tmp_path / "cache", lr_only=[str(lonely)])
    seen: list[torch.Tensor] = []

    def losses(modules: dict, batch: dict) -> dict:
        seen.append(batch["has_hr"].float())
        blank = batch["hr"][batch["has_hr"] == 0]
        assert blank.numel() == 0 or float(blank.abs().max()) == 0.0
        return {"hr": masked_hr(modules["student"](batch["lr"]), batch)}

    run(mixed, tmp_path / "a", phase(losses=losses))
    share = torch.cat(seen).mean()
    assert 0.0 < share < 1.0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, [1.0, 1.0, 1.0]),
        ({"schedule": "cosine", "min_lr": 0.0}, [1.0, 0.5, 0.0244717]),
        ({"schedule": "multistep", "milestones": (0.5, 0.8), "gamma": 0.5}, [1.0, 0.5, 0.25]),
        ({"schedule": "constant", "warmup": 4}, [0.25, 1.0, 1.0]),
    ],
)
def test_learning_rates(changes: dict, expected: list[float]) -> None:
    settings = Train(steps=10, lr=1.0, **changes)
    assert [learning_rate(settings, s) for s in (0, 5, 9)] == pytest.approx(expected, abs=1e-6)


def _rank(rank: int, world: int, meeting: str, pictures: str, root: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    cache = make_cache(Path(pictures), Path(root))
    made = phase(SETTINGS.model_copy(update={"clip": 0.0}))
    train(
        made,
        sampler(cache),
        folder=Store.open(out),
        fingerprint="f",
        seed=5,
        device=torch.device("cpu"),
        rank=rank,
        world=world,
    )
    dist.destroy_process_group()


def test_two_workers_train_as_one(cache: tuple, tiny_pictures: Path, tmp_path: Path) -> None:
    from pipeline.training import checkpoint

    out = tmp_path / "two"
    mp.spawn(
        _rank, (2, str(tmp_path / "meeting"), str(tiny_pictures), str(tmp_path / "cache"), str(out)), nprocs=2
    )
    made = phase(SETTINGS.model_copy(update={"clip": 0.0}))
    run(cache, tmp_path / "one", made)
    _, one = checkpoint.load_latest(Store.open(tmp_path / "one"), fingerprint="f")
    _, two = checkpoint.load_latest(Store.open(out), fingerprint="f")
    for name, value in one["modules"]["student"].items():
        torch.testing.assert_close(two["modules"]["student"][name], value, rtol=1e-4, atol=1e-6)


KEEPS = """
import resource
import torch
from pipeline.training import cpu

def use():
    blocks = [torch.zeros(2**20) for _ in range(20)]
    del blocks

kept = cpu.prepare()
for _ in range(5):  # the first steps find out how much there is to keep
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_step_keeps_its_memory_for_the_next_one() -> None:
    """Blocks of a few MB, as activations are, come back without a page fault for each 4 KiB.

    In a process of its own: what other tests left of a heap decides where blocks fit.
    """
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", KEEPS], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept, faults = map(int, done.stdout.split())
    if not kept:
        pytest.skip("a C library without mallopt")
    assert faults < 20 * 2**22 / 4096 / 5


def test_denormal_numbers_become_zero() -> None:
    cpu.prepare()
    assert (torch.full((4,), 1e-38) * 1e-3).tolist() == [0.0] * 4
