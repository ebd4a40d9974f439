"""Precision: bf16 leaves pixels and gates in float32, and is chosen once, where it pays and costs no quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from network_kit import BackProjection, teacher
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers import precision_gate as choosing
from teachers.descriptor import Teacher
from teachers.loading import load_teacher
from teachers.networks.edsr import EDSR
from teachers.precision import delicate_convolutions
from teachers.precision_gate import dense_share, measure_precision, precision_gate


def test_bf16_leaves_pixels_in_float32(shared: Path) -> None:
    good = load_teacher(shared / "weights/rlfn_x4.pth")
    assert {m for m in delicate_convolutions(good.network, torch.rand(1, 3, 32, 32))} == {
        good.network.conv_1,
        good.network.upsampler[0],
    }
    good.precision("bf16")
    seen = {}
    for name in ("conv_1", "conv_2", "upsampler"):
        good.network.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: seen.update({name: out.dtype})
        )
    assert good(torch.rand(1, 3, 20, 20)).dtype == torch.float32
    assert seen == {"conv_1": torch.float32, "conv_2": torch.bfloat16, "upsampler": torch.float32}


def test_bf16_spares_gates_on_pooled_features(shared: Path) -> None:
    good = load_teacher(shared / "weights/imdn_x4.pth")
    spared = delicate_convolutions(good.network, torch.rand(1, 3, 32, 32))
    assert good.network.IMDB3.cca.conv_du[2] in spared and good.network.IMDB3.c1 not in spared
    assert len(spared) == 2 + 2 * 6


def test_bf16_is_near_float32_and_can_be_left_again(shared: Path) -> None:
    good = load_teacher(shared / "weights/imdn_x4.pth")
    x = torch.rand(1, 3, 24, 24)
    exact = good(x)
    near = good.precision("bf16")(x)
    assert 0 < (near - exact).abs().max() < 0.05
    assert torch.equal(good.precision("fp32")(x), exact)
    with pytest.raises(InputError, match="fp32 or bf16, found 'fp16'"):
        good.precision("fp16")  # type: ignore[arg-type]


def test_precision_is_measured_against_hr_and_put_back(shared: Path) -> None:
    report = measure_precision(load_teacher(shared / "weights/rlfn_x4.pth"))
    assert abs(report.drop) < 0.02 and report.dense > 0.9
    good = load_teacher(shared / "weights/plainusr_x4.pth").precision("bf16")
    assert measure_precision(good) == measure_precision(good)  # no clock is in it
    assert good.dtype == "bf16"


@pytest.mark.parametrize(
    ("network", "dense"),
    [
        ("animejanai_v3_compact_x2", True),  # 64 channels
        ("animejanai_v3_superultracompact_x2", False),  # 24
    ],
)
def test_wide_layers_are_what_bf16_is_for(shared: Path, network: str, dense: bool) -> None:
    share = dense_share(load_teacher(shared / "weights/realworld" / f"{network}.pth"))
    assert share > 0.9 if dense else share == 0


def test_the_dense_share_counts_multiply_adds() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.wide = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
            self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
            self.last = nn.Conv2d(32, 12, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.last(self.grouped(self.wide(self.first(x))))
            return nn.functional.pixel_shuffle(y, 2)

    counts = {"first": 3 * 32, "wide": 32 * 32, "grouped": 16 * 32, "last": 32 * 12}
    assert dense_share(teacher(Mixed())) == pytest.approx(counts["wide"] / sum(counts.values()))


@pytest.mark.parametrize(
    ("drop", "dense", "supported", "choice"),
    [
        (0.004, 0.9, True, "bf16"),
        (-0.01, 0.5, True, "bf16"),
        (0.006, 1.0, True, "fp32"),
        (0.0, 0.4, True, "fp32"),
        (float("nan"), 1.0, True, "fp32"),
        (0.0, 1.0, False, "fp32"),
    ],
)
def test_bf16_is_chosen_by_rule(drop: float, dense: float, supported: bool, choice: str) -> None:
    assert choosing.PrecisionReport(drop, dense, supported).choice == choice


def test_the_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measured(teacher: Teacher) -> choosing.PrecisionReport:
        asked.append(teacher)
        return choosing.PrecisionReport(0.0, 1.0, True)

    monkeypatch.setattr(choosing, "measure_precision", measured)
    monkeypatch.setattr(choosing, "has_bf16", lambda device: True)
    monkeypatch.setattr(choosing, "_chosen", {})
    subject = teacher(EDSR(2, 8, 1))
    assert [precision_gate(subject), precision_gate(subject)] == ["bf16", "bf16"] and len(asked) == 1


def test_a_network_without_parameters_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "measure_precision", lambda *_: pytest.fail("it was measured"))
    assert precision_gate(teacher(BackProjection(2))) == "fp32"


@pytest.mark.gpu
def test_teachers_run_on_cuda_as_on_the_cpu(shared: Path) -> None:
    good = load_teacher(shared / "weights/rlfn_x4.pth")
    x = torch.rand(2, 3, 33, 20)
    on_cpu = good(x)
    on_cuda = good.to("cuda")(x)
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=2e-3, rtol=0)
    assert precision_gate(good) in ("fp32", "bf16")
