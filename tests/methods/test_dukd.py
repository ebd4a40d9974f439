"""DUKD: each term against a slow computation, sample by sample; what A is, and that it follows from the sample."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.methods import PICTURES
from pipeline.methods.dukd import PARTS, Change, draws
from pipeline.recipe.methods import DUKD
from pipeline.recipe.settings import Train
from students.colour import LumaOrRGB, luma


def student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.PixelShuffle(2))


class Bicubic(nn.Module):
    """What is the same before and after A: bicubic, of which a parameter takes a share."""

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.share * F.interpolate(x, scale_factor=2, mode="bicubic")


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def rand(side: int) -> Tensor:
        return torch.randint(0, 256, (16, 3, side, side), generator=generator) / 255

    return {"lr": rand(6), "hr": rand(12), "target": rand(12), "has_hr": torch.arange(16) % 3 > 0}


def phase_of(network: nn.Module | None = None, **settings: object):
    made = DUKD(name="dukd", **settings)
    return PICTURES["dukd"](made, Train(), lambda: network or student())[0]({})


def slow(x: np.ndarray, parts: np.ndarray, chance: float, back: bool) -> np.ndarray:
    """A x or A^-1 x of one sample (C, side, side), by lists of steps."""
    turn, swap = 0, False
    if parts[4] < chance:
        which = 1 + int(parts[5] * 5)
        turn, swap = which % 3, which >= 3
    order = [(c - turn) % 3 for c in range(3)]  # the channel that comes to each place
    order = order[::-1] if swap else order
    if back:
        order = [order.index(c) for c in range(3)]
    steps = [
        lambda v: v[:, :, ::-1] if parts[0] < chance else v,
        lambda v: v[:, ::-1] if parts[1] < chance else v,
        lambda v: v.swapaxes(1, 2) if parts[2] < chance else v,
        lambda v: 1 - v if parts[3] < chance else v,
        lambda v: v[order],
    ]
    for step in reversed(steps) if back else steps:
        x = step(x)
    return x


@pytest.mark.parametrize("chance", [0.3, 0.6, 1.0])
def test_the_terms_are_those_of_the_formula_sample_by_sample(batch: dict, chance: float) -> None:
    phase = phase_of(chance=chance)
    terms = phase.losses(phase.modules, batch)
    assert phase.sources == ("lr", "hr", "target") and not phase.require_hr
    assert (
        phase.weights == {"distill": 1.0, "hr": 5.0, "consistency": 1.0}
        and terms.keys() == phase.weights.keys()
    )
    network, parts = phase.modules["student"], draws(batch["lr"]).numpy()
    distill, hr, consistency = [], [], []
    with torch.no_grad():
        for i, lr in enumerate(batch["lr"].numpy()):
            sr = network(torch.from_numpy(lr)[None])[0].numpy()
            changed = np.ascontiguousarray(slow(lr, parts[i], chance, back=False))
            back = slow(network(torch.from_numpy(changed)[None])[0].numpy(), parts[i], chance, back=True)
            target = batch["target"][i].numpy()
            distill.append(np.abs(sr - target).mean())
            consistency.append(np.abs(back - target).mean())
            hr.append(np.abs(sr - batch["hr"][i].numpy()).mean() if batch["has_hr"][i] else 0.0)
    assert float(terms["distill"].detach()) == pytest.approx(np.mean(distill), rel=1e-5)
    assert float(terms["hr"].detach()) == pytest.approx(np.mean(hr), rel=1e-5)
    assert float(terms["consistency"].detach()) == pytest.approx(np.mean(consistency), rel=1e-5)
    assert abs(np.mean(distill) - np.mean(consistency)) > 1e-4


def test_consistency_is_zero_for_a_network_that_a_passes_through(batch: dict) -> None:
    phase = phase_of(Bicubic(), chance=0.7)
    batch["target"] = F.interpolate(batch["lr"], scale_factor=2, mode="bicubic")
    assert float(phase.losses(phase.modules, batch)["consistency"].detach()) < 1e-6
    crooked = phase_of(nn.Sequential(Bicubic(), nn.ZeroPad2d((1, -1, 0, 0))), chance=0.7)
    batch["target"] = crooked.modules["student"](batch["lr"]).detach()
    terms = crooked.losses(crooked.modules, batch)
    assert float(terms["distill"].detach()) == 0.0 and float(terms["consistency"].detach()) > 0.01


def test_a_is_invertible_and_every_part_of_it_moves_something(batch: dict) -> None:
    x = batch["lr"]
    every = Change(draws(x), 1.0)
    assert not torch.equal(every(x), x)
    torch.testing.assert_close(every.undone(every(x)), x, rtol=0, atol=1e-6)
    torch.testing.assert_close(every(every.undone(x)), x, rtol=0, atol=1e-6)
    assert torch.equal(Change(draws(x), 0.0)(x), x)
    results = []
    for part in range(5):
        drawn = torch.full((len(x), PARTS), 0.9)
        drawn[:, part] = 0.0
        results.append(Change(drawn, 0.3)(x))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations([x, *results], 2))
    orders = set()
    for which in range(5):
        drawn = torch.full((len(x), PARTS), 0.9)
        drawn[:, 4], drawn[:, 5] = 0.0, (which + 0.5) / 5
        orders.add(Change(drawn, 0.3)(x).numpy().tobytes())
    assert len(orders) == 5 and x.numpy().tobytes() not in orders, "all permutations but none"


def test_what_is_drawn_follows_from_the_sample_alone_and_looks_random(batch: dict) -> None:
    x = batch["lr"]
    whole = draws(x)
    assert torch.equal(torch.cat([draws(part) for part in x.split(4)]), whole), (
        "however workers share a batch"
    )
    assert torch.equal(draws(x.flip(0)), whole.flip(0))
    assert torch.equal(draws(x.contiguous(memory_format=torch.channels_last)), whole)
    assert not torch.equal(draws(x.flip(3)), whole), "another move of the crop, another A"
    many = draws(torch.randint(0, 256, (4000, 3, 8, 8), generator=torch.Generator().manual_seed(2)) / 255)
    assert float(many.min()) >= 0 and float(many.max()) < 1
    for share in (0.1, 0.3, 0.7):
        assert ((many < share).double().mean(0) - share).abs().max() < 0.03
    correlations = np.corrcoef(many.T.numpy()) - np.eye(PARTS)
    assert np.abs(correlations).max() < 0.06
    near = torch.full((256, 3, 8, 8), 100 / 255)
    near[:, 0, 0, 0] = torch.arange(256) / 255  # one pixel that differs is enough
    counts = Counter((draws(near)[:, 0] * 8).long().tolist())
    assert len(counts) == 8 and max(counts.values()) < 60


def test_samples_without_hr_leave_the_hr_term_and_nothing_in_it_moves(batch: dict) -> None:
    batch["has_hr"] = torch.zeros(16, dtype=torch.bool)
    batch["hr"] = torch.full_like(batch["hr"], float("nan"))
    phase = phase_of()
    terms = phase.losses(phase.modules, batch)
    assert float(terms["hr"].detach()) == 0.0
    sum(terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in phase.modules["student"].parameters())


def test_without_consistency_the_student_is_called_on_the_batch_alone(batch: dict) -> None:
    seen = []
    network = student()
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    phase = phase_of(network, consistency=0.0)
    assert phase.losses(phase.modules, batch).keys() == phase.weights.keys() == {"distill", "hr"}
    phase = phase_of(network)
    phase.losses(phase.modules, batch)
    assert seen == [16, 32]


def test_a_student_of_luma_is_changed_in_luma(batch: dict) -> None:
    class Luma(LumaOrRGB):
        def __init__(self) -> None:
            super().__init__(2, 1)
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PixelShuffle(2))

        def enlarge(self, x: Tensor) -> Tensor:
            return self.net(x)

    torch.manual_seed(0)
    phase = phase_of(Luma(), chance=0.6)
    term = phase.losses(phase.modules, batch)["consistency"]
    change, y = Change(draws(batch["lr"]), 0.6), luma(batch["lr"])
    expected = change.undone(phase.modules["student"](change(y))) - luma(batch["target"])
    assert float(term.detach()) == pytest.approx(float(expected.abs().mean().detach()), rel=1e-6)


def test_defaults_are_in_no_dump_and_the_target_follows_from_who_explains() -> None:
    assert set(DUKD(name="dukd").model_dump()) == {
        "name",
        "teacher",
        "hr",
        "distill",
        "consistency",
        "chance",
    }
    assert DUKD(name="dukd").target == "fused" and DUKD(name="dukd", teacher="best").target == "teacher"
