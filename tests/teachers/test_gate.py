"""The gate: good teachers pass, misread ones are named with the cause and the key, bf16 only where it pays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pipeline.errors import InputError
from teachers import precision_gate as choosing
from teachers.descriptor import Convention, Teacher, TeacherInfo
from teachers.gate import check
from teachers.loading import load_teacher
from teachers.networks.edsr import EDSR
from teachers.precision import delicate_convolutions
from teachers.precision_gate import dense_share, measure_precision, precision_gate


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


def teacher(network: nn.Module, scale: int = 2, **convention: object) -> Teacher:
    info = TeacherInfo("t", "BackProjection", scale, 0, f"{id(network)}", "")
    return Teacher(info, network, Convention(**convention))  # type: ignore[arg-type]


class Exchanged(nn.Module):
    """Exchanges red and blue of the input or of the output of a network."""

    def __init__(self, inner: nn.Module, side: str) -> None:
        super().__init__()
        self.inner, self.side = inner, side

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flip(1)) if self.side == "input" else self.inner(x).flip(1)


def certain(subject: Teacher) -> str:
    """The one finding, which is certain, as a run would show it."""
    (finding,) = check(subject)
    assert finding.certain
    return str(finding.error("here"))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_what_shrinks_to_its_input_passes(scale: int) -> None:
    assert check(teacher(BackProjection(scale), scale)) == []


@pytest.mark.parametrize(("wanted", "given"), [(255.0, 1.0), (1.0, 255.0)])
def test_wrong_range_is_named_with_the_key_that_mends_it(wanted: float, given: float) -> None:
    subject = teacher(BackProjection(2, white=wanted), value_range=given)
    said = certain(subject)
    assert f"expected a network of values in 0..{given:g}, found one of 0..{wanted:g}" in said
    assert f"Set `value_range: {wanted:g}` on this teacher" in said and "`gate: warn`" in said
    assert check(subject.with_convention(value_range=wanted)) == []


@pytest.mark.parametrize("side", ["input", "output"])
def test_colours_exchanged_on_one_side_are_unlike_the_input(side: str) -> None:
    (finding,) = check(teacher(Exchanged(BackProjection(2), side)))
    assert "shrunk again" in finding.expected and not finding.certain  # about 20 dB: it may be meant


def test_untrained_network_is_refused_without_a_guess() -> None:
    torch.manual_seed(0)
    said = certain(teacher(EDSR(2, 8, 1)))
    assert "25 dB from the inputs or nearer" in said and "Set `" not in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_output_that_is_not_finite_is_refused(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(x, scale_factor=2) * value

    assert "expected finite values, found NaN" in certain(teacher(Broken()))


def test_an_output_of_another_size_is_named() -> None:
    assert "output (3, 96, 96) for x2" not in certain_size(3) and "(3, 216, 216)" in certain_size(3)


def certain_size(gives: int) -> str:
    (finding,) = check(lambda lr: F.interpolate(lr, scale_factor=gives), 2)
    assert finding.certain
    return str(finding.error("here"))


class Noisy(nn.Module):
    """Invents texture, as adversarially trained networks do: below bicubic."""

    def forward(self, x: Tensor) -> Tensor:
        out = BackProjection(2)(x)
        return out + 0.03 * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))


def test_invented_texture_is_no_fault_another_range_is() -> None:
    assert check(teacher(Noisy())) == []
    assert "Set `value_range: 1`" in certain(teacher(Noisy(), value_range=255.0))


def test_own_pictures_replace_the_bundled_ones(tiny_pictures: Path) -> None:
    with Image.open(tiny_pictures / "c.png") as opened:
        picture = np.asarray(opened)  # 97 x 131: no multiple of 4
    assert check(teacher(BackProjection(4), 4), pictures=[picture]) == []
    torch.manual_seed(0)
    assert check(teacher(EDSR(4, 8, 1), 4), pictures=[picture]) != []


SLOW = ("dctlsa_x2.pt", "dctlsa_x3.pt", "dctlsa_x4.pt", "bsrn_x2.pth")


def all_checkpoints() -> list[object]:
    files = [f"{n}_x{s}.pth" for n in ("imdn", "pan", "bsrn") for s in (2, 3, 4)]
    files += [f"{n}_x{s}.pth" for n in ("rlfn", "plainusr") for s in (2, 4)]
    files += [f"{n}_x{s}.pt" for n in ("a2f_sd", "dctlsa") for s in (2, 3, 4)]
    return [pytest.param(f, marks=pytest.mark.slow if f in SLOW else []) for f in files]


@pytest.mark.parametrize("file", all_checkpoints())
def test_published_checkpoints_pass_and_are_named_when_misread(shared: Path, file: str) -> None:
    good = load_teacher(shared / "weights" / file, scale=int(file.split("_x")[1][0]))
    assert check(good) == []
    if file.startswith("dctlsa"):
        return  # without biases that matter, it reads either range
    right = good.convention.value_range
    assert f"Set `value_range: {right:g}`" in certain(good.with_convention(value_range=256.0 - right))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_carn_passes_at_each_of_its_scales(shared: Path, scale: int) -> None:
    assert check(load_teacher(shared / "weights/carn_m_multi.pth", scale=scale)) == []


REALWORLD = (
    "animejanai_v3_compact_x2.pth",
    "animejanai_v3_ultracompact_x2.pth",
    "animejanai_v3_superultracompact_x2.pth",
    "realesr_animevideov3_x4.pth",
)


@pytest.mark.parametrize("file", REALWORLD)
def test_sharpening_networks_pass_and_are_not_said_to_want_another_order(shared: Path, file: str) -> None:
    path = shared / "weights/realworld" / file
    if not path.is_file():
        pytest.skip(f"needs {path.name}, which is not here")
    good = load_teacher(path)
    assert check(good) == []
    assert check(good.with_convention(bgr=True)) == []  # nobody can tell


@pytest.mark.parametrize("file", ["imdn_x2.pth", "rlfn_x4.pth", "a2f_sd_x4.pt", "pan_x4.pth"])
def test_exchanged_channels_are_warned_of_where_many_pictures_tell(shared: Path, file: str) -> None:
    good = load_teacher(shared / "weights" / file, scale=int(file.split("_x")[1][0]))
    (finding,) = check(good.with_convention(bgr=True))
    assert not finding.certain
    assert "found rgb better on 10 of 10 colourful pictures" in str(finding.error("t"))
    assert "Set `channels: rgb` on this teacher" in finding.remedy


@pytest.mark.parametrize(("made_for", "used_for"), [(2, 3), (3, 2)])
def test_weights_of_another_scale_are_refused_where_shapes_do_not_tell(
    shared: Path, made_for: int, used_for: int
) -> None:
    said = certain(load_teacher(shared / "weights" / f"pan_x{made_for}.pth", scale=used_for))
    assert f"expected weights made for x{used_for}, found weights made for x{made_for}" in said


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
