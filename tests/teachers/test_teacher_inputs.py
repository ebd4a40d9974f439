"""What teachers are given and give back: any size, the caller's tensor left alone, colours kept, the range told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from teachers.descriptor import Convention, Teacher, TeacherInfo, pad
from teachers.loading import load_teacher
from teachers.spandrel_import import import_spandrel


def save_rcan(path: Path, range_of_mean: float) -> nn.Module:
    import_spandrel()
    from spandrel.architectures.RCAN import RCAN

    torch.manual_seed(0)
    network = RCAN(scale=2, n_resgroups=1, n_resblocks=1, n_feats=16).eval()
    state = network.state_dict()
    for name in ("sub_mean.bias", "add_mean.bias"):
        state[name] = state[name] * (range_of_mean / 255.0)
    torch.save(state, path)
    return network


def test_input_is_left_alone_even_by_networks_that_write_into_it(tmp_path: Path) -> None:
    network = save_rcan(tmp_path / "rcan.pt", 255.0)
    x = torch.rand(1, 3, 12, 12)
    kept = x.clone()
    network(x.clone())
    teacher = load_teacher(tmp_path / "rcan.pt")
    first, second = teacher(x), teacher(x)
    assert torch.equal(x, kept) and torch.equal(first, second)
    with torch.no_grad():
        torch.testing.assert_close(first, network(kept.clone()).clamp(0, 1), atol=1e-5, rtol=1e-4)


def test_rcan_of_unit_range_is_told_by_its_mean_shift(tmp_path: Path) -> None:
    save_rcan(tmp_path / "rcan.pt", 1.0)
    assert load_teacher(tmp_path / "rcan.pt").network.model.rgb_range == 1


class Nearest(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 1
        return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def test_luminance_networks_keep_the_colours() -> None:
    teacher = Teacher(TeacherInfo("y", "Nearest", 2, 0, "", ""), Nearest(), Convention(luma=True))
    flat = torch.tensor([0.9, 0.2, 0.4]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    torch.testing.assert_close(teacher(flat), flat.repeat(1, 1, 2, 2), atol=1e-5, rtol=0)
    grey = torch.rand(1, 1, 6, 6).expand(1, 3, 6, 6)
    torch.testing.assert_close(
        teacher(grey), grey.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "bad", [torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), torch.zeros(1, 3, 8, 8).byte()]
)
def test_inputs_of_another_kind_are_refused(bad: torch.Tensor) -> None:
    teacher = Teacher(TeacherInfo("t", "none", 2, 0, "", ""), nn.Identity())
    with pytest.raises(InputError, match=r"floats in \[0, 1\]"):
        teacher(bad)


def test_output_of_another_size_is_refused() -> None:
    teacher = Teacher(TeacherInfo("t", "none", 2, 0, "", ""), nn.Identity())
    with pytest.raises(
        InputError, match=r"teacher t: expected output \(1, 3, 16, 16\) for x2, found \(1, 3, 8, 8\)"
    ):
        teacher(torch.zeros(1, 3, 8, 8))


def test_padding_mirrors_as_often_as_needed() -> None:
    x = torch.arange(3.0).view(1, 1, 1, 3)
    assert pad(x, 8, 1)[0, 0, 0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert pad(x, 8, 1).shape == (1, 1, 8, 8)
    assert pad(torch.zeros(1, 1, 17, 16), 1, 16).shape == (1, 1, 32, 16)
    assert pad(x, 1, 1) is x


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (24, 17)])
def test_window_networks_take_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    import_spandrel()
    from spandrel.architectures.DRCT import DRCT
    from spandrel.architectures.SwinIR import SwinIR

    small = {"depths": [2, 2], "num_heads": [2, 2], "window_size": 8, "img_size": 32}
    for i, network in enumerate(
        (
            SwinIR(upscale=2, embed_dim=12, mlp_ratio=2, upsampler="pixelshuffledirect", **small),
            DRCT(upscale=2, embed_dim=12, mlp_ratio=2, upsampler="pixelshuffle", gc=8, **small),
        )
    ):
        torch.save({"params": network.state_dict()}, tmp_path / f"{i}.pth")
        teacher = load_teacher(tmp_path / f"{i}.pth", scale=2)
        assert not teacher.info.convolutional
        out = teacher(torch.rand(1, 3, *size))
        assert out.shape == (1, 3, 2 * size[0], 2 * size[1]) and out.isfinite().all()
