"""What a CUDA graph holds is the eager step: tested where there is no GPU by running it uncaptured."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import SETTINGS, make_cache, phase, run, sampler

from pipeline.cache.placed import Resident
from pipeline.cache.store import Store
from pipeline.errors import FacultyError
from pipeline.losses.pixel import l1
from pipeline.methods.base import Adversary, Phase
from pipeline.recipe.schedule import Ramp
from pipeline.recipe.settings import Train
from pipeline.training import checkpoint
from pipeline.training.graphed import SWITCH, Graphed, obstacle, parts
from pipeline.training.loop import Loop, train
from pipeline.training.surroundings import Hooks
from students.expansion import expand

CPU = torch.device("cpu")
SCHEDULED = {"hr": Ramp(kind="linear", start=0.2, end=1.0), "smooth": 0.1}


def test_a_graph_does_not_keep_its_training() -> None:
    """Its memory on a device must be free as soon as the training has ended, not when garbage is next searched."""

    class Training:
        device = CPU

    one = Training()
    one.graphed = Graphed(one)  # type: ignore[arg-type, attr-defined]
    seen = weakref.ref(one)
    gc.disable()
    try:
        del one
        assert seen() is None
    finally:
        gc.enable()


@pytest.fixture
def tiles(tiny_pictures: Path, tmp_path: Path) -> tuple:
    return make_cache(tiny_pictures, tmp_path / "cache")


def two_terms(settings: Train) -> Phase:
    def losses(m: dict, b: dict) -> dict[str, torch.Tensor]:
        sr = m["student"](b["lr"])
        return {"hr": l1(sr, b["hr"]), "smooth": sr.diff(dim=2).abs().mean()}

    return phase(settings, losses=losses, weights=SCHEDULED)


def hinge(m: dict, b: dict) -> dict[str, torch.Tensor]:
    return {"critic": (m["critic"](b["hr"]).mean() - m["critic"](b["sr"]).mean()).square()}


def opposed(settings: Train) -> Phase:
    """With an adversary that learns beside it."""

    def losses(m: dict, b: dict) -> dict[str, torch.Tensor]:
        b["sr"] = m["student"](b["lr"])
        return {"hr": l1(b["sr"], b["hr"]), "smooth": b["sr"].mean().square()}

    torch.manual_seed(3)
    made = phase(settings, losses=losses, weights=SCHEDULED)
    critic = torch.nn.Conv2d(3, 1, 3)

    def contest(m: dict, b: dict) -> dict[str, torch.Tensor]:
        return hinge(m, {**b, "sr": b["sr"].detach()})

    return replace(made, adversary=Adversary({"critic": critic}, contest, lr=1e-3))


def expanded(settings: Train) -> Phase:
    """Of a student whose kernels are products of two factors."""
    made = two_terms(settings)
    expand(made.modules["student"], 2)
    return made


@pytest.mark.parametrize("make", [two_terms, opposed, expanded])
@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd", "muon"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_captured_step_is_the_eager_one(
    tiles: tuple, optimiser: str, ema: float, resident: bool, make: Callable[[Train], Phase]
) -> None:
    update = {"optimiser": optimiser, "ema": ema, "warmup": 3, "weight_decay": 0.01, "log_every": 5}
    settings = SETTINGS.model_copy(update=update)
    eager, graphed = (Loop(make(settings), CPU, 1) for _ in range(2))
    graphed.look_every = 4
    steps = Graphed(graphed)
    cut = sampler(tiles)
    batches = Resident(cut, CPU) if resident else cut
    for step, batch in batches.iterate(0, 12):
        expected = eager.eager(step, batch.to(CPU))
        if step == 0:
            graphed.names = eager.names
            steps.prepare(batch, *parts(batch, CPU))
            steps.replay = steps.body  # what a replay does, uncaptured
        graphed.pending.append((step, steps.step(step, batch, 0)))
        torch.testing.assert_close(graphed.pending[-1][1], expected, rtol=1e-4, atol=1e-6)
        if (step + 1) % 5 == 0 or len(graphed.pending) == 4:
            graphed.require_finite(cut, 0, 1)
    assert eager.names[:3] == ["hr", "smooth", "loss"]
    for module in ("student", "critic"):
        ours, theirs = (
            {**loop.phase.modules, **(loop.opponent.live if loop.opponent else {})}
            for loop in (graphed, eager)
        )
        for name, value in theirs[module].state_dict().items() if module in theirs else ():
            torch.testing.assert_close(ours[module].state_dict()[name], value, rtol=1e-3, atol=1e-5)
            if ema and module == "student" and value.is_floating_point():
                torch.testing.assert_close(graphed.ema[name], eager.ema[name], rtol=1e-3, atol=1e-5)
    assert graphed.state()["optimiser"]["param_groups"][0]["lr"] == pytest.approx(graphed.rate(11))


def test_a_state_can_be_gone_back_to_more_than_once(tiles: tuple) -> None:
    loop = Loop(two_terms(SETTINGS), CPU, 1)
    steps = Graphed(loop)
    batches = [batch.to(CPU) for _, batch in sampler(tiles).iterate(0, 3)]
    loop.eager(0, batches[0])
    before = steps._state()
    values = []
    for _ in range(3):
        steps._restore(before)
        loop.eager(1, batches[1])
        loop.eager(2, batches[2])
        values.append(
            [v.clone() for v in (*loop.ema.values(), *loop.phase.modules["student"].state_dict().values())]
        )
    for other in values[1:]:
        assert all(torch.equal(a, b) for a, b in zip(values[0], other, strict=True))


def test_a_graph_that_is_given_up_says_so_and_the_plain_step_goes_on(tiles: tuple) -> None:
    said: list[str] = []
    loop, plain = Loop(two_terms(SETTINGS), CPU, 1, said.append), Loop(two_terms(SETTINGS), CPU, 1)
    steps = Graphed(loop)
    (_, first), (_, second) = sampler(tiles).iterate(0, 2)
    for each in (loop, plain):
        torch.manual_seed(7)
        each.eager(0, first.to(CPU))
    found = steps._first(1, second, 7, *parts(second, CPU))  # there is no CUDA to capture with
    assert len(said) == 1 and said[0].startswith("plain steps instead of a CUDA graph: ")
    assert steps.replay is None and torch.equal(found, plain.eager(1, second.to(CPU)))
    assert torch.equal(steps.step(2, first, 7), plain.eager(2, first.to(CPU)))


def test_why_there_is_no_graph_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle(Loop(phase(), CPU, 1)) == "no GPU"
    monkeypatch.setenv(SWITCH, "0")
    assert obstacle(Loop(phase(), CPU, 1)) == f"{SWITCH}=0"


def test_a_checkpoint_says_nothing_of_the_device(tiles: tuple, tmp_path: Path) -> None:
    run(tiles, tmp_path, phase())
    _, state = checkpoint.load_latest(Store.open(tmp_path), fingerprint="f")
    (group,) = state["optimiser"]["param_groups"]
    assert isinstance(group["lr"], float) and group["capturable"] is False


def on_gpu(tiles: tuple, folder: Path, made: Phase, hooks: object = None) -> Phase:
    device = torch.device("cuda")
    store = Store.open(folder)
    train(made, sampler(tiles), folder=store, fingerprint="f", seed=5, device=device, hooks=hooks)
    return made


@pytest.mark.gpu
@pytest.mark.parametrize("make", [two_terms, opposed, expanded])
@pytest.mark.parametrize(
    "update",
    [
        {},
        {"amp": "bf16"},
        {"amp": "fp16", "clip": 1.0},
        {"optimiser": "sgd"},
        {"optimiser": "muon"},
        {"log_every": 7},
    ],
)
def test_a_graph_trains_as_eager_steps_do(
    tiles: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    update: dict,
    make: Callable[[Train], Phase],
) -> None:
    settings = SETTINGS.model_copy(update={"steps": 40, **update})
    said: list[str] = []
    graphed = on_gpu(tiles, tmp_path / "a", make(settings), Hooks(say=said.append))
    assert said == []
    monkeypatch.setenv(SWITCH, "0")
    eager = on_gpu(tiles, tmp_path / "b", make(settings))
    for name, value in eager.modules["student"].state_dict().items():
        found = graphed.modules["student"].state_dict()[name]
        torch.testing.assert_close(found, value, rtol=0.02, atol=2e-3)


@pytest.mark.gpu
def test_a_resumed_graph_goes_on(tiles: tuple, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"steps": 24})
    whole = on_gpu(tiles, tmp_path / "whole", two_terms(settings))

    def die(metrics: dict, step: int) -> None:
        if step == 12:
            raise FacultyError("killed")

    with pytest.raises(FacultyError, match="killed"):
        on_gpu(tiles, tmp_path / "cut", two_terms(settings), Hooks(sync=die))
    resumed = on_gpu(tiles, tmp_path / "cut", two_terms(settings))
    for name, value in whole.modules["student"].state_dict().items():
        torch.testing.assert_close(resumed.modules["student"].state_dict()[name], value, rtol=0.02, atol=2e-3)


@pytest.mark.gpu
def test_what_cannot_be_captured_is_trained_eagerly_and_said(
    tiles: tuple,
    tmp_path: Path,
) -> None:
    said: list[str] = []

    def losses(m: dict, b: dict) -> dict[str, torch.Tensor]:
        value = l1(m["student"](b["lr"]), b["hr"])
        return {"hr": value * (2.0 if value.item() > 1e9 else 1.0)}  # asks the device, which a graph cannot

    on_gpu(tiles, tmp_path, phase(losses=losses, weights={"hr": 1.0}), Hooks(say=said.append))
    assert len(said) == 1 and said[0].startswith("plain steps instead of a CUDA graph: ")
