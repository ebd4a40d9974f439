"""ONNX files of networks of one structure: the exporter is asked once, and each has its own weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.deploy import onnx_file
from pipeline.deploy.export import PARITY, export_onnx
from pipeline.deploy.onnx_file import onnx_session
from students import build


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks that the exporter was asked for."""
    found: list[str] = []
    real = onnx_file._exported

    def exported(model: nn.Module, *rest: object) -> object:
        found.append(type(model).__name__)
        return real(model, *rest)

    monkeypatch.setattr(onnx_file, "_known", {})
    monkeypatch.setattr(onnx_file, "_exported", exported)
    return found


def student(seed: int, **options: int) -> nn.Module:
    torch.manual_seed(seed)
    net = build("fsrcnn", 2, **options)
    for parameter in net.parameters():  # biases and slopes too, which are all alike at first
        nn.init.normal_(parameter, std=0.2)
    return net.eval()


def test_the_next_of_a_structure_has_the_file_that_the_exporter_makes_of_it(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{seed}.onnx" for seed in range(3)]
    for seed, file in enumerate(files):
        assert export_onnx(student(seed), file, 2) <= PARITY
    assert asked == ["FSRCNN"]
    x = torch.rand(2, 3, 9, 14)
    for seed, file in enumerate(files):
        ours, theirs = onnx_session(file.read_bytes())(x)[0], student(seed)(x)
        assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max().clamp(min=1)
    onnx_file._known.clear()
    export_onnx(student(2), tmp_path / "alone.onnx", 2)
    assert len(asked) == 2 and (tmp_path / "alone.onnx").read_bytes() == files[2].read_bytes()


def test_another_structure_is_exported_for_itself(asked: list[str], tmp_path: Path) -> None:
    export_onnx(student(0), tmp_path / "a.onnx", 2)
    export_onnx(student(0, m=3), tmp_path / "b.onnx", 2)
    assert asked == ["FSRCNN", "FSRCNN"]


class Alike(nn.Module):
    """Networks that look the same from outside, and are not."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 3, padding=1)
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(x).abs() ** self.power, 2)


def test_what_only_looks_the_same_is_found_out_and_exported_for_itself(
    asked: list[str], tmp_path: Path
) -> None:
    for power in (1.0, 2.0):
        torch.manual_seed(0)
        assert export_onnx(Alike(power), tmp_path / f"{power}.onnx", 2) <= PARITY
    assert asked == ["Alike", "Alike"]


def test_files_of_few_structures_are_kept(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "STRUCTURES", 1)
    for m in (1, 2, 1):
        export_onnx(student(0, m=m), tmp_path / "a.onnx", 2)
    assert len(asked) == 3 and len(onnx_file._known) == 1
