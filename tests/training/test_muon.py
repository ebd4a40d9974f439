"""Muon: its update beside PyTorch's own, what it leaves to Adam, and that it goes on from its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.muon import MOMENTUM, Muon, hidden, orthogonal
from students import build


def parameters(*tensors: Tensor) -> list[nn.Parameter]:
    """Of these gradients."""
    made = [nn.Parameter(torch.zeros_like(t)) for t in tensors]
    for parameter, grad in zip(made, tensors):
        parameter.grad = grad.clone()
    return made


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(3, 24, 216), (2, 216, 24), (1, 16, 16)])
def test_singular_values_come_to_lie_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    x = drawn(*shape) * torch.linspace(0.5, 1, shape[2])
    y = orthogonal(x)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ y @ vh.mT
    values = torch.diagonal(inside, dim1=1, dim2=2)
    assert values.min() > 0.5 and values.max() < 1.25
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-3
    assert orthogonal(torch.zeros(1, 4, 4)).abs().max() == 0


@pytest.mark.parametrize("shape", [(24, 216), (48, 24), (16, 16)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_matrix_moves_as_with_pytorchs_own(shape: tuple[int, int], decay: float) -> None:
    """Which iterates in bfloat16: equal to its rounding."""
    first, second = drawn(*shape), drawn(*shape).flip(0)
    (ours,), (theirs,) = parameters(first), parameters(first)
    with torch.no_grad():
        ours.fill_(0.5), theirs.fill_(0.5)
    moving = [
        Muon([ours], [ours], 1e-2, weight_decay=decay),
        torch.optim.Muon(
            [theirs], 1e-2, momentum=MOMENTUM, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        ),
    ]
    for grad in (first, second):
        for parameter, optimiser in zip((ours, theirs), moving):
            parameter.grad = grad.clone()
            optimiser.step()
    off = ours - theirs
    assert off.norm() < 0.02 * (ours - 0.5).norm()


def test_an_update_is_of_adams_size() -> None:
    (p,) = parameters(drawn(24, 24, 3, 3))
    Muon([p], [p], 1e-2).step()
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.2e-2, rel=0.2)


def test_a_convolution_is_the_matrix_of_its_output_channels_in_any_layout() -> None:
    grad = drawn(8, 6, 3, 3)
    matrix, kernel, last = parameters(grad.flatten(1), grad, grad)
    last.data = last.data.contiguous(memory_format=torch.channels_last)
    Muon([matrix, kernel, last], [matrix, kernel, last], 1e-2).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)
    torch.testing.assert_close(last, kernel)


def test_all_of_one_shape_move_as_each_alone() -> None:
    grads = [drawn(8, 8, 3, 3) * n for n in (1, 2, -3)] + [drawn(12, 8, 3, 3)]
    together = parameters(*grads)
    Muon(together, together, 1e-2).step()
    for p, grad in zip(together, grads):
        (alone,) = parameters(grad)
        Muon([alone], [alone], 1e-2).step()
        torch.testing.assert_close(p, alone)


def test_what_is_no_matrix_moves_by_adam() -> None:
    grads = [drawn(8, 3, 3, 3), drawn(8), drawn(8, 8)]
    ours, theirs = parameters(*grads, drawn(6, 6)), parameters(*grads)
    Muon(ours, ours[3:], 1e-2, (0.9, 0.99), weight_decay=0.1).step()
    torch.optim.AdamW(theirs, 1e-2, (0.9, 0.99), weight_decay=0.1).step()
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our, their)


@pytest.mark.parametrize(
    "name, options, count",
    [
        ("compact", {"features": 8, "convs": 3}, 3),
        ("fsrcnn", {"d": 16, "s": 8, "m": 2, "head": "pixelshuffle"}, 4),  # shrink, two maps, expand
    ],
)
def test_layers_between_features_are_matrices(name: str, options: dict, count: int) -> None:
    """Neither what reads the picture nor what makes the next one."""
    student = build(name, 2, **options)
    found = hidden(student)
    assert len(found) == count
    weights = [m.weight for m in student.modules() if isinstance(m, nn.Conv2d)]
    assert {id(p) for p in found} <= {id(w) for w in weights[1:-1]}
    found[0].requires_grad_(False)
    assert len(hidden(student)) == count - 1, "what is frozen is nobody's"


def test_what_has_no_gradient_stays() -> None:
    moved, still, bias = parameters(drawn(8, 8), drawn(8, 8), drawn(8))
    still.grad = bias.grad = None
    Muon([moved, still, bias], [moved, still], 1e-2, weight_decay=0.1).step()
    assert moved.abs().max() > 0 and still.abs().max() == bias.abs().max() == 0
    assert moved.grad is not None, "the gradient is the caller's to clear"


def test_a_scaler_that_found_infinity_moves_nothing() -> None:
    """What torch.amp.GradScaler leaves to an optimiser that is fused, as on a GPU in fp16."""
    p, plain = parameters(drawn(8, 8), drawn(8, 8))
    optimiser, other = Muon([p], [p], 1e-2), Muon([plain], [plain], 1e-2)
    for inf in (False, True, False):
        p.grad = drawn(8, 8) * 1024
        optimiser.grad_scale, optimiser.found_inf = torch.tensor(1024.0), torch.tensor(float(inf))
        if inf:
            p.grad[0, 0] = math.inf
        before = p.detach().clone()
        optimiser.step()
        assert torch.equal(p, before) is inf
        if not inf:
            other.step()
    torch.testing.assert_close(p, plain)


def test_it_goes_on_from_its_state() -> None:
    grads = [drawn(8, 8, 3, 3), drawn(8), drawn(8, 3, 3, 3)]
    whole = parameters(*grads)
    first = Muon(whole, whole[:1], 1e-2)
    first.step()
    parts = copy.deepcopy(whole)
    for p, of in zip(parts, whole):
        p.grad = of.grad.clone()
    second = Muon(parts, parts[:1], 1e-2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for optimiser in (first, second):
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parts))
