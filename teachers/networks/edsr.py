"""EDSR (Lim et al.: Enhanced Deep Residual Networks for Single Image Super-Resolution, 2017): residual blocks
without normalisation. The baseline has 16 blocks of 64 features, the large one 32 of 256 with residuals times 0.1.

Key names are those of the authors' public checkpoints (sanghyun-son/EDSR-PyTorch); BasicSR's names for the
same network are turned into them.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from teachers.networks.blocks import MeanShift
from teachers.networks.native import Native, State, count

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB, of [0, 1]
LARGE = 256  # features from which residuals were trained scaled by 0.1


class Residual(nn.Module):
    def __init__(self, features: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.body = nn.Sequential(
            nn.Conv2d(features, features, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(features, features, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_scale * self.body(x)


class EDSR(nn.Module):
    """(N, 3, H, W) RGB -> (N, 3, scale*H, scale*W), in the units that `sub_mean` and `add_mean` are in."""

    def __init__(self, scale: int, features: int = 64, blocks: int = 16, res_scale: float = 1.0) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(), MeanShift()
        self.head = nn.Sequential(nn.Conv2d(3, features, 3, padding=1))
        last = nn.Conv2d(features, features, 3, padding=1)
        self.body = nn.Sequential(*(Residual(features, res_scale) for _ in range(blocks)), last)
        steps: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            steps += [nn.Conv2d(features, features * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        self.tail = nn.Sequential(nn.Sequential(*steps), nn.Conv2d(features, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        out = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(out + self.body(out)))


def build(state: State, scale: int) -> EDSR:
    features = state["head.0.weight"].shape[0]
    res_scale = 0.1 if features >= LARGE else 1.0
    return EDSR(scale, features, count(state, "body.{}.body.0.weight"), res_scale)


def scales(state: State) -> tuple[int, ...]:
    if state["tail.0.0.weight"].shape[0] == 9 * state["head.0.weight"].shape[0]:
        return (3,)
    doublings = sum(re.fullmatch(r"tail\.0\.\d+\.weight", key) is not None for key in state)
    return (2**doublings,)


def value_range(state: State) -> float:
    """The mean shift tells: it takes 0.45 of [0, 1] or 114 of [0, 255] away."""
    return 255.0 if float(state["sub_mean.bias"].abs().max()) > 1.0 else 1.0


BASICSR = (
    (r"conv_first\.", "head.0."),
    (r"body\.(\d+)\.conv1\.", r"body.\1.body.0."),
    (r"body\.(\d+)\.conv2\.", r"body.\1.body.2."),
    (r"upsample\.(\d+)\.", r"tail.0.\1."),
    (r"conv_last\.", "tail.1."),
)


def from_basicsr(state: State) -> State:
    """BasicSR's spelling, whose mean shift for 0..255 is in code, into the authors'; others stay as they are."""
    if "conv_after_body.weight" not in state or "body.0.conv1.weight" not in state:
        return state
    last = f"body.{count(state, 'body.{}.conv1.weight')}."
    renamed = {}
    for key, value in state.items():
        new = key.replace("conv_after_body.", last)
        for pattern, replacement in BASICSR:
            new = re.sub("^" + pattern, replacement, new)
        renamed[new] = value
    mean = 255.0 * torch.tensor(DIV2K_MEAN)
    for name, bias in (("sub_mean", -mean), ("add_mean", mean)):
        renamed[f"{name}.weight"], renamed[f"{name}.bias"] = torch.eye(3).view(3, 3, 1, 1), bias
    return renamed


NATIVE = (
    Native(
        "EDSR",
        (
            "sub_mean.weight",
            "head.0.weight",
            "body.0.body.0.weight",
            "body.0.body.2.weight",
            "tail.0.0.weight",
        ),
        scales,
        build,
        value_range,
        adapt=from_basicsr,
    ),
)
