"""Linear over-parameterisation: a convolution trains as a wider linear composition and ships as the one it amounts to.

A k x k convolution's kernel K is the product of two factors, which is a k x k convolution to `expand * max(in, out)`
features and a 1x1 convolution back, with nothing between them:

    K = B A,    A (wide, in k k),  B (out, wide)

as in collapsible linear blocks (Bhardwaj et al.: SESR, MLSys 2022), ExpandNets (Guo et al., NeurIPS 2020) and ECBSR
(Zhang et al., ACM MM 2021). The network is the same class of functions; what changes is the path that an optimiser
takes through it. The factors are multiplied before each use and one convolution is run, which is SESR's efficient
training: a step costs little more than the plain network's, and zero padding is exact.

Not as published: the bias stays one (another before B would only be added to it); there is no identity beside the
product, because the start is exact without it and what is constant would only shift A; 1x1 and transposed convolutions
are products too. An average over steps is one of factors: it is what evaluations see, and its product ships.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline.errors import InputError
from students.span import LinearBlock

KEY = "student.expand"


class Product(nn.Module):
    """A convolution's kernel as the product of two factors, for `torch.nn.utils.parametrize`.

    features: `wide`. outputs: the kernel's dimension of output channels: 0, of a transposed convolution 1.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.features, self.outputs = features, outputs

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        """first A (wide, in, k, k), last B (out, wide) -> K as the convolution has it.

        In full precision, also inside autocast: the kernel is rounded once, as that of a plain convolution is.
        """
        with torch.autocast(first.device.type, enabled=False):
            wide, inputs, height, width = first.shape
            rows = first.permute(0, 2, 3, 1).reshape(wide, -1)  # a view of channels_last memory
            kernel = (last @ rows).view(-1, height, width, inputs).permute(0, 3, 1, 2)
        return kernel.transpose(0, self.outputs)

    @torch.no_grad()
    def right_inverse(self, kernel: Tensor) -> tuple[Tensor, Tensor]:
        """Factors whose product is `kernel`, whatever it is: a random start, a bilinear one, a trained one.

        B has random orthonormal rows (B B^T = I), so that it hands on a gradient at its strength. A is drawn as PyTorch
        draws a convolution's weight, U(+-1/sqrt(in k k)), and projected onto the solutions of B A = K:
        A = R - B^T (B R - K). So the kernel starts exactly with the plain network's distribution, and A keeps what B
        does not see: with A = B^T K gradient descent would never leave the rows of B, and width would give nothing.
        """
        plain = kernel.transpose(0, self.outputs)
        matrix = plain.flatten(1).double()
        last = torch.empty(len(matrix), self.features, dtype=matrix.dtype, device=matrix.device)
        nn.init.orthogonal_(last)
        bound = matrix.shape[1] ** -0.5
        drawn = matrix.new_empty(self.features, matrix.shape[1]).uniform_(-bound, bound)
        first = drawn - last.T @ (last @ drawn - matrix)
        return first.view(-1, *plain.shape[1:]).to(kernel.dtype), last.to(kernel.dtype)


def expand(network: nn.Module, factor: int) -> nn.Module:
    """Let every convolution of `network` train as two factors, in place; names, hooks and the function stay.

    Left as they are: convolutions in groups, those that do not train, and those that are such compositions already
    (SPAN's blocks). The random part of the factors comes from torch's global generator; a factor of 1 does nothing.
    Raises InputError where no convolution can be expanded.
    """
    if factor == 1:
        return network
    found = _convolutions(network)
    if not found:
        raise InputError(
            KEY,
            "a student with convolutions (nn.Conv2d or nn.ConvTranspose2d without groups)",
            f"none that trains in {type(network).__name__}",
            f"Leave {KEY} out, or take another student: `faculty students`.",
        )
    for layer in found:
        features = factor * max(layer.in_channels, layer.out_channels)
        product = Product(features, int(isinstance(layer, nn.ConvTranspose2d)))
        parametrize.register_parametrization(layer, "weight", product)
    return network


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network: each product under the name that its kernel has there.

    `parametrize.remove_parametrizations` does the same in place, but of a deep copy it takes the property from the
    class that the copy shares with the network.
    """
    products = {
        name: layer.weight
        for name, layer in network.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(layer, "weight")
        and isinstance(layer.parametrizations.weight[0], Product)
    }
    state: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        name, found, _ = key.rpartition(".parametrizations.weight.")
        if found and name in products:
            state[f"{name}.weight"] = products[name].detach()
        else:
            state[key] = value
    return state


def _convolutions(network: nn.Module) -> list[nn.Conv2d | nn.ConvTranspose2d]:
    """Those that can be expanded."""
    taken = {m for block in network.modules() if isinstance(block, LinearBlock) for m in block.modules()}
    return [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        and layer not in taken
        and layer.groups == 1
        and isinstance(weight := layer._parameters.get("weight"), nn.Parameter)
        and weight.requires_grad
    ]
