"""The gate: good teachers pass, misread ones are named with the cause and the key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_kit import BackProjection, teacher
from PIL import Image
from torch import Tensor, nn

from teachers.descriptor import Teacher
from teachers.gate import check
from teachers.loading import load_teacher
from teachers.networks.edsr import EDSR


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
