"""Muon: momentum that is made orthogonal before it moves a layer (Jordan et al., 2024, "Muon: An optimizer for hidden
layers in neural networks").

A convolution's weights are a matrix of as many rows as it has output channels. Few directions of its gradient are
large, and Adam, which scales each entry by itself, follows those; Muon moves in all directions equally far, and a
network of many such layers learns in a third of the steps (docs/results.md). PyTorch's own takes matrices alone, one
after the other, and is part of no CUDA graph; this one takes convolutions, all of one shape at once, and trains the
rest with Adam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
"""Of the gradients, with Nesterov's look ahead."""
SIZE = 0.2
"""Root mean square of an update's entries at a learning rate of 1, as Adam's are (Liu et al., arXiv 2502.16982): one
learning rate is right for both."""
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan's iteration: singular values between 0 and 1 come to lie between 0.7 and 1.2."""
ITERATIONS = 5
LEAST = 4
"""Channels on either side of a layer between features at least: one that reads or writes a picture has fewer."""


def hidden(module: nn.Module) -> list[nn.Parameter]:
    """Weights of the layers between features, (out, in) or (out, in, kernel, kernel); the last one, which makes the
    picture or the classes, is none of them."""
    wide = [p for p in module.parameters() if p.ndim in (2, 4) and min(p.shape[:2]) >= LEAST]
    return [p for p in wide[:-1] if p.requires_grad]


def orthogonal(matrices: Tensor) -> Tensor:
    """(n, rows, columns) -> the same with all singular values near 1, by Newton and Schulz's iteration."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Adam):
    """Matrices by Muon, everything else by Adam, at one learning rate; weight decay is decoupled."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        matrices: Sequence[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        weight_decay: float = 0.0,
        capturable: bool = False,
    ) -> None:
        """`matrices`: those of the `parameters` that Muon moves. `betas` are Adam's. `capturable`: its step may be part
        of a CUDA graph."""
        ids = {id(p) for p in matrices}
        chosen = {own: [p for p in parameters if (id(p) in ids) is own] for own in (True, False)}
        super().__init__(
            [{"params": own, "matrices": key} for key, own in chosen.items() if own],
            lr,
            betas,
            weight_decay=weight_decay,
            decoupled_weight_decay=True,
            fused=True,
            capturable=capturable,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all parameters once."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = [g for g in self.param_groups if g["matrices"]]
        taken = [(p, p.grad) for g in groups for p in g["params"] if p.grad is not None]
        for p, _ in taken:
            p.grad = None  # Adam leaves alone what has no gradient
        try:
            super().step()
        finally:
            for p, grad in taken:
                p.grad = grad
        for group in groups:
            self._move([p for p in group["params"] if p.grad is not None], group)
        return loss

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        if not parameters:
            return
        grads: list[Tensor] = [p.grad for p in parameters]  # type: ignore[misc]
        lr, moves = group["lr"], 1.0
        if (found := getattr(self, "found_inf", None)) is not None:
            # A scaler of fp16 gradients leaves it to a fused optimiser to divide by its scale and to skip a step.
            scale = getattr(self, "grad_scale", None)
            grads = [torch.where(found > 0, 0.0, g if scale is None else g / scale) for g in grads]
            moves = 1 - found  # type: ignore[assignment]
        states = [self._state(p) for p in parameters]
        torch._foreach_add_([state["step"] for state in states], 1)
        momenta = [state["momentum"] for state in states]
        off = torch._foreach_sub(grads, momenta)  # no lerp, which would ask the device what `moves` is
        torch._foreach_mul_(off, (1 - MOMENTUM) * moves)
        torch._foreach_add_(momenta, off)
        ahead = torch._foreach_lerp(grads, momenta, MOMENTUM)
        if group["weight_decay"]:
            torch._foreach_mul_(list[Tensor](parameters), 1 - lr * moves * group["weight_decay"])
        alike: dict[torch.Size, list[int]] = {}
        for n, p in enumerate(parameters):
            alike.setdefault(p.shape, []).append(n)
        for shape, numbers in alike.items():
            updates = orthogonal(torch.stack([ahead[n].flatten(1) for n in numbers]))
            updates = updates * (lr * moves * -SIZE * math.sqrt(max(updates.shape[1:])))
            for n, update in zip(numbers, updates.unbind()):
                parameters[n].add_(update.view(shape))

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)  # Adam's loading asks for it
            state["momentum"] = torch.zeros_like(parameter)
        return state
