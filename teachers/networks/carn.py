"""CARN and CARN-M (Ahn, Kang, Sohn: Fast, Accurate, and Lightweight Super-Resolution with Cascading Residual
Network, 2018): cascading residual blocks whose outputs are all kept and fused by 1x1 convolutions.

Key names are those of the authors' public checkpoints (nmhkahn/CARN-pytorch). One file serves x2, x3 and x4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from teachers.networks.blocks import MeanShift
from teachers.networks.native import Native, State, unit_range


class Residual(nn.Module):
    """CARN's block: two 3x3 convolutions. CARN-M's: two grouped 3x3 convolutions, then a 1x1."""

    def __init__(self, channels: int, groups: int, pointwise: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        ]
        if pointwise:
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class Fuse(nn.Module):
    """1x1 convolution and ReLU over everything that the cascade has kept so far."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class CascadingBlock(nn.Module):
    """Three residual blocks in a cascade; CARN-M runs the same block, `b1`, three times."""

    def __init__(self, channels: int, groups: int, mobile: bool) -> None:
        super().__init__()
        self.b1 = Residual(channels, groups, mobile)
        if not mobile:
            self.b2 = Residual(channels, groups, mobile)
            self.b3 = Residual(channels, groups, mobile)
        self.blocks = ("b1", "b1", "b1") if mobile else ("b1", "b2", "b3")
        self.c1, self.c2, self.c3 = (Fuse(channels * n, channels) for n in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        kept = out = x
        for name, fuse in zip(self.blocks, (self.c1, self.c2, self.c3)):
            kept = torch.cat([kept, getattr(self, name)(out)], dim=1)
            out = fuse(kept)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int, scale: int, groups: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            layers += [
                nn.Conv2d(channels, channels * factor**2, 3, padding=1, groups=groups),
                nn.ReLU(),
                nn.PixelShuffle(factor),
            ]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class CARN(nn.Module):
    """(N, 3, H, W) RGB in [0, 1] -> (N, 3, scale*H, scale*W).

    `branches` maps the name of each upsampler in the checkpoint (`up`, `up2`, `up3`, `up4`) to its scale; only
    the one for `scale` is run.
    """

    def __init__(
        self, scale: int, channels: int, groups: int, mobile: bool, branches: dict[str, int]
    ) -> None:
        super().__init__()
        self.sub_mean = nn.ModuleDict({"shifter": MeanShift()})
        self.add_mean = nn.ModuleDict({"shifter": MeanShift()})
        self.entry = nn.Conv2d(3, channels, 3, padding=1)
        self.b1, self.b2, self.b3 = (CascadingBlock(channels, groups, mobile) for _ in range(3))
        self.c1, self.c2, self.c3 = (Fuse(channels * n, channels) for n in (2, 3, 4))
        self.upsample = nn.ModuleDict(
            {name: Upsample(channels, factor, groups) for name, factor in branches.items()}
        )
        self.branch = next(name for name, factor in branches.items() if factor == scale)
        self.exit = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        kept = out = self.entry(self.sub_mean["shifter"](x))
        for block, fuse in ((self.b1, self.c1), (self.b2, self.c2), (self.b3, self.c3)):
            kept = torch.cat([kept, block(out)], dim=1)
            out = fuse(kept)
        out = self.upsample[self.branch](out)
        return self.add_mean["shifter"](self.exit(out))


def branches(state: State) -> dict[str, int]:
    """The upsamplers that a checkpoint holds, by name, with the scale of each."""
    found = {}
    for name in ("up", "up2", "up3", "up4"):
        first = state.get(f"upsample.{name}.body.0.weight")
        if first is not None:
            squared = first.shape[0] // state["entry.weight"].shape[0]
            found[name] = 3 if squared == 9 else 4 if f"upsample.{name}.body.3.weight" in state else 2
    return found


def build(state: State, scale: int) -> CARN:
    channels = state["entry.weight"].shape[0]
    groups = channels // state["b1.b1.body.0.weight"].shape[1]
    return CARN(scale, channels, groups, "b1.b2.body.0.weight" not in state, branches(state))


def scales(state: State) -> tuple[int, ...]:
    return tuple(sorted(branches(state).values()))


MARKS = (
    "entry.weight",
    "sub_mean.shifter.weight",
    "b1.b1.body.0.weight",
    "b3.c3.body.0.weight",
    "exit.weight",
)

NATIVE = (
    Native("CARN", (*MARKS, "b1.b2.body.0.weight"), scales, build, unit_range),
    Native("CARN-M", (*MARKS, "b1.b1.body.4.weight"), scales, build, unit_range),
)
