"""Multiply-adds against counts made by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.cost import multiply_adds, parameters


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (1, 3, 10, 12), 3 * 8 * 9 * 120),
        (nn.Conv2d(3, 8, 3, padding=1, stride=2), (1, 3, 10, 12), 3 * 8 * 9 * 30),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (1, 4, 10, 12), 2 * 8 * 9 * 120),
        (nn.ConvTranspose2d(56, 1, 9, stride=2, padding=4, output_padding=1), (1, 56, 10, 12), 56 * 81 * 120),
        (nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1, groups=4), (1, 8, 10, 12), 8 * 16 * 120),
        (nn.Linear(12, 7), (2, 5, 12), 2 * 5 * 12 * 7),
        (nn.Sequential(nn.PReLU(), nn.PixelShuffle(2), nn.Upsample(scale_factor=2)), (1, 4, 5, 5), 0),
    ],
)
def test_layers_count_as_by_hand(layer: nn.Module, shape: tuple[int, ...], expected: int) -> None:
    assert multiply_adds(layer, shape) == expected


class Attention(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.MultiheadAttention(16, 4, batch_first=True)
        self.offset = torch.ones(1, 16, 1, 1)  # a plain tensor, as some published networks keep their mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = (x + self.offset).flatten(2).transpose(1, 2)
        if self.kind == "products":
            return (tokens @ tokens.transpose(1, 2)) @ tokens
        if self.kind == "fused":
            heads = tokens.reshape(1, 1, *tokens.shape[1:])
            return F.scaled_dot_product_attention(heads, heads, heads)
        return self.layer(tokens, tokens, tokens, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["products", "fused", "layer"])
def test_attention_counts_both_products(kind: str) -> None:
    tokens, width = 30, 16
    projections = 4 * tokens * width * width if kind == "layer" else 0
    assert multiply_adds(Attention(kind), (1, 16, 5, 6)) == 2 * tokens * tokens * width + projections


def test_a_large_picture_is_counted_without_computing_it() -> None:
    net = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(20)])
    assert multiply_adds(net, (1, 64, 2160, 3840)) == 20 * 64 * 64 * 9 * 2160 * 3840


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    multiply_adds(net, (1, 3, 8, 8))
    assert [m.training for m in net] == [True, False, True]
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_half_precision_networks_are_counted() -> None:
    assert multiply_adds(nn.Conv2d(3, 8, 1).bfloat16(), (1, 3, 4, 4)) == 3 * 8 * 16


def test_shared_parameters_count_once() -> None:
    conv = nn.Conv2d(3, 3, 3)
    assert parameters(nn.Sequential(conv, conv)) == 3 * 3 * 9 + 3
