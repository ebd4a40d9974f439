"""What a network costs: parameters and multiply-adds.

Conventions, those of the super-resolution tables: one multiply-add is one product with its sum; a convolution
counts kernel area x input channels / groups x output channels for every output pixel, a transposed
convolution the same for every *input* pixel (a strided deconvolution is often over-counted by the square of
its stride); linear layers and attention count their matrix products. Biases, normalisation, activations,
additions, resizing and FFTs count nothing.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger(__name__)


def parameters(module: nn.Module) -> int:
    """How many numbers `module` learns, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of one inference of `module` on a float input of `shape`, (1, 3, h, w) for most networks.

    Nothing is computed: shapes alone travel through the network, so a 1280x720 output costs no more than a
    small one. The module is left as it was found.
    """
    modes = {m: m.training for m in module.modules()}
    like = next(module.parameters(), torch.empty(0))
    # torch's fused inference kernel of nn.MultiheadAttention hides its products from the counter.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    module.eval()
    try:
        with (
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # attention as its two products, whatever the device's fused kernel
            FakeTensorMode(allow_non_fake_inputs=True),
            FlopCounterMode(display=False) as counter,
        ):
            module(torch.empty(shape, device=like.device, dtype=like.dtype))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for m, training in modes.items():
            m.training = training
    return counter.get_total_flops() // 2


def known_multiply_adds(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """As `multiply_adds`; None for code that looks at values, of which shapes alone have none."""
    try:
        return multiply_adds(module, shape)
    except Exception as error:  # a foreign network may raise anything
        log.info("%s: multiply-adds are not known: %s", type(module).__name__, error)
        return None
