"""Features from inside a network: found by the layer's name, kept as they pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from students.colour import colours_of

SHOWN = 40


class Tap:
    """Keeps a layer's latest output, until it is taken."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        self._value: Tensor | None = None
        find(network, layer).register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, __: tuple, output: Tensor) -> Tensor:
        self._value = output
        return output.clone()  # the next layer may work in place

    def take(self) -> Tensor:
        """The output of the forward pass just done."""
        value, self._value = self._value, None
        assert value is not None, "the network was not called"
        return value


class _Reached(Exception):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class Until:
    """Runs a network only as far as one layer, and gives that layer's output."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        self.network, self.layer = network, find(network, layer)

    def __call__(self, x: Tensor) -> Tensor:
        def stop(_: nn.Module, __: tuple, output: Tensor) -> None:
            raise _Reached(output)

        handle = self.layer.register_forward_hook(stop)
        try:
            self.network(x)
        except _Reached as reached:
            return reached.value
        finally:
            handle.remove()
        raise AssertionError("the layer is not part of the forward pass")


def layer_of(network: nn.Module, layer: str | None) -> str:
    """The layer that a recipe names, or the network's own `feature_layer`. Raises InputError where there is neither."""
    chosen = layer or getattr(network, "feature_layer", None)
    if chosen is None:
        raise InputError(
            "method.layer", f"one of {_names(network)}", "none, and this student has no usual one"
        )
    find(network, chosen)
    return chosen


def find(network: nn.Module, layer: str) -> nn.Module:
    """The module of that name. Raises InputError listing those that exist."""
    found = dict(network.named_modules()).get(layer)
    if found is None or not layer:
        raise InputError("method.layer", f"one of {_names(network)}", repr(layer))
    return found


def _names(network: nn.Module) -> str:
    names = [name for name, _ in network.named_modules() if name and name.count(".") < 2]
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


@torch.no_grad()
def channels(network: nn.Module, layer: str) -> int:
    """Channels of a layer's output. Raises InputError where it is no (B, C, h, w) tensor."""
    was_training = network.training
    x = torch.zeros(1, colours_of(network), 16, 16, device=next(network.parameters()).device)
    features = Until(network.eval(), layer)(x)
    network.train(was_training)
    if not isinstance(features, Tensor) or features.ndim != 4:
        raise InputError("method.layer", "a layer with features (B, C, h, w)", repr(layer))
    return features.shape[1]
