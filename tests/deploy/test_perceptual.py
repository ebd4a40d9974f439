"""LPIPS and DISTS on backbones of random weights, in files named as torchvision names its own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_kit import run
from conftest import natural_picture
from PIL import Image, ImageFilter
from road_kit import picture, recipe_file
from torch import nn

from pipeline.deploy import perceptual
from pipeline.errors import InputError

ALEXNET = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
VGG16 = {
    **{
        0: (3, 64, 3),
        2: (64, 64, 3),
        5: (64, 128, 3),
        7: (128, 128, 3),
        10: (128, 256, 3),
        12: (256, 256, 3),
    },
    **{14: (256, 256, 3), 17: (256, 512, 3), 19: (512, 512, 3), 21: (512, 512, 3), 24: (512, 512, 3)},
    **{26: (512, 512, 3), 28: (512, 512, 3)},
}


def backbone(folder: Path, name: str, layers: dict[int, tuple[int, int, int]]) -> Path:
    """A file of random weights under torchvision's keys; the end of its name is the beginning of its sha256."""
    torch.manual_seed(0)
    state = {"classifier.1.bias": torch.zeros(3)}
    for place, (inside, out, kernel) in layers.items():
        layer = nn.Conv2d(inside, out, kernel)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        state |= {f"features.{place}.weight": layer.weight.data, f"features.{place}.bias": layer.bias.data}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "new")
    digits = hashlib.sha256((folder / "new").read_bytes()).hexdigest()[:8]
    return (folder / "new").rename(folder / f"{name}-{digits}.pth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    perceptual.distance.cache_clear()
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def both(hub: Path) -> Path:
    backbone(hub, "alexnet-owt", ALEXNET)
    backbone(hub, "vgg16", VGG16)
    return hub


def blurred(x: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)))


def test_what_is_missing_is_named(hub: Path) -> None:
    assert perceptual.found() == ()
    for part in ("LPIPS not measured: alexnet's weights", "DISTS not measured: vgg16's weights", str(hub)):
        assert part in perceptual.missing()
    with pytest.raises(InputError, match="LPIPS: expected its package and its backbone's weights"):
        perceptual.distance("lpips")
    file = backbone(hub, "alexnet-owt", ALEXNET)
    assert [m.metric.key for m in perceptual.found()] == ["lpips"]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert perceptual.found() == () and f"{file} is damaged" in perceptual.missing()


@pytest.mark.parametrize("key", ("lpips", "dists"))
def test_distances_are_zero_for_equals_and_grow_with_the_blur(key: str, both: Path) -> None:
    x = natural_picture(96, 112, 3)
    distance = perceptual.distance(key)
    values = [distance(blurred(x, radius), x) for radius in (0, 0.6, 1.2, 2.4)]
    assert abs(values[0]) < 1e-6 and values == sorted(values) and values[1] > 1e-4
    assert distance(x, blurred(x, 1.2)) == pytest.approx(values[2], rel=1e-4)


def test_lpips_is_its_formula(both: Path) -> None:
    """Zhang et al., equation 1, written out: unit features, squared differences, weighted, averaged, summed."""
    x = natural_picture(80, 96, 3)
    y = blurred(x, 1.0)
    state = torch.load(next(both.glob("alexnet-*")), weights_only=True)
    heads = torch.load(
        Path(importlib.util.find_spec("lpips").origin).parent / "weights/v0.1/alex.pth",
        "cpu",
        weights_only=True,
    )

    def features(p: np.ndarray) -> list[torch.Tensor]:
        z = torch.from_numpy(p.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        z = (z - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(1, 3, 1, 1)
        found = []
        for place, (stride, padding, pooled) in {
            0: (4, 2, 0),
            3: (1, 2, 1),
            6: (1, 1, 1),
            8: (1, 1, 0),
            10: (1, 1, 0),
        }.items():
            z = F.max_pool2d(z, 3, 2) if pooled else z
            z = F.relu(
                F.conv2d(
                    z, state[f"features.{place}.weight"], state[f"features.{place}.bias"], stride, padding
                )
            )
            found.append(z / (z.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    total = sum(
        float(((a - b).square() * heads[f"lin{i}.model.1.weight"]).sum(1).mean())
        for i, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )
    assert perceptual.distance("lpips")(x, y) == pytest.approx(total, rel=1e-4)


def test_a_run_shows_them_or_says_what_is_missing(hub: Path, tmp_path: Path) -> None:
    for seed, name in enumerate("abcdef"):
        picture(tmp_path / "pictures" / f"{name}.png", 96, 96, seed)
    picture(tmp_path / "Bench" / "one.png", 96, 96, 60)
    file = recipe_file(tmp_path, data={"test": [str(tmp_path / "Bench")]})
    assert run("run", file, "--inline").code == 0
    report = tmp_path / "runs/r/report/report.md"
    assert "LPIPS not measured: alexnet's weights" in report.read_text()
    backbone(hub, "alexnet-owt", ALEXNET)
    done = run("run", file, "--inline", "--json", tmp_path / "out.json")
    assert done.code == 0 and "LPIPS" in done.out and "DISTS" not in done.out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    values = {row["role"]: row["sets"]["Bench"]["lpips"] for row in rows}
    assert set(values) == {"bicubic", "teacher", "fused", "student"} and min(values.values()) > 0
    assert "LPIPS" in report.read_text().split("## ")[0]
    before = report.stat().st_mtime_ns
    assert run("run", file, "--inline").code == 0 and report.stat().st_mtime_ns == before
