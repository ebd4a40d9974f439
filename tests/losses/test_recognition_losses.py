"""The losses of cross-resolution distillation against slow formulas written down independently, term by term."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from loss_kit import LOSSES, cosine, huber, length, pair, slow_angles, slow_distances
from torch import Tensor

from pipeline.losses import relational
from pipeline.losses.adversarial import Discriminator, deceive, discriminator_loss
from pipeline.losses.contrast import contrast
from pipeline.losses.feature import feature_regression
from pipeline.losses.mmd import mmd
from pipeline.losses.relational import off_diagonal


@pytest.mark.parametrize(("loss", "slow"), LOSSES)
def test_values_and_gradients_are_those_of_the_formula(loss: Callable, slow: Callable) -> None:
    s, t = pair()
    s.requires_grad_(True)
    t.requires_grad_(True)
    value = loss(s, t)
    assert value.item() == pytest.approx(slow(s.detach(), t.detach()), rel=2e-5)
    value.backward()
    assert t.grad is None
    # Central differences of the slow formula. Its medians and means move with s where the loss holds them constant.
    held = loss in (mmd, relational.distances)
    base, step = s.detach(), 1e-5
    for i, j in [(0, 0), (2, 3), (5, 4)]:
        moved = [base.clone() for _ in range(2)]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        if held:
            continue
        slope = (slow(moved[0], t.detach()) - slow(moved[1], t.detach())) / (2 * step)
        assert s.grad is not None and s.grad[i, j].item() == pytest.approx(slope, rel=2e-3, abs=2e-6)


@pytest.mark.parametrize("loss", [relational.angles, relational.group])
def test_gradcheck_in_double_precision(loss: Callable) -> None:
    s, t = pair(5, 3)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_(True))


def test_angles_at_a_few_anchors_and_among_equal_items_have_the_right_gradient() -> None:
    s, t = pair(7, 3)
    t[4] = t[1]  # no direction between these
    assert torch.autograd.gradcheck(lambda x: relational.angles(x, t, anchors=3), s.requires_grad_(True))


def test_angles_between_near_items_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(16, 8, generator=generator) * 1e-2 + 50
    far, t = torch.randn(16, 8, generator=generator) + 50, torch.randn(32, 8, generator=generator)
    s = torch.cat([near, far])
    results = []
    for dtype in (torch.float32, torch.float64):
        x = s.to(dtype).clone().requires_grad_(True)
        relational.angles(x, t.to(dtype)).backward()
        results.append(x.grad)
    single, double = results
    assert (single - double).abs().max() < 1e-5 * double.abs().max()


@pytest.mark.parametrize("loss", [relational.angles, relational.distances])
def test_equal_items_far_from_the_middle_are_at_one_place(loss: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(12, 64, generator=generator) * 300 for _ in range(2))
    s[7], t[3] = s[2], t[9]
    assert (relational._squares(s)[[2, 7], [7, 2]] == 0).all() and (
        relational._squares(s).diagonal() == 0
    ).all()
    slow = slow_angles if loss is relational.angles else slow_distances
    assert loss(s, t).item() == pytest.approx(slow(s.double(), t.double()), rel=1e-4)


def test_the_gradient_of_distances_holds_the_mean_constant() -> None:
    s, t = pair(5, 3)
    s.requires_grad_(True)
    relational.distances(s, t).backward()
    mean = slow_mean(s.detach())

    def held(x: Tensor) -> float:
        pairs = [(i, j) for i, j in product(range(5), repeat=2) if i != j]
        target = {p: length(t[p[0]] - t[p[1]]) / slow_mean(t) for p in pairs}
        return sum(huber(length(x[i] - x[j]) / mean - target[i, j]) for i, j in pairs) / len(pairs)

    base, step = s.detach(), 1e-5
    for i, j in product(range(5), range(3)):
        up, down = base.clone(), base.clone()
        up[i, j] += step
        down[i, j] -= step
        assert s.grad is not None
        assert s.grad[i, j].item() == pytest.approx((held(up) - held(down)) / (2 * step), rel=1e-5, abs=1e-8)


def slow_mean(x: Tensor) -> float:
    found = [length(a - b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    return sum(found) / len(found)


def test_mmd_is_never_negative_and_zero_for_equal_sets() -> None:
    s, t = pair(8)
    assert mmd(s, s).item() == pytest.approx(0, abs=1e-6) and mmd(s, s).item() >= 0
    assert mmd(s[torch.randperm(8)], s).item() == pytest.approx(0, abs=1e-6)
    assert all(mmd(*pair(4, 3, seed=n)).item() >= 0 for n in range(20))
    assert mmd(t + 3, t).item() > mmd(t + 0.3, t).item() > 0
    same = torch.ones(4, 3, requires_grad=True)
    mmd(same, torch.ones(4, 3)).backward()
    assert torch.isfinite(same.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [entry[0] for entry in LOSSES])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_small_batches_and_duplicates_give_finite_values_and_gradients(loss: Callable, rows: int) -> None:
    for s in (torch.randn(rows, 4), torch.zeros(rows, 4), torch.ones(rows, 4)):
        s = s.clone().requires_grad_(True)
        value = loss(s, torch.ones(rows, 4))
        value.backward()
        assert torch.isfinite(value) and value >= 0
        assert s.grad is not None and torch.isfinite(s.grad).all()


def test_equal_relations_cost_nothing_whatever_scale_and_place() -> None:
    s, _ = pair(6, 4)
    for loss in (relational.distances, relational.angles):
        assert loss(3 * s + 5, s).item() == pytest.approx(0, abs=1e-12)
    assert relational.group(3 * s, s).item() == pytest.approx(0, abs=1e-12)


def test_angles_are_sub_sampled_so_that_memory_stays_bounded() -> None:
    s, t = pair(12, 3)
    few, all_of_them = relational.angles(s, t, anchors=4), relational.angles(s, t, anchors=99)
    total, count = 0.0, 0
    for j in (0, 3, 6, 9):
        for i, k in product(range(12), repeat=2):
            if len({i, j, k}) == 3:
                total += huber(cosine(s[i] - s[j], s[k] - s[j]) - cosine(t[i] - t[j], t[k] - t[j]))
                count += 1
    assert few.item() == pytest.approx(total / count)
    assert all_of_them.item() == pytest.approx(slow_angles(s, t))
    assert few.item() != pytest.approx(all_of_them.item())


def test_losses_are_in_single_precision_under_autocast() -> None:
    s, t = (x.to(torch.bfloat16) for x in pair())
    with torch.autocast("cpu", torch.bfloat16):
        for loss, _ in LOSSES:
            assert loss(s, t).dtype == torch.float32
        maps = torch.randn(2, 4, 3, 3, dtype=torch.bfloat16)
        assert relational.pooled_relations(maps, maps).item() == 0


def test_features_of_maps_are_compared_on_the_smaller_grid() -> None:
    s, t = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 4, 4)
    pooled = torch.nn.functional.avg_pool2d(t, 2)
    per_pixel = 2 - 2 * torch.nn.functional.cosine_similarity(s, pooled, dim=1)
    assert feature_regression(s, t).item() == pytest.approx(per_pixel.mean().item(), rel=1e-5)


def test_the_adversarial_terms_are_the_logarithms_that_they_say() -> None:
    torch.manual_seed(0)
    critic = Discriminator(8)
    s, t = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8)
    real, fake = torch.sigmoid(critic(t)), torch.sigmoid(critic(s))
    expected = -(real.log().mean() + (1 - fake).log().mean())
    loss = discriminator_loss(critic, s, t)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert s.grad is None and all(p.grad is not None for p in critic.parameters())
    critic.zero_grad()
    deceived = deceive(critic, s)
    assert deceived.item() == pytest.approx(-fake.log().mean().item(), rel=1e-5)
    deceived.backward()
    assert s.grad is not None and all(p.grad is None for p in critic.parameters())
    # The step that the student takes makes the discriminator believe more.
    assert deceive(critic, (s - 0.1 * s.grad).detach()) < deceived


WORKER = """
import os, sys
import torch, torch.distributed as dist
from torch import nn
from pipeline.losses import relational
from pipeline.losses.contrast import contrast
from pipeline.losses.gather import gathered, globalise
from pipeline.losses.mmd import mmd
from pipeline.losses.pairwise import pairwise

rank, world, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=world)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                    nn.Linear(6, 5)).train()
globalise(net)
live = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False) if world > 1 else net
x, t, y = torch.randn(8, 3, 6, 6), torch.randn(8, 5), torch.arange(8) % 5
share = 8 // world
rows = slice(rank * share, (rank + 1) * share)
optimiser = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(2):
    s = live(x[rows])
    own = nn.functional.cross_entropy(s, y[rows])
    a, b = gathered(s), gathered(t[rows])
    together = relational.distances(a, b) + relational.angles(a, b) + relational.group(a, b)
    together = together + mmd(a, b) + pairwise(a, b) + contrast(a, b, gathered(y[rows]))
    (own + together).backward()
    gradients = [p.grad.clone() for p in net.parameters()]
    optimiser.step(); optimiser.zero_grad()
if rank == 0:
    torch.save({"together": together.detach(), "gradients": gradients, "state": net.state_dict()}, out)
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
os._exit(0)  # gloo's threads may abort an interpreter that ends while they do
"""


def test_one_and_two_workers_give_the_same_losses_gradients_and_statistics(tmp_path, repository) -> None:
    import os
    import subprocess
    import sys

    found = {}
    for world in (1, 2):
        out = tmp_path / f"{world}.pt"
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(rank), str(world), str(out)],
                env={**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(world)
        ]
        assert [w.wait(timeout=120) for w in workers] == [0] * world
        found[world] = torch.load(out, weights_only=True)
    one, two = found[1], found[2]
    assert one["together"].item() == pytest.approx(two["together"].item(), rel=1e-5)
    for a, b in zip(one["gradients"], two["gradients"]):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)
    for name, value in one["state"].items():
        torch.testing.assert_close(value, two["state"][name], rtol=2e-4, atol=2e-6)


def test_contrast_is_the_log_share_of_the_own_picture() -> None:
    s, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    expected = 0.0
    for i in range(6):
        alike = [math.exp(float(s[i] @ t[j] / (s[i].norm() * t[j].norm())) / 0.2) for j in range(6)]
        expected -= math.log(alike[i] / sum(alike)) / 6
    assert contrast(s, t, temperature=0.2).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(s[:1], t[:1]).item() == 0
    assert contrast(t, t).item() < contrast(t, t.flip(0)).item()
    t.requires_grad_()
    contrast(s.requires_grad_(), t).backward()
    assert s.grad is not None and t.grad is None


def test_contrast_has_no_negatives_of_the_own_class() -> None:
    """Two pictures of one face must not be pushed apart (CRD draws its negatives from the other classes)."""
    s, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    kinds = torch.tensor([0, 1, 0, 2, 1, 1])
    expected = 0.0
    for i in range(6):
        alike = [math.exp(float(s[i] @ t[j] / (s[i].norm() * t[j].norm())) / 0.1) for j in range(6)]
        expected -= math.log(alike[i] / sum(alike[j] for j in range(6) if j == i or kinds[j] != kinds[i])) / 6
    assert contrast(s, t, kinds).item() == pytest.approx(expected, rel=1e-5)
    assert contrast(s, t, torch.arange(6)).item() == contrast(s, t).item()
    s.requires_grad_()
    nothing = contrast(s, t, torch.zeros(6, dtype=torch.int64))
    nothing.backward()
    assert nothing.item() == 0 and s.grad is not None and s.grad.abs().max() == 0


def test_entries_off_the_diagonal_are_those_of_a_mask() -> None:
    x = torch.randn(7, 7)
    assert torch.equal(off_diagonal(x), x[~torch.eye(7, dtype=torch.bool)])
