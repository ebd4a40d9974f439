"""Networks for recognition: a backbone, an embedding head, a classifier or a segmentation decoder.

Backbones are small residual networks for thumbnails (He et al., CVPR 2016, section 4.2: three stages of w, 2w and 4w
channels) or timm's by name. All take (B, 3, H, W) RGB in [0, 1] and normalise it themselves.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import FacultyError, InputError
from pipeline.tasks.recognition.recipe import Network

DEPTHS = {"resnet8": 1, "resnet14": 2, "resnet20": 3}
LEAST_MAP = 2
"""Least side of the last feature map that is aimed at: below, strides of the stem are dropped."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution that picks its stride's pixels first where oneDNN would write beyond its memory.

    oneDNN 3 without AVX-512, fewer than 8 channels in, stride above 1, channels last: the gradient's last block is
    written whole, and the process dies later (torch 2.13).
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.in_channels < 8:
            rows, columns = self.stride
            return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)
        return super().forward(x)


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outside)
        self.shortcut: nn.Module = nn.Identity()
        if inside != outside:
            self.shortcut = nn.Sequential(
                Pointwise(inside, outside, 1, stride, bias=False), _norm(norm, outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class Thumbnail(nn.Module):
    """A residual network of three stages for pictures of 4 to 64 pixels; -> the three stages' maps."""

    statistics = PLAIN

    def __init__(self, depth: int, width: int = 16, norm: str = "batch", side: int = 32) -> None:
        """`depth` blocks a stage, `norm` `batch` or `group`, `side` the least side of the pictures to come."""
        super().__init__()
        self.channels = [width, 2 * width, 4 * width]
        strides, self.dropped = _strides(side, [2, 2])
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = _norm(norm, width)
        inside = width
        stages = []
        for channels, stride in zip(self.channels, [1, *strides]):
            blocks = []
            for i in range(depth):
                blocks.append(Residual(inside, channels, stride if i == 0 else 1, norm))
                inside = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        maps = []
        for stage in self.stages:
            maps.append(x := stage(x))
        return maps


def _strides(side: int, strides: list[int]) -> tuple[list[int], int]:
    """The strides with as many of the first ones dropped as leave a last map of LEAST_MAP pixels."""
    dropped = 0
    while dropped < len(strides) and side // 2 ** (len(strides) - dropped) < LEAST_MAP:
        dropped += 1
    return [1] * dropped + strides[dropped:], dropped


class Timm(nn.Module):
    """A backbone of timm; -> its stages' maps."""

    def __init__(self, name: str, side: int, pretrained: bool = False, **options: Any) -> None:
        super().__init__()
        from teachers.timm_import import import_timm

        timm = import_timm()
        try:
            self.body = timm.create_model(name, pretrained=pretrained, features_only=True, **options)
        except (RuntimeError, TypeError, KeyError) as error:
            raise InputError(
                f"network {name}", "a backbone of timm or resnet8, resnet14, resnet20", str(error)
            ) from None
        except Exception as error:
            if not pretrained:
                raise
            # The hub's client raises a dozen kinds of errors, all of which mean the same here.
            raise FacultyError(
                f"network {name}: its pretrained weights cannot be had ({_short(error)}). Fetch them where the hub can "
                "be reached and copy its cache (HF_HOME), name a local file as `checkpoint`, or leave `pretrained` out "
                "and train it (`train`)."
            ) from error
        self.channels: list[int] = list(self.body.feature_info.channels())
        settings = self.body.default_cfg if hasattr(self.body, "default_cfg") else {}
        self.statistics = (
            tuple(settings.get("mean", IMAGENET[0])),
            tuple(settings.get("std", IMAGENET[1])),
        )
        self.dropped = _drop_strides(self.body, side)

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.body(x))


def _drop_strides(body: nn.Module, side: int) -> int:
    """Set strides of the stem to 1, first to last, while the last map is smaller than LEAST_MAP; how many."""
    stem = [
        m
        for name, m in body.named_modules()
        if not re.match(r"(layer|block|stage)", name)
        and isinstance(m, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d))
        and _first(m.stride) > 1
    ]
    dropped = 0
    while stem and _last_side(body, side) < LEAST_MAP:
        stem.pop(0).stride = (1, 1)
        dropped += 1
    return dropped


def _first(stride: Any) -> int:
    return stride[0] if isinstance(stride, tuple) else int(stride)


@torch.no_grad()
def _last_side(body: nn.Module, side: int) -> int:
    body.eval()
    return min(body(torch.zeros(1, 3, side, side))[-1].shape[-2:])


class Recogniser(nn.Module):
    """(B, 3, H, W) in [0, 1] -> {"map": (B, C, h, w), "embedding": (B, D), "logits": (B, K)}."""

    def __init__(self, backbone: nn.Module, embedding: int, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        mean, deviation = cast(tuple[Any, Any], backbone.statistics)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)
        self.embed = nn.Linear(backbone.channels[-1], embedding)
        self.classify = nn.Linear(embedding, classes)

    @property
    def dropped(self) -> int:
        """Strides of the stem that were dropped for small pictures."""
        return int(self.backbone.dropped)

    @property
    def channels(self) -> int:
        """Of its map."""
        return int(self.embed.in_features)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The backbone's maps of a normalised picture, fine to coarse."""
        return self.backbone((x - self.mean) / self.deviation)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        last = self.maps(x)[-1]
        embedding = self.embed(last.mean(dim=(-2, -1)))
        return {"map": last, "embedding": embedding, "logits": self.classify(embedding)}


class Segmenter(Recogniser):
    """As Recogniser, but logits are maps (B, 2, h, w): background and defect, on the grid of the finest map.

    The decoder is a feature pyramid (Lin et al., CVPR 2017): 1 x 1 laterals, added from coarse to fine, one 3 x 3.
    """

    def __init__(self, backbone: nn.Module, embedding: int, width: int = 32) -> None:
        super().__init__(backbone, embedding, 2)
        del self.classify
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in backbone.channels)
        self.smooth = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(), nn.Conv2d(width, 2, 1))
        self.context = nn.Linear(embedding, width)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.maps(x)
        embedding = self.embed(maps[-1].mean(dim=(-2, -1)))
        y = self.laterals[-1](maps[-1]) + self.context(embedding)[:, :, None, None]
        for lateral, finer in zip(reversed(self.laterals[:-1]), reversed(maps[:-1])):
            y = F.interpolate(y, finer.shape[-2:], mode="bilinear", align_corners=False) + lateral(finer)
        return {"map": maps[-1], "embedding": embedding, "logits": self.smooth(y)}


def build(
    network: Network, size: tuple[int, int], classes: int, *, segment: bool = False, pretrained: bool = False
) -> Recogniser:
    """The network for pictures of `size` (height, width). Raises InputError for a name or options that do not exist."""
    side = min(size)
    if network.name in DEPTHS:
        if pretrained:
            raise InputError("teacher.pretrained", "a backbone of timm", network.name)
        try:
            backbone: nn.Module = Thumbnail(DEPTHS[network.name], side=side, **network.options)
        except (TypeError, KeyError) as error:
            raise InputError(f"options of {network.name}", "width, norm", str(error)) from None
    else:
        backbone = Timm(network.name, side, pretrained, **network.options)
    if segment:
        return Segmenter(backbone, network.embedding)
    return Recogniser(backbone, network.embedding, classes)


def load_weights(model: nn.Module, file: str) -> nn.Module:
    """Fill `model` from a safetensors file or a .pth of plain tensors. Raises InputError where it does not fit."""
    path = Path(file)
    if not path.is_file():
        raise InputError(file, "a checkpoint", "no such file")
    from teachers.checkpoints import read_checkpoint
    from teachers.unwrapping import unwrap

    own = model.state_dict()
    state = unwrap(
        read_checkpoint(path)[0],
        file,
        lambda state: state.keys() == own.keys(),
        expected=f"the weights of this network ({len(own)} tensors: {', '.join(list(own)[:4])}, ...)",
        remedy=lambda: "Name in teacher.network the network that the file was made with.",
    )
    for name in ("classify.weight",):
        if name in state and name in own and state[name].shape[0] != own[name].shape[0]:
            raise InputError(
                file,
                f"{own[name].shape[0]} classes",
                f"{state[name].shape[0]}",
                "Train the teacher on this data.",
            )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(file, "the weights of this network", _short(error)) from None
    return model


def _norm(kind: str, channels: int) -> nn.Module:
    if kind not in ("batch", "group"):
        raise KeyError(f"norm is `batch` or `group`, not {kind!r}")
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(min(8, channels), channels)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
