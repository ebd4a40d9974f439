"""Half precision on a CPU: faster where the CPU multiplies in it, said where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SETTINGS, Killed, bits, killer, make_cache, phase, run, sampler
from torch import Tensor

from pipeline.losses.pixel import l1
from pipeline.training import autocast as half
from pipeline.training.loop import Loop
from pipeline.training.surroundings import Batch, Hooks
from students import build
from teachers.precision import has_bf16

CPU = torch.device("cpu")
BF16 = SETTINGS.model_copy(update={"amp": "bf16"})


@pytest.fixture
def cache(tiny_pictures: Path, tmp_path: Path) -> tuple:
    return make_cache(tiny_pictures, tmp_path / "cache")


capable = pytest.mark.skipif(not has_bf16(CPU), reason="needs a CPU with AMX or AVX512_BF16")


@capable
def test_networks_run_in_bf16_and_losses_in_fp32(cache: tuple, tmp_path: Path) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    def losses(modules: dict, batch: dict) -> dict[str, Tensor]:
        sr = modules["student"](batch["lr"])
        loss = l1(sr, batch["hr"])
        seen.append((sr.dtype, loss.dtype))
        return {"hr": loss}

    curves: dict[str, list[float]] = {"bf16": [], "off": []}
    for amp, values in curves.items():
        settings = SETTINGS.model_copy(update={"amp": amp, "steps": 60, "lr": 3e-3})
        hooks = Hooks(log=lambda v, step, kept=values: kept.append(v["train/loss"]))
        made = run(cache, tmp_path / amp, replace(phase(settings), losses=losses), hooks)
        assert all(p.dtype == torch.float32 for p in made.modules["student"].parameters())
    assert set(seen[:54]) == {(torch.bfloat16, torch.float32)}
    assert set(seen[54:]) == {(torch.float32, torch.float32)}, "the last tenth, and all of the other training"
    assert curves["bf16"] != curves["off"]
    assert curves["bf16"][-1] == pytest.approx(curves["off"][-1], rel=0.1)
    assert curves["bf16"][-1] < 0.6 * curves["bf16"][0]


@capable
@pytest.mark.parametrize("steps, at", [(12, 8), (60, 56)])
def test_a_training_in_bf16_goes_on_with_the_same_bits(
    cache: tuple, tmp_path: Path, steps: int, at: int
) -> None:
    """Also from a checkpoint of its last steps, which are in fp32."""
    settings = BF16.model_copy(update={"steps": steps})
    whole = run(cache, tmp_path / "whole", phase(settings))
    with pytest.raises(Killed):
        run(cache, tmp_path / "cut", phase(settings), Hooks(log=killer(at)))
    again = run(cache, tmp_path / "cut", phase(settings))
    assert bits(whole.modules["student"]) == bits(again.modules["student"])


@capable
def test_a_network_trained_in_bf16_is_right_in_fp32(
    cache: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What carries the whole picture learns the rounding of its weights: in fp32 it was darker or brighter."""

    def brightness(fine: float, steps: int = 400) -> float:
        """Mean error in grey levels of a student in fp32."""
        monkeypatch.setattr(half, "FINE", fine)
        torch.manual_seed(0)
        student = build("fsrcnn", 2, d=8, s=6, m=2, head="pixelshuffle")
        settings = SETTINGS.model_copy(update={"amp": "bf16", "steps": steps, "lr": 3e-3})
        run(cache, tmp_path / str(fine), phase(settings, modules={"student": student}))
        found = [b.to(CPU) for _, b in sampler(cache).iterate(0, 20)]
        with torch.no_grad():
            return float(np.mean([255 * (student(b["lr"]) - b["hr"]).mean() for b in found]))

    share = half.FINE
    assert abs(brightness(share)) < abs(brightness(0.0)) / 2


@pytest.mark.parametrize(
    "amp, able, steps, coarse",
    [("bf16", True, 1000, 900), ("bf16", True, 4, 4), ("bf16", False, 1000, 0), ("off", True, 1000, 0)],
)
def test_the_last_tenth_is_in_fp32(
    amp: str, able: bool, steps: int, coarse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "has_bf16", lambda device: able)
    assert half.coarse_steps(CPU, amp, steps) == coarse
    assert half.coarse_steps(torch.device("cuda"), "fp16", steps) == steps, "fp16 rounds eight times finer"


@pytest.mark.parametrize(("amp", "able", "why"), [
    ("off", False, ""), ("bf16", True, ""), ("bf16", False, "does not multiply in"), ("fp16", True, "for GPUs"),
])  # fmt: skip
def test_a_cpu_without_it_says_so_and_trains_in_fp32(
    amp: str,
    able: bool,
    why: str,
    cache: tuple,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(half, "has_bf16", lambda device: able)
    said: list[str] = []
    if not (amp == "bf16" and able):
        plain = run(cache, tmp_path / "plain", phase())
        settings = SETTINGS.model_copy(update={"amp": amp})
        made = run(cache, tmp_path / "made", phase(settings), Hooks(say=said.append))
        assert bits(made.modules["student"]) == bits(plain.modules["student"])
        assert len(said) == bool(why) and why in "".join(said)
    assert why in half.hindrance(CPU, amp) and bool(why) == bool(half.hindrance(CPU, amp))


def test_a_graph_of_bf16_is_captured_anew_for_the_last_steps(
    cache: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "has_bf16", lambda device: True)
    made: list[Loop] = []

    class Graph:
        """In place of one that needs a GPU: steps as they come."""

        def __init__(self, loop: Loop) -> None:
            made.append(loop)

        def step(self, step: int, batch: Batch, seed: int) -> Tensor:
            return made[0].eager(step, batch.to(CPU))

    monkeypatch.setattr("pipeline.training.loop.Graphed", Graph)
    loop = Loop(phase(BF16.model_copy(update={"steps": 20, "log_every": 20, "evaluate_every": 20})), CPU, 1)
    loop._graphed, loop.look_every = Graph(loop), 30  # type: ignore[assignment]
    assert [loop.ahead(step) for step in (0, 17, 18)] == [18, 1, 2], "never beyond the change"
    for step, batch in sampler(cache).iterate(0, 20):
        loop.step(step, batch, 0)
        assert len(made) == (1 if step < 18 else 2)
