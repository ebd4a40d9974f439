"""Networks of our own: published checkpoints give their published figures, and every published spelling loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import students
from pipeline.errors import InputError
from pipeline.metrics import psnr_y, quantise
from teachers.descriptor import Teacher
from teachers.loading import load_teacher
from teachers.networks.carn import CARN
from teachers.networks.edsr import EDSR

SET5 = {  # PSNR in dB (luma, `scale` pixels shaved, MATLAB's bicubic LR) and parameters of each checkpoint
    ("carn_m_multi.pth", 2): (37.68, 414_811),
    ("carn_m_multi.pth", 3): (34.06, 414_811),
    ("carn_m_multi.pth", 4): (31.88, 414_811),
    ("imdn_x2.pth", 2): (38.00, 694_404),
    ("imdn_x3.pth", 3): (34.36, 703_059),
    ("imdn_x4.pth", 4): (32.21, 715_176),
    ("pan_x2.pth", 2): (38.00, 261_403),
    ("pan_x3.pth", 3): (34.40, 261_403),
    ("pan_x4.pth", 4): (32.13, 272_419),
    ("bsrn_x2.pth", 2): (38.08, 331_628),
    ("bsrn_x3.pth", 3): (34.45, 340_283),
    ("bsrn_x4.pth", 4): (32.35, 352_400),
    ("rlfn_x2.pth", 2): (38.07, 526_856),
    ("rlfn_x4.pth", 4): (32.24, 543_740),
    ("a2f_sd_x2.pt", 2): (37.91, 313_372),
    ("a2f_sd_x3.pt", 3): (34.23, 315_997),
    ("a2f_sd_x4.pt", 4): (32.06, 319_672),
    ("plainusr_x2.pth", 2): (37.95, 311_364),
    ("plainusr_x4.pth", 4): (32.02, 333_108),
    ("dctlsa_x2.pt", 2): (38.25, 867_472),
    ("dctlsa_x3.pt", 3): (34.70, 874_912),
    ("dctlsa_x4.pt", 4): (32.52, 885_328),
}
LONG = {("dctlsa_x2.pt", 2), ("dctlsa_x3.pt", 3), ("bsrn_x2.pth", 2), ("imdn_x2.pth", 2), ("rlfn_x2.pth", 2)}
CASES = [pytest.param(*case, marks=[pytest.mark.slow] if case in LONG else []) for case in SET5]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def set5_psnr(teacher: Teacher, shared: Path, scale: int) -> float:
    found = []
    for path in sorted((shared / "data/sr/Set5/HR").iterdir()):
        [lr_path] = (shared / f"data/sr/Set5/LR_matlab_bicubic/X{scale}").glob(f"{path.stem}*")
        lr = torch.from_numpy(read(lr_path).copy()).permute(2, 0, 1)[None].float() / 255.0
        sr = quantise(teacher(lr))[0].numpy()
        found.append(psnr_y(sr, read(path)[: sr.shape[0], : sr.shape[1]], scale))
    assert len(found) == 5
    return float(np.mean(found))


@pytest.mark.parametrize(("file", "scale"), CASES)
def test_published_checkpoints_reach_their_set5_figure(shared: Path, file: str, scale: int) -> None:
    psnr, parameters = SET5[file, scale]
    teacher = load_teacher(shared / "weights" / file, scale=scale)
    assert (teacher.info.scale, teacher.info.parameters) == (scale, parameters)
    assert set5_psnr(teacher, shared, scale) == pytest.approx(psnr, abs=0.02)


@pytest.mark.parametrize("file", ["bsrn_x3.pth", "rlfn_x2.pth", "plainusr_x2.pth", "dctlsa_x4.pt"])
@pytest.mark.parametrize("size", [(1, 1), (7, 20), (14, 15)])
def test_pictures_below_the_smallest_side_are_padded(shared: Path, file: str, size: tuple[int, int]) -> None:
    teacher = load_teacher(shared / "weights" / file)
    colour = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1)
    out = teacher(colour.expand(2, 3, *size))
    assert out.shape == (2, 3, size[0] * teacher.info.scale, size[1] * teacher.info.scale)
    assert (out - colour).abs().max() < 0.15  # a flat picture stays flat: the padding is not black


def randomised(module: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    for parameter in module.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    return module.state_dict()


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_of_the_authors_spelling_is_the_published_network(tmp_path: Path, scale: int) -> None:
    student = students.build(
        "edsr", scale, blocks=2, features=8
    ).eval()  # written from the paper, independently
    state = {**randomised(student), **student.shift.as_convolutions()}
    torch.save(state, tmp_path / "edsr.pt")
    teacher = load_teacher(tmp_path / "edsr.pt", scale=scale)
    assert (teacher.info.architecture, teacher.convention.value_range) == ("EDSR", 255.0)
    x = torch.rand(1, 3, 9, 11)
    torch.testing.assert_close(teacher(x), student(x).detach(), atol=2e-6, rtol=1e-5)


def test_edsr_with_a_mean_shift_of_unit_range_takes_values_of_0_to_1(tmp_path: Path) -> None:
    student = students.build("edsr", 2, blocks=1, features=8)
    state = {**student.state_dict(), **student.shift.as_convolutions()}
    for name in ("sub_mean.bias", "add_mean.bias"):
        state[name] = state[name] / 255.0
    torch.save(state, tmp_path / "edsr.pt")
    assert load_teacher(tmp_path / "edsr.pt").convention.value_range == 1.0


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_edsr_of_basicsr_is_the_same_network(tmp_path: Path, scale: int) -> None:
    student = students.build("edsr", scale, blocks=2, features=8)
    state = randomised(student)
    other = {
        "conv_first": "head.0",
        "body.0.conv1": "body.0.body.0",
        "body.0.conv2": "body.0.body.2",
        "body.1.conv1": "body.1.body.0",
        "body.1.conv2": "body.1.body.2",
        "conv_after_body": "body.2",
        "upsample.0": "tail.0.0",
        "conv_last": "tail.1",
    } | ({"upsample.2": "tail.0.2"} if scale == 4 else {})
    respelled = {
        f"{new}.{part}": state[f"{old}.{part}"] for new, old in other.items() for part in ("weight", "bias")
    }
    torch.save({"params": respelled}, tmp_path / "basicsr.pth")
    torch.save({**state, **student.shift.as_convolutions()}, tmp_path / "authors.pt")
    x = torch.rand(1, 3, 8, 8)
    basicsr, authors = (load_teacher(tmp_path / name) for name in ("basicsr.pth", "authors.pt"))
    torch.testing.assert_close(basicsr(x), authors(x))


def test_edsr_reads_its_size_and_residual_factor_from_the_shapes() -> None:
    from teachers.networks.edsr import NATIVE

    [edsr] = NATIVE
    state = EDSR(4, 256, 3, 0.1).state_dict()
    network = edsr.build(state, 4)
    assert edsr.scales(state) == (4,)
    assert (len(network.body) - 1, network.body[0].res_scale) == (3, 0.1)
    assert edsr.build(EDSR(2).state_dict(), 2).body[0].res_scale == 1.0


def test_full_carn_is_told_from_carn_m_and_serves_three_scales(tmp_path: Path) -> None:
    network = CARN(2, 64, 1, False, {"up2": 2, "up3": 3, "up4": 4})
    save_file(network.state_dict(), tmp_path / "carn.safetensors")
    for scale in (2, 3, 4):
        teacher = load_teacher(tmp_path / "carn.safetensors", scale=scale)
        assert (teacher.info.architecture, teacher.info.parameters) == (
            "CARN",
            1_591_963,
        )
        assert teacher(torch.rand(1, 3, 6, 5)).shape == (1, 3, 6 * scale, 5 * scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_single_scale_carn_tells_its_scale(tmp_path: Path, scale: int) -> None:
    save_file(CARN(scale, 16, 4, True, {"up": scale}).state_dict(), tmp_path / "carn.safetensors")
    assert load_teacher(tmp_path / "carn.safetensors").info.scale == scale
    with pytest.raises(InputError, match=f"scale {scale}"):
        load_teacher(tmp_path / "carn.safetensors", scale=2 + (scale - 1) % 3)


def test_networks_can_be_trained_through(shared: Path) -> None:
    for file in ("plainusr_x4.pth", "bsrn_x4.pth", "pan_x4.pth", "a2f_sd_x4.pt"):
        network = load_teacher(shared / "weights" / file).network
        x = torch.rand(1, 3, 16, 16, requires_grad=True)
        network(x).sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0
