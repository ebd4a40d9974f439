"""Convolutions that train as products: they start as the plain ones, learn in every factor, and merge into them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from student_kit import SMALL, shaken
from torch import nn
from torch.nn.utils import parametrize

import students
from pipeline.errors import InputError
from students.expansion import expand, merged


def pair(name: str, scale: int = 2, factor: int = 3) -> tuple[nn.Module, nn.Module]:
    """(plain, expanded) of one start."""
    torch.manual_seed(0)
    plain = students.build(name, scale, **SMALL.get(name, {}))
    return plain, expand(copy.deepcopy(plain), factor)


def plain_from(network: nn.Module, name: str, scale: int = 2) -> nn.Module:
    """The network that ships, from what the training network is merged into."""
    shipped = students.build(name, scale, **SMALL.get(name, {})).to(next(network.parameters()).dtype)
    shipped.load_state_dict(merged(network))
    return shipped.eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", students.names())
def test_the_merged_network_is_the_trained_one(
    name: str, scale: int, dtype: torch.dtype, tolerance: float
) -> None:
    network = shaken(pair(name, scale)[1]).to(dtype)
    x = torch.rand(2, 3, 11, 14, dtype=dtype)
    with torch.no_grad():
        found, expected = plain_from(network, name, scale)(x), network(x)
    assert expected.std() > 0.05 and (found - expected).abs().max() <= tolerance


@pytest.mark.parametrize("head", ["deconv", "pixelshuffle"])
def test_both_heads_of_fsrcnn_are_expanded(head: str) -> None:
    network = shaken(expand(students.build("fsrcnn", 3, head=head), 2))
    shipped = students.build("fsrcnn", 3, head=head)
    shipped.load_state_dict(merged(network))
    last = network.last_layer if head == "deconv" else network.last_layer[0]
    assert last.parametrizations.weight.original0.shape[:2] == (112, 56)
    x = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.allclose(shipped(x), network(x), atol=1e-5)


@pytest.mark.parametrize("name", ["compact", "fsrcnn", "span"])
def test_it_starts_as_the_plain_network_with_factors_that_are_wider_than_it(name: str) -> None:
    plain, expanded = pair(name)
    for key, value in merged(expanded).items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=0, atol=1e-6)
    layers = [m for m in expanded.modules() if parametrize.is_parametrized(m)]
    for layer in layers:
        first, last = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
        outputs, wide = last.shape
        assert wide == 3 * max(layer.in_channels, layer.out_channels)
        assert torch.allclose(last @ last.T, torch.eye(outputs), atol=1e-5)
        rows = first.flatten(1)
        unseen = rows - last.T @ (last @ rows)  # without it gradient descent stays in B's rows
        assert unseen.std() > 0.3 * (3 * rows.shape[1]) ** -0.5
    assert len(layers) == {"compact": 4, "fsrcnn": 5, "span": 2}[name]


@pytest.mark.parametrize("transposed", [False, True])
def test_one_convolution_is_the_wide_one_and_a_1x1_also_at_the_border(transposed: bool) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(5, 3, 4, 2, 1) if transposed else nn.Conv2d(5, 3, 3, padding=1)
    expand(nn.Sequential(layer), 2)
    first, last = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    x = torch.rand(1, 5, 6, 7)
    if transposed:
        wide = F.conv_transpose2d(x, first.transpose(0, 1), None, 2, 1)
    else:
        wide = F.conv2d(x, first, padding=1)
    chain = F.conv2d(wide, last[..., None, None], layer.bias)
    assert torch.allclose(chain, layer(x), atol=1e-6)


@pytest.mark.parametrize("name", students.names())
def test_every_factor_learns(name: str) -> None:
    _, network = pair(name)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    target = torch.rand(2, 3, 32, 32)
    for _ in range(3):  # what lies behind a zero kernel gets its first gradient in the second step
        optimiser.zero_grad()
        (network(F.avg_pool2d(target, 2)) - target).abs().mean().backward()
        assert all(p.grad is not None for p in network.parameters())  # what data parallel training insists on
        optimiser.step()
    assert any(key.endswith("original1") for key in before)
    assert [key for key, value in network.named_parameters() if torch.equal(value, before[key])] == []


def test_gradients_are_those_of_the_product() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    expand(nn.Sequential(layer), 2)
    product = layer.parametrizations.weight[0]
    factors = [p.detach().clone().requires_grad_() for p in layer.parametrizations.weight.parameters()]
    assert torch.autograd.gradcheck(lambda *f: product(*f), factors)


def test_names_hooks_and_layers_that_are_no_plain_convolutions_stay() -> None:
    frozen = nn.Conv2d(4, 4, 3)
    frozen.weight.requires_grad_(False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), frozen, nn.BatchNorm2d(4))
    seen: list[torch.Tensor] = []
    network[0].register_forward_hook(lambda *given: seen.append(given[2]))
    keys = list(network.state_dict())
    assert expand(network, 1) is network and list(network.state_dict()) == keys
    expand(network, 2)
    assert {k for k, _ in network.named_modules() if "parametrizations" not in k} == {"", "0", "1", "2", "3"}
    assert [k for k in network.state_dict() if "parametrizations" in k] == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
    ]
    assert sorted(merged(network)) == sorted(keys)
    network(torch.rand(1, 3, 12, 12))
    assert len(seen) == 1


def test_a_convolution_that_is_used_in_two_places_is_merged_in_both() -> None:
    shared = nn.Conv2d(3, 3, 3)
    network = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    keys = sorted(network.state_dict())
    state = merged(expand(network, 2))
    assert sorted(state) == keys and torch.equal(state["a.weight"], state["b.0.weight"])


@pytest.mark.parametrize(
    ("name", "options"), [("PLKSR", {"dim": 16, "n_blocks": 1}), ("SPAN", {"feature_channels": 12})]
)
def test_architectures_of_spandrel_are_expanded_too(name: str, options: dict) -> None:
    torch.manual_seed(0)
    network = expand(students.build(f"spandrel:{name}", 2, **options), 2)
    assert any("parametrizations" in key for key in network.state_dict())
    shipped = students.build(f"spandrel:{name}", 2, **options)
    shipped.load_state_dict(merged(network))
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        assert torch.allclose(shipped.eval()(x), network.eval()(x), atol=1e-5)


def test_a_copy_is_merged_without_taking_anything_from_the_network() -> None:
    _, network = pair("compact")
    x = torch.rand(1, 3, 8, 8)
    expected = network(x)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    merged(twin)
    assert torch.equal(network(x), expected) and not torch.equal(twin(x), expected)


def test_the_product_can_be_compiled_whole() -> None:
    _, network = pair("compact")
    x = torch.rand(1, 3, 8, 8)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), network(x), atol=1e-6)
    compiled(x).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_autocast_rounds_the_kernel_not_its_factors() -> None:
    layer = expand(nn.Sequential(nn.Conv2d(8, 8, 3)), 3)[0]
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(InputError, match="student.expand") as caught:
        expand(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(4, 4, 3, groups=2)), 3)
    assert "nn.Conv2d" in str(caught.value) and "faculty students" in caught.value.remedy
