"""The aggregation network: its DCT, its attention written out, its skip, its released variant."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch

from pipeline.errors import InputError
from teachers.aggregation import DIV2K_MEAN, Aggregation, FrequencyAttention
from teachers.windows import dct_matrix, pad, released_mask


def small(n: int = 3, scale: int = 2, **options) -> Aggregation:
    torch.manual_seed(0)
    return Aggregation(n, scale, dim=8, depths=(2,), heads=(2,), features=8, **options)


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("scale", "count"), [(2, 1_094_579), (3, 1_318_099), (4, 1_335_603)])
@pytest.mark.parametrize("official", [True, False])
def test_parameters_of_the_published_size(scale: int, count: int, official: bool) -> None:
    network = Aggregation(3, scale, official=official)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(("orthonormal", "norm"), [(True, "ortho"), (False, "backward")])
def test_the_transform_is_the_dct_of_the_window(orthonormal: bool, norm: str) -> None:
    attention = FrequencyAttention(4, 2, 8, orthonormal)
    window = pictures(8, 8, 4)
    spectrum = (attention.dct @ window.view(64, 4)).view(8, 8, 4)
    expected = scipy.fft.dctn(window.numpy(), type=2, norm=norm, axes=(0, 1))
    np.testing.assert_allclose(
        spectrum.numpy(), expected, rtol=1e-5, atol=1e-4 if norm == "backward" else 1e-6
    )
    torch.testing.assert_close(attention.idct @ attention.dct, torch.eye(64), rtol=0, atol=1e-6)
    if not orthonormal:
        assert spectrum[0, 0].numpy() == pytest.approx(256 * window.mean((0, 1)).numpy())


def test_the_orthonormal_matrix_is_orthonormal() -> None:
    matrix = dct_matrix(8)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("orthonormal", [True, False])
def test_attention_runs_among_frequencies(orthonormal: bool) -> None:
    """The block's equation written out for one window, head by head, with SciPy's transforms."""
    torch.manual_seed(1)
    dim, heads, window = 6, 2, 4
    attention = FrequencyAttention(dim, heads, window, orthonormal)
    x = pictures(3, window * window, dim)
    norm = "ortho" if orthonormal else "backward"
    tokens = [(row, column) for row in range(window) for column in range(window)]
    qkv, table = attention.qkv, attention.relative_position_bias_table.detach().numpy()
    for sample, ours in zip(x.numpy(), attention(x).detach().numpy()):
        spectrum = scipy.fft.dctn(sample.reshape(window, window, dim), norm=norm, axes=(0, 1)).reshape(
            -1, dim
        )
        projected = spectrum @ qkv.weight.detach().numpy().T + qkv.bias.detach().numpy()
        joined = []
        for head in range(heads):
            size = dim // heads
            q, k, v = (projected[:, part * dim + head * size :][:, :size] for part in range(3))
            logits = q @ k.T / np.sqrt(size)
            for i, (a, b) in enumerate(tokens):
                for j, (c, d) in enumerate(tokens):
                    logits[i, j] += table[(a - c + window - 1) * (2 * window - 1) + b - d + window - 1, head]
            weights = np.exp(logits - logits.max(1, keepdims=True))
            joined.append(weights / weights.sum(1, keepdims=True) @ v)
        proj = attention.proj
        mixed = np.concatenate(joined, 1) @ proj.weight.detach().numpy().T + proj.bias.detach().numpy()
        expected = scipy.fft.idctn(mixed.reshape(window, window, dim), norm=norm, axes=(0, 1))
        np.testing.assert_allclose(ours, expected.reshape(-1, dim), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(48, 96), (33, 47), (7, 5), (1, 1)])
def test_at_the_start_the_output_is_the_skip(scale: int, size: tuple[int, int]) -> None:
    outputs = pictures(2, 3, 3, *size)
    assert torch.equal(small(scale=scale)(outputs), outputs.mean(1))
    weights = torch.tensor([0.5, 0.7, -0.2])
    weighted = small(scale=scale, skip="weighted", skip_weights=weights.tolist())
    assert torch.equal(weighted(outputs), (outputs * weights.view(1, 3, 1, 1, 1)).sum(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(small(scale=scale)(outputs), outputs.mean(1))


def test_the_skip_keeps_its_place_in_training() -> None:
    """What the network adds to the skip does not depend on the kind of skip."""
    outputs = pictures(1, 3, 3, 20, 24)
    networks = small(), small(skip="none"), small(skip="weighted")
    added = []
    for network, start in zip(networks, (outputs.mean(1), networks[1].mean, outputs.mean(1))):
        torch.manual_seed(3)
        torch.nn.init.normal_(network.conv_last.weight)
        torch.nn.init.zeros_(network.conv_last.bias)
        added.append(network(outputs) - start)
    assert added[0].abs().mean() > 0.1
    torch.testing.assert_close(added[0], added[1])
    torch.testing.assert_close(added[0], added[2])


def test_learned_skip_weights_start_alike_and_are_trained() -> None:
    network = small(skip="weighted")
    outputs = pictures(1, 3, 3, 16, 16)
    torch.testing.assert_close(network(outputs), outputs.mean(1))
    (network(outputs) - outputs[:, 0]).square().mean().backward()
    assert (network.skip_weights.grad != 0).all()


def test_a_list_of_outputs_is_as_good_as_a_stack_and_order_matters() -> None:
    network, outputs = small(skip="none"), pictures(2, 3, 3, 18, 20)
    assert torch.equal(network(list(outputs.unbind(1))), network(outputs))
    assert not torch.allclose(network(outputs), network(outputs.flip(1)))


def test_padding_reflects_as_often_as_it_takes() -> None:
    x = pictures(1, 2, 3, 21)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (0, 13), (0, 11)), mode="reflect")
    np.testing.assert_array_equal(pad(x, 16).numpy(), expected)
    assert pad(pictures(1, 1, 16, 32), 16).shape == (1, 1, 16, 32)


def test_pictures_of_a_batch_do_not_mix() -> None:
    for official in (False, True):
        network, outputs = small(skip="none", official=official), pictures(3, 3, 3, 48, 40)
        apart = torch.cat([network(one[None]) for one in outputs])
        torch.testing.assert_close(network(outputs), apart, rtol=1e-4, atol=1e-5)


def test_the_released_variant_divides_by_255_and_adds_the_mean() -> None:
    network, outputs = small(official=True), pictures(1, 3, 3, 24, 20)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.constant_(network.conv_last.bias, 51.0)
    expected = torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1).expand(1, 3, 24, 20) + 0.2
    torch.testing.assert_close(network(outputs), expected)


def test_the_released_variant_differs_by_transform_and_mask() -> None:
    released, ours, outputs = small(official=True), small(skip="none"), pictures(1, 3, 3, 32, 32)
    ours.load_state_dict(released.state_dict())
    added = 255 * (released(outputs) - released.mean), ours(outputs) - ours.mean
    assert (added[0] - added[1]).abs().mean() > 1e-3 * added[1].abs().mean()


def test_the_released_mask_compares_transformed_region_numbers() -> None:
    window, shift, regions = 8, 4, np.zeros((24, 16))
    bounds = [(0, -8), (-8, -4), (-4, None)]
    for number, (r, c) in enumerate((r, c) for r in bounds for c in bounds):
        regions[slice(*r), slice(*c)] = number
    masks = released_mask(24, 16, window, shift).numpy()
    assert masks.shape == (6, 64, 64)
    for index, mask in enumerate(masks):
        row, column = divmod(index, 2)
        tile = regions[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        numbers = scipy.fft.dctn(tile).reshape(-1)
        apart = np.abs(numbers[:, None] - numbers[None]) > 1e-5
        np.testing.assert_array_equal(mask, np.where(apart, -100.0, 0.0))
    assert not masks[0].any() and masks[5].any()
    unshifted = released_mask(16, 16, window, 0)
    expected = torch.zeros(64, 64)
    expected[0, 1:] = expected[1:, 0] = -100.0
    assert torch.equal(unshifted, expected.expand(4, 64, 64))


@pytest.mark.parametrize("official", [True, False])
def test_autocast_keeps_the_transform_in_single_precision(official: bool) -> None:
    network, outputs = small(skip="none", official=official), pictures(2, 3, 3, 32, 32)
    seen: list[torch.dtype] = []
    network.groups[0].blocks[0].attn.qkv.register_forward_pre_hook(lambda _, x: seen.append(x[0].dtype))
    expected = network(outputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(outputs)
    assert seen == [torch.float32, torch.float32]
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


def test_every_parameter_learns() -> None:
    network = small(skip="none")
    (network(pictures(2, 3, 3, 32, 32)) - 0.3).abs().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_training_improves_on_the_mean() -> None:
    """One of three teachers is right: a short training must leave the mean behind."""
    torch.manual_seed(0)
    hr = torch.nn.functional.interpolate(torch.rand(8, 3, 6, 6), size=(32, 32), mode="bicubic")
    outputs = torch.stack([hr, hr + 0.1 * torch.randn_like(hr), hr + 0.1], 1)
    network = small()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(50):
        optimiser.zero_grad()
        (network(outputs) - hr).abs().mean().backward()
        optimiser.step()
    with torch.no_grad():
        assert (network(outputs) - hr).abs().mean() < 0.8 * (outputs.mean(1) - hr).abs().mean()


def test_stochastic_depth_acts_in_training_alone() -> None:
    network, outputs = small(skip="none", drop_path=0.9), pictures(4, 3, 3, 16, 16)
    assert [block.drop_path for block in network.groups[0].blocks] == pytest.approx([0.0, 0.9])
    assert not torch.equal(network(outputs), network(outputs))
    network.eval()
    assert torch.equal(network(outputs), network(outputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 5}, "scale"),
        ({"n_teachers": 0}, "teacher"),
        ({"heads": (5, 5)}, "divides"),
        ({"depths": (4,)}, "depth"),
        ({"skip": "median"}, "skip"),
        ({"official": True, "skip": "mean"}, "no skip"),
        ({"skip_weights": [1.0, 0.0, 0.0]}, "skip_weights"),
        ({"skip": "weighted", "skip_weights": [1.0]}, "skip_weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Aggregation(**({"n_teachers": 3, "scale": 2} | options))


def test_the_wrong_number_of_teachers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, 3, H, W\)"):
        small()(pictures(1, 2, 3, 16, 16))


@pytest.mark.gpu
@pytest.mark.parametrize("official", [True, False])
def test_cuda_agrees_with_cpu(official: bool) -> None:
    network, outputs = small(skip="none", official=official), pictures(2, 3, 3, 33, 40)
    expected = network(outputs).detach()
    torch.testing.assert_close(network.cuda()(outputs.cuda()).cpu().detach(), expected, rtol=1e-3, atol=1e-3)
