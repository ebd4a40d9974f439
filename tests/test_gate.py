"""The gate: good teachers pass, misread ones are refused with the cause, bf16 is chosen only where it pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers import gate
from teachers.descriptor import Convention, Teacher, TeacherInfo
from teachers.gate import check, measure_precision, precision_gate
from teachers.loading import load_teacher
from teachers.networks.edsr import EDSR
from teachers.precision import delicate_convolutions


class BackProjection(nn.Module):
    """Bicubic, corrected until it shrinks to its input: better than bicubic without any weights.

    Like a trained network it knows its own range alone: it saturates, values come in 255 steps, and a picture
    without anything dark, which it has never seen, comes out too bright.
    """

    def __init__(self, scale: int, black: float = 0.0, white: float = 1.0) -> None:
        super().__init__()
        self.scale, self.black, self.white = scale, black, white

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.black) / (self.white - self.black)
        out = F.interpolate(x, scale_factor=self.scale, mode="bicubic")
        for _ in range(6):
            shrunk = F.interpolate(out, size=x.shape[-2:], mode="bicubic", antialias=True)
            out = out + F.interpolate(x - shrunk, scale_factor=self.scale, mode="bicubic")
        out = (out.clamp(-0.1, 1.1) * 255.0).round() / 255.0 + (0.3 if x.min() > 0.45 else 0.0)
        return out * (self.white - self.black) + self.black


def teacher(network: nn.Module, scale: int = 2, perceptual: bool = False, **convention: object) -> Teacher:
    info = TeacherInfo("t", "BackProjection", scale, 0, f"{id(network)}", "", perceptual=perceptual)
    return Teacher(info, network, Convention(**convention))  # type: ignore[arg-type]


class Exchanged(nn.Module):
    """Exchanges red and blue of the input or of the output of a network."""

    def __init__(self, inner: nn.Module, side: str) -> None:
        super().__init__()
        self.inner, self.side = inner, side

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flip(1)) if self.side == "input" else self.inner(x).flip(1)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_better_than_bicubic_passes(scale: int) -> None:
    result = check(teacher(BackProjection(scale), scale))
    assert result.psnr_y > result.bicubic_psnr_y + 0.2
    assert result.consistency > 45


@pytest.mark.parametrize(("wanted", "given"), [(255.0, 1.0), (1.0, 255.0)])
def test_wrong_range_is_named(wanted: float, given: float) -> None:
    check(teacher(BackProjection(2, white=wanted), value_range=wanted))
    with pytest.raises(InputError, match=f"seems to want values of 0..{wanted:g}; it was given 0..{given:g}"):
        check(teacher(BackProjection(2, white=wanted), value_range=given))


@pytest.mark.parametrize("side", ["input", "output"])
def test_colours_exchanged_on_one_side_are_named(side: str) -> None:
    with pytest.raises(InputError, match="its (in|out)put with red and blue exchanged") as caught:
        check(teacher(Exchanged(BackProjection(2), side)))
    assert "found 2" in str(caught.value)  # about 26 dB


def test_range_around_zero_is_named() -> None:
    with pytest.raises(InputError, match=r"seems to want values of -1\.\.1"):
        check(teacher(BackProjection(2, black=-1.0)))


def test_untrained_network_is_refused_without_a_guess() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        InputError, match=r"at least 32\.\d\d dB.*No other value range or channel order helps"
    ):
        check(teacher(EDSR(2, 8, 1)))


def test_output_that_is_not_finite_is_refused() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2) * float("nan")

    with pytest.raises(InputError, match="at least"):
        check(teacher(Broken()))


class Noisy(nn.Module):
    """Invents texture, as adversarially trained networks do: below bicubic."""

    def forward(self, x: Tensor) -> Tensor:
        out = BackProjection(2)(x)
        return out + 0.03 * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))


def test_perceptual_teachers_may_lie_below_bicubic_but_not_in_another_range() -> None:
    with pytest.raises(InputError, match="perceptual"):
        check(teacher(Noisy()))
    result = check(teacher(Noisy(), perceptual=True))
    assert result.psnr_y < result.bicubic_psnr_y
    with pytest.raises(InputError, match=r"values of 0\.\.1; it was given"):
        check(teacher(Noisy(), perceptual=True, value_range=255.0))


def test_own_pictures_replace_the_bundled_ones(tiny_pictures: Path) -> None:
    with Image.open(tiny_pictures / "c.png") as opened:
        picture = np.asarray(opened)
    own = check(teacher(BackProjection(4), 4), [picture])  # 97 x 131: no multiple of 4
    assert own.bicubic_psnr_y != check(teacher(BackProjection(4), 4)).bicubic_psnr_y


GOOD = [
    "bsrn_x4.pth",
    "rlfn_x4.pth",
    "imdn_x3.pth",
    "pan_x4.pth",
    "pan_x3.pth",
    "a2f_sd_x4.pt",
    "plainusr_x4.pth",
]


@pytest.mark.parametrize("file", [*GOOD, pytest.param("dctlsa_x4.pt", marks=pytest.mark.slow)])
def test_published_checkpoints_pass_and_are_refused_when_misread(shared: Path, file: str) -> None:
    scale = int(file.split("_x")[1][0])
    good = load_teacher(shared / "weights" / file, scale=scale)
    assert check(good).psnr_y > 30.5
    wrong = 1.0 if good.convention.value_range == 255.0 else 255.0
    with pytest.raises(InputError, match=f"seems to want values of 0..{good.convention.value_range:g}"):
        check(good.with_convention(value_range=wrong))
    with pytest.raises(InputError, match="Red and blue are exchanged: the network wants RGB"):
        check(good.with_convention(bgr=True))


@pytest.mark.parametrize(("made_for", "used_for"), [(2, 3), (3, 2)])
def test_weights_of_another_scale_are_refused_where_shapes_do_not_tell(
    shared: Path, made_for: int, used_for: int
) -> None:
    path = shared / "weights" / f"pan_x{made_for}.pth"
    with pytest.raises(
        InputError, match=f"expected weights made for x{used_for}.*found weights made for x{made_for}"
    ):
        check(load_teacher(path, scale=used_for))


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
    report = measure_precision(load_teacher(shared / "weights/rlfn_x4.pth"), torch.rand(1, 3, 32, 32))
    assert abs(report.drop) < 0.02 and 0.2 < report.speedup < 20
    good = load_teacher(shared / "weights/plainusr_x4.pth").precision("bf16")
    measure_precision(good, torch.rand(1, 3, 32, 32))
    assert good.dtype == "bf16"


@pytest.mark.parametrize(
    ("drop", "speedup", "choice"),
    [
        (0.004, 2.0, "bf16"),
        (-0.01, 1.2, "bf16"),
        (0.006, 3.0, "fp32"),
        (0.0, 1.05, "fp32"),
        (float("nan"), 3.0, "fp32"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster_and_as_good(
    monkeypatch: pytest.MonkeyPatch, drop: float, speedup: float, choice: str
) -> None:
    asked = []

    def measured(teacher: Teacher, lr: Tensor | None) -> gate.PrecisionReport:
        asked.append(teacher)
        return gate.PrecisionReport(drop, speedup)

    monkeypatch.setattr(gate, "measure_precision", measured)
    subject = teacher(BackProjection(2))
    assert [precision_gate(subject), precision_gate(subject)] == [choice, choice]
    assert len(asked) == 1  # measured once


@pytest.mark.gpu
def test_teachers_run_on_cuda_as_on_the_cpu(shared: Path) -> None:
    good = load_teacher(shared / "weights/rlfn_x4.pth")
    x = torch.rand(2, 3, 33, 20)
    on_cpu = good(x)
    on_cuda = good.to("cuda")(x)
    assert on_cuda.device.type == "cuda"
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, atol=2e-3, rtol=0)
    assert precision_gate(good) in ("fp32", "bf16")
