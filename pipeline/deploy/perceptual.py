"""LPIPS and DISTS by the packages of their authors, where these and the weights of their backbones are on disk.

Nothing is downloaded: the backbones' files are those that torchvision keeps in `torch.hub`'s folder, and their names
end in the first digits of their sha256. The packages ask torchvision for the backbones alone, so these are lent to
them, and torchvision itself may be absent.

LPIPS: Zhang et al., CVPR 2018, version 0.1 on AlexNet. DISTS: Ding et al., TPAMI 2022, on VGG-16.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.cache.fingerprint import file_sha256
from pipeline.errors import InputError
from pipeline.report.table import Metric
from teachers.spandrel_import import _lock
from teachers.timm_import import lent_torchvision

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Of two (H, W, 3) uint8 pictures: 0 for equal ones, larger is farther."""
REMEDY = "pip install 'faculty[perceptual]'"
ALEXNET = ((64, 11, 4, 2), "M", (192, 5, 1, 2), "M", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "M")
"""(channels, kernel, stride, padding) of its convolutions, M for a maximum (Krizhevsky 2014)."""
VGG16: tuple[Any, ...] = tuple(
    c if c == "M" else (c, 3, 1, 1)
    for c in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
)
"""The same of Simonyan and Zisserman 2015, configuration D."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One of the two, as it is on this machine."""

    metric: Metric
    package: str
    backbone: str
    layers: tuple[Any, ...]
    pattern: str
    """Of the backbone's file."""

    @property
    def missing(self) -> str:
        """What it lacks here; nothing where it can be measured."""
        if importlib.util.find_spec(self.package) is None:
            return REMEDY
        if (file := self.file) is None:
            return f"{self.backbone}'s weights ({self.pattern.replace(_DIGITS, '*')}) are not in {_folder()}"
        if not _sha256(str(file), file.stat().st_mtime_ns).startswith(file.stem.rpartition("-")[2]):
            return f"{file} is damaged: its sha256 does not begin as its name says"
        return ""

    @property
    def file(self) -> Path | None:
        """The backbone's weights."""
        return next(iter(sorted(_folder().glob(self.pattern))), None)

    @property
    def identity(self) -> str:
        """Equal identities give equal figures."""
        assert self.file is not None
        return f"{self.metric.key}-{self.file.stem.rpartition('-')[2]}"


_DIGITS = "[0-9a-f]" * 8
LPIPS = Measure(
    Metric("lpips", "LPIPS", 4, higher_is_better=False),
    "lpips",
    "alexnet",
    ALEXNET,
    f"alexnet-owt-{_DIGITS}.pth",
)
DISTS = Measure(
    Metric("dists", "DISTS", 4, higher_is_better=False),
    "DISTS_pytorch",
    "vgg16",
    VGG16,
    f"vgg16-{_DIGITS}.pth",
)
MEASURES = {m.metric.key: m for m in (LPIPS, DISTS)}


def found() -> tuple[Measure, ...]:
    """Those that can be measured here."""
    return tuple(m for m in MEASURES.values() if not m.missing)


def missing() -> str:
    """The others, with what they lack, in one line; nothing where there are none."""
    return "; ".join(f"{m.metric.label} not measured: {why}" for m in MEASURES.values() if (why := m.missing))


def measured(keys: Sequence[str], sr: np.ndarray, hr: np.ndarray, device: str = "cpu") -> dict[str, float]:
    """{key: distance} of two (H, W, 3) uint8 pictures, without what this machine lacks."""
    return {key: distance(key, device)(sr, hr) for key in keys if not MEASURES[key].missing}


@lru_cache
def distance(key: str, device: str = "cpu") -> Distance:
    """`lpips` or `dists` as a function. Raises InputError where it cannot be had here."""
    measure = MEASURES[key]
    if measure.missing:
        raise InputError(measure.metric.label, "its package and its backbone's weights", measure.missing)
    with _lock, lent_torchvision():
        models: Any = sys.modules["torchvision.models"]
        setattr(models, measure.backbone, lambda **_: SimpleNamespace(features=_features(measure)))
        package = importlib.import_module(measure.package)
        network = package.LPIPS(net="alex", verbose=False) if key == "lpips" else _dists(package)
    network = network.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def measured(a: np.ndarray, b: np.ndarray) -> float:
        x, y = (_tensor(p).to(device) for p in (a, b))
        # LPIPS takes values of -1 to 1, DISTS those of 0 to 1.
        return float(network(2 * x - 1, 2 * y - 1) if key == "lpips" else network(x, y))

    return measured


def _dists(package: Any) -> nn.Module:
    """Its own weights lie beside its code; the constructor looks where only some ways of installing put them."""
    network = package.DISTS(load_weights=False)
    own = torch.load(Path(package.__file__).parent / "weights.pt", map_location="cpu", weights_only=True)
    network.alpha.data, network.beta.data = own["alpha"], own["beta"]
    return network


def _features(measure: Measure) -> nn.Sequential:
    """The convolutional half of a backbone, as torchvision has it, with its weights."""
    layers: list[nn.Module] = []
    channels = 3
    for layer in measure.layers:
        if layer == "M":
            # AlexNet's windows overlap, VGG's do not.
            layers.append(nn.MaxPool2d(3 if measure.backbone == "alexnet" else 2, 2))
            continue
        width, kernel, stride, padding = layer
        layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU(inplace=True)]
        channels = width
    network = nn.Sequential(*layers)
    state = torch.load(str(measure.file), map_location="cpu", weights_only=True)
    prefix = "features."
    network.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return network


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def _folder() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints")


@lru_cache
def _sha256(path: str, changed: int) -> str:
    return file_sha256(path)
