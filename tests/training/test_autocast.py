"""Half precision on a CPU: faster where the CPU multiplies in it, said where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_train import SETTINGS, Killed, bits, killer, make_cache, phase, run
from torch import Tensor

from pipeline.losses.pixel import l1
from pipeline.training import autocast as half
from pipeline.training.surroundings import Hooks
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
    assert set(seen[:60]) == {(torch.bfloat16, torch.float32)}
    assert set(seen[60:]) == {(torch.float32, torch.float32)}
    assert curves["bf16"] != curves["off"]
    assert curves["bf16"][-1] == pytest.approx(curves["off"][-1], rel=0.1)
    assert curves["bf16"][-1] < 0.6 * curves["bf16"][0]


@capable
def test_a_training_in_bf16_goes_on_with_the_same_bits(cache: tuple, tmp_path: Path) -> None:
    whole = run(cache, tmp_path / "whole", phase(BF16))
    with pytest.raises(Killed):
        run(cache, tmp_path / "cut", phase(BF16), Hooks(log=killer(8)))
    again = run(cache, tmp_path / "cut", phase(BF16))
    assert bits(whole.modules["student"]) == bits(again.modules["student"])


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
