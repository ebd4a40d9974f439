"""ResNets for thumbnails with a 3 x 3 stem, as public CIFAR checkpoints have them, built as their tensors say.

He et al., CVPR 2016, section 4.2: stages of basic blocks; the first keeps the size, the others halve it. Where a stage
has no projection, the shortcut takes every other pixel and pads the channels with zeros on both sides (option A).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

KEYS = {
    "conv1.weight",
    "bn1.weight",
    "layer1.0.conv1.weight",
    "layer1.0.bn2.weight",
    "linear.weight",
    "linear.bias",
}
"""That every such checkpoint has."""
STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation that they are trained with."""


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.more = stride, outside - inside
        self.shortcut = nn.Sequential()
        if projected:
            self.shortcut.append(nn.Conv2d(inside, outside, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if len(self.shortcut):
            return F.relu(y + self.shortcut(x))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)))


class CifarResNet(nn.Module):
    """(B, 3, H, W) normalised -> (B, classes)."""

    def __init__(
        self, widths: list[int], blocks: list[int], projected: list[list[bool]], classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(blocks)
        inside = widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layer = nn.Sequential()
            for number in range(count):
                stride = 2 if stage and number == 0 else 1
                layer.append(Block(inside, width, stride, projected[stage][number]))
                inside = width
            self.add_module(f"layer{stage + 1}", layer)
        self.linear = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.linear(x.mean(dim=(-2, -1)))


def recognised(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of these: basic blocks, a stem of 3 x 3, `linear` at the end."""
    if not state.keys() >= KEYS or any(".conv3." in key for key in state):
        return False
    return state["conv1.weight"].shape[1:] == (3, 3, 3)


def build(state: Mapping[str, Tensor]) -> CifarResNet:
    """The network with these tensors. Raises RuntimeError where they do not fit together."""
    blocks: dict[int, int] = {}
    for key in state:
        if found := re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", key):
            stage, number = int(found[1]), int(found[2])
            blocks[stage] = max(blocks.get(stage, 0), number + 1)
    stages = sorted(blocks)
    widths = [state[f"layer{stage}.0.conv1.weight"].shape[0] for stage in stages]
    projected = [
        [f"layer{stage}.{number}.shortcut.0.weight" in state for number in range(blocks[stage])]
        for stage in stages
    ]
    network = CifarResNet(
        widths, [blocks[stage] for stage in stages], projected, state["linear.weight"].shape[0]
    )
    network.load_state_dict(dict(state))
    return network
