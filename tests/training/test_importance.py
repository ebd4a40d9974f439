"""Importance weights: the gradient of a weighted step, its expectation, and that nothing else of a training changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_train import SETTINGS, Killed, bits, killer, make_cache, phase, small
from torch import Tensor, nn

from pipeline.cache.placed import Resident
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.methods import PICTURES
from pipeline.methods.base import Phase
from pipeline.recipe.methods import DUKD, KD, MTKD, Scratch
from pipeline.recipe.settings import Train
from pipeline.training import checkpoint
from pipeline.training.graphed import Graphed, parts
from pipeline.training.importance import WEIGHT, scale_gradient
from pipeline.training.loop import Loop, train
from pipeline.training.surroundings import Hooks

CPU = torch.device("cpu")
METHODS = {
    "scratch": Scratch(name="scratch", pixel="charbonnier"),
    "kd": KD(name="kd", gradient=0.5),
    "mtkd": MTKD(name="mtkd", level=2, low=0.33),
    "dukd": DUKD(name="dukd", chance=0.6),
}


@pytest.fixture
def cache(tiny_pictures: Path, tmp_path: Path) -> tuple:
    return make_cache(tiny_pictures, tmp_path / "cache")


def drawn(cache: tuple, batch: int = 4, uniform: bool = False, **settings: object) -> Sampler:
    """Batches of tiles whose gains differ by as much as bounds allow."""
    sources = {name: Source(*cache, name) for name in ("lr", "hr")}
    rows = cache[1].rows
    gains = None if uniform else np.geomspace(1.0, 30.0, rows)
    settings = {"patch": 12, "margin": 4, **settings}
    return Sampler(sources, scale=2, batch=batch, seed=5, gains=gains, **settings)


def gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters()]


@pytest.mark.parametrize("name", list(METHODS))
def test_a_weighted_step_has_the_gradient_of_the_weighted_losses(name: str) -> None:
    generator = torch.Generator().manual_seed(1)

    def rand(side: int) -> Tensor:
        return torch.randint(0, 256, (8, 3, side, side), generator=generator).double() / 255

    batch = {
        "lr": rand(8),
        "hr": rand(16),
        "target": rand(16),
        "has_hr": torch.tensor([1, 1, 0, 1, 0, 1, 0, 0]) > 0,
    }
    if name == "scratch":
        batch["has_hr"][:] = True
    weight = torch.tensor([0.25, 1.0, 2.0, 0.5, 3.0, 1.5, 0.75, 4.0])
    (make,) = PICTURES[name](METHODS[name], SETTINGS, small)
    made = make({})
    made.modules["student"].double()
    loop = Loop(made, CPU, 1)
    sum(loop.terms({**batch, WEIGHT: weight}).values()).backward()
    found = gradients(made.modules["student"])
    expected = [torch.zeros_like(g) for g in found]
    for i in range(8):  # each sample alone, its loss times its weight
        made.modules["student"].zero_grad()
        alone = made.losses(made.modules, {k: v[i : i + 1] for k, v in batch.items()})
        sum(alone.values()).backward()
        for total, gradient in zip(expected, gradients(made.modules["student"]), strict=True):
            total += gradient * float(weight[i]) / 8
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    made.modules["student"].zero_grad()
    sum(loop.terms(batch).values()).backward()
    plain, ours = (
        torch.cat([g.flatten() for g in each]) for each in (gradients(made.modules["student"]), found)
    )
    assert (plain - ours).norm() > 0.05 * plain.norm()


def test_values_of_terms_are_those_of_the_samples_as_drawn(cache: tuple) -> None:
    loop = Loop(phase(), CPU, 1)
    tensors = drawn(cache).batch(0).to(CPU)
    assert len(set(tensors[WEIGHT].tolist())) > 1
    found = loop.terms(tensors)
    expected = loop.terms({k: v for k, v in tensors.items() if k != WEIGHT})
    assert torch.equal(found["hr"], expected["hr"])


def test_the_expected_gradient_is_that_of_uniform_sampling(cache: tuple) -> None:
    """Over one epoch, exactly: whole tiles, so that a sample is its tile."""
    whole = {"patch": 24, "margin": 0, "augment": False}
    epoch, tiles = drawn(cache, **whole).epoch, drawn(cache, **whole).tiles
    assert epoch > tiles
    found = []
    for weighted, uniform, size in ((True, False, epoch), (False, True, tiles), (False, False, epoch)):
        made = phase()
        made.modules["student"].double()
        tensors = drawn(cache, size, uniform, **whole).batch(0).to(CPU)
        tensors = {k: v.double() if v.ndim == 4 or k == WEIGHT else v for k, v in tensors.items()}
        if not weighted:
            tensors.pop(WEIGHT, None)
        Loop(made, CPU, 1).terms(tensors)["hr"].backward()
        found.append(torch.cat([g.flatten() for g in gradients(made.modules["student"])]))
    gain, uniform_, unweighted = found
    torch.testing.assert_close(gain, uniform_, rtol=1e-5, atol=1e-8)
    assert (unweighted - uniform_).norm() > 0.01 * uniform_.norm()


def test_half_precision_keeps_its_type_and_several_pictures_a_sample_their_weights() -> None:
    y = torch.ones(4, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    out = scale_gradient(y, torch.tensor([0.5, 3.0]))
    assert torch.equal(out, y) and out.dtype == y.dtype
    out.sum().backward()
    assert y.grad.dtype == torch.bfloat16 and y.grad[:, 0, 0, 0].tolist() == [0.5, 3.0, 0.5, 3.0]


def run(cache: tuple, folder: Path, made: Phase, uniform: bool = False, **settings: object) -> Phase:
    batches = drawn(cache, uniform=uniform)
    train(made, batches, folder=Store.open(folder), fingerprint="f", seed=5, device=CPU, **settings)
    return made


def test_a_run_killed_and_resumed_has_the_bits_of_one_that_was_not(cache: tuple, tmp_path: Path) -> None:
    whole = run(cache, tmp_path / "whole", phase())
    with pytest.raises(Killed):
        run(cache, tmp_path / "parts", phase(), hooks=Hooks(sync=killer(4)))
    resumed = run(cache, tmp_path / "parts", phase())
    assert bits(resumed.modules["student"]) == bits(whole.modules["student"])
    uniform = run(cache, tmp_path / "uniform", phase(), uniform=True)
    assert bits(uniform.modules["student"]) != bits(whole.modules["student"])


def _rank(rank: int, world: int, meeting: str, pictures: str, root: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    made = phase(SETTINGS.model_copy(update={"clip": 0.0}))
    run(make_cache(Path(pictures), Path(root)), Path(out), made, rank=rank, world=world)
    dist.destroy_process_group()


def test_two_workers_train_as_one(cache: tuple, tiny_pictures: Path, tmp_path: Path) -> None:
    meeting, out = str(tmp_path / "meeting"), str(tmp_path / "two")
    mp.spawn(_rank, (2, meeting, str(tiny_pictures), str(tmp_path / "cache"), out), nprocs=2)
    run(cache, tmp_path / "one", phase(SETTINGS.model_copy(update={"clip": 0.0})))
    _, one = checkpoint.load_latest(Store.open(tmp_path / "one"), fingerprint="f")
    _, two = checkpoint.load_latest(Store.open(out), fingerprint="f")
    for name, value in one["modules"]["student"].items():
        torch.testing.assert_close(two["modules"]["student"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("resident", [False, True])
def test_the_captured_step_is_the_eager_one(cache: tuple, resident: bool) -> None:
    settings = SETTINGS.model_copy(update={"log_every": 5})
    eager, graphed = (Loop(phase(settings), CPU, 1) for _ in range(2))
    graphed.look_every = 4
    steps, cut = Graphed(graphed), drawn(cache)
    for step, batch in (Resident(cut, CPU) if resident else cut).iterate(0, 10):
        expected = eager.eager(step, batch.to(CPU))
        if step == 0:
            graphed.names = eager.names
            steps.prepare(batch, *parts(batch, CPU))
            steps.replay = steps.body  # what a replay does, uncaptured
        graphed.pending.append((step, steps.step(step, batch, 0)))
        torch.testing.assert_close(graphed.pending[-1][1], expected, rtol=1e-4, atol=1e-6)
        if (step + 1) % 5 == 0 or len(graphed.pending) == 4:
            graphed.require_finite(cut, 0, 1)
    for name, value in eager.phase.modules["student"].state_dict().items():
        found = graphed.phase.modules["student"].state_dict()[name]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("update", [{}, {"amp": "bf16"}, {"amp": "fp16", "clip": 1.0}])
def test_a_graph_trains_as_eager_steps_do(
    cache: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, update: dict
) -> None:
    settings, said = SETTINGS.model_copy(update={"steps": 40, **update}), []
    found = []
    for switch in ("1", "0"):
        monkeypatch.setenv("FACULTY_CUDA_GRAPHS", switch)
        made, hooks = phase(settings), Hooks(say=said.append)
        folder = Store.open(tmp_path / switch)
        device = torch.device("cuda")
        train(made, drawn(cache), folder=folder, fingerprint="f", seed=5, device=device, hooks=hooks)
        found.append(made.modules["student"].state_dict())
    assert said == ["plain steps instead of a CUDA graph: FACULTY_CUDA_GRAPHS=0"]
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=0.02, atol=2e-3)


def test_uniform_sampling_leaves_no_trace_in_a_dump() -> None:
    assert "sampling" not in Train().model_dump(mode="json")
    assert Train(sampling="gain").model_dump(mode="json")["sampling"] == "gain"
    assert Train.model_validate(Train(sampling="gain").model_dump()) == Train(sampling="gain")
