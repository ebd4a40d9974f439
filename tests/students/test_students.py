"""Students: sizes, starts, learning, luma networks, and options."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from student_kit import LUMA, count, shaken, small
from torch import nn

import students
from pipeline.data.degrade import upscale
from students.colour import grey, luma
from students.layers import interpolate


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edsr", (1.370, 1.554, 1.518)),
        ("rcan", (5.024, 5.208, 5.171)),
        ("swinir_light", (0.910, 0.918, 0.930)),
    ],
)
def test_published_sizes(name: str, millions: tuple[float, ...]) -> None:
    assert tuple(round(count(students.build(name, scale)) / 1e6, 3) for scale in (2, 3, 4)) == millions


@pytest.mark.parametrize("name", students.names())
def test_sizes_to_the_last_parameter(name: str) -> None:
    facts = importlib.import_module(f"students.{name}").PARAMETERS
    options = {"colours": 1} if name in ("fsrcnn", "idn", "vdsr") else {}
    assert {scale: count(students.build(name, scale, **options)) for scale in (2, 3, 4)} == facts


def test_carn_with_the_upsamplers_of_all_scales_has_the_published_size() -> None:
    trunk = count(students.build("carn", 2)) - count(students.build("carn", 2).upsample)
    assert round((trunk + sum(count(students.build("carn", s).upsample) for s in (2, 3, 4))) / 1e3) == 1592


@pytest.mark.parametrize("name", LUMA)
def test_a_luma_network_gives_the_luma_that_its_rgb_picture_has(name: str) -> None:
    model = shaken(small(name, 2, colours=1))
    x = 0.3 + 0.4 * torch.rand(2, 3, 9, 8)
    with torch.no_grad():
        y = model(luma(x))
        assert y.shape == (2, 1, 18, 16)
        assert torch.allclose(luma(model(x)), y, atol=1e-5)
        assert torch.allclose(luma(grey(y)), y, atol=1e-6)


@pytest.mark.parametrize("name", ["idn", "vdsr"])
def test_a_fresh_residual_network_is_bicubic_enlargement(name: str) -> None:
    x = torch.rand(1, 3, 7, 6)
    assert torch.equal(small(name, 3)(x), interpolate(x, 3, "bicubic"))


def test_the_luma_fsrcnn_has_one_slope_in_each_prelu() -> None:
    model = students.build("fsrcnn", 2, colours=1)
    assert count(model) == 12_644
    assert [m.num_parameters for m in model.modules() if isinstance(m, nn.PReLU)] == [1] * 7


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", students.names())
def test_any_picture_size_comes_back_enlarged(name: str, scale: int) -> None:
    model = small(name, scale).eval()
    for height, width in ((1, 1), (9, 14)):
        with torch.no_grad():
            assert model(torch.rand(2, 3, height, width)).shape == (2, 3, height * scale, width * scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["carn", "edsr", "fsrcnn", "rcan", "span", "swinir_light"])
def test_a_fresh_student_is_bilinear_enlargement(name: str, scale: int) -> None:
    x = F.interpolate(torch.rand(1, 3, 4, 4), scale_factor=6, mode="bicubic").clamp(0, 1)  # smooth: see below
    with torch.no_grad():
        found, expected = small(name, scale)(x), interpolate(x, scale, "bilinear")
    error = (found - expected)[..., 4 * scale : -4 * scale, 4 * scale : -4 * scale].abs().max()
    # x4 in two steps of x2, or by a kernel of 9 pixels, is a little smoother or sharper than in one step
    assert error < (0.1 if scale == 4 and name in ("carn", "edsr", "fsrcnn", "rcan") else 1e-5)


@pytest.mark.parametrize("kind", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("head", ["deconv", "pixelshuffle"])
def test_a_fresh_fsrcnn_with_a_skip_is_the_skip(head: str, kind: Any) -> None:
    x = torch.rand(1, 3, 7, 6)
    assert torch.equal(small("fsrcnn", 3, head=head, skip=kind)(x), interpolate(x, 3, kind))


def test_a_fresh_compact_is_its_nearest_skip() -> None:
    x = torch.rand(1, 3, 7, 6)
    assert torch.equal(small("compact", 3)(x), interpolate(x, 3, "nearest"))


def test_the_picture_reaches_the_last_layer_of_a_deep_compact() -> None:
    """Else it stays its skip for hundreds of steps, at a high learning rate for good."""
    x, seen = torch.rand(1, 3, 9, 9), []
    deep = students.build("compact", 2, features=8, convs=16)
    deep.body[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    deep(x)
    assert torch.equal(seen[0][:, :3], x)


@pytest.mark.parametrize("name", students.names())
def test_every_parameter_learns(name: str) -> None:
    model = small(name)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    target = torch.rand(2, 3, 32, 32)
    for _ in range(3):  # the layers behind a zero one get their first gradient in the second step
        optimiser.zero_grad()
        (model(F.avg_pool2d(target, 2)) - target).abs().mean().backward()
        assert all(p.grad is not None for p in model.parameters())  # what data parallel training insists on
        optimiser.step()
    still = [key for key, value in model.named_parameters() if torch.equal(value, before[key])]
    assert still == []


@pytest.mark.parametrize("name", ["compact", "edsr", "fsrcnn", "span"])
def test_sixty_steps_beat_the_start(name: str) -> None:
    model = small(name)
    torch.manual_seed(0)
    target = F.interpolate(torch.rand(4, 3, 12, 12), scale_factor=4, mode="bicubic").clamp(0, 1)
    target = (target > 0.5).float() * 0.5 + target * 0.5  # edges, which interpolation blurs
    lr = F.avg_pool2d(target, 2)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (model(lr) - target).abs().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_fresh_rcan_stays_in_range() -> None:
    with torch.no_grad():
        body = students.build("rcan", 2).body(torch.randn(1, 64, 8, 8))
    assert body.abs().max() < 100  # with PyTorch's start alone: 1e7 and more


def test_collapsing_span_keeps_the_picture_and_sheds_parameters() -> None:
    model = students.build("span", 4)
    shaken(model)
    flat = students.deployed(model)
    x = torch.rand(1, 3, 12, 10)
    with torch.no_grad():
        assert torch.allclose(flat(x), model(x), atol=1e-5)
    assert count(flat) == 426_288
    assert count(model) == 1_840_488  # the model itself is left as it was


def test_luma_fsrcnn_leaves_chroma_to_bicubic() -> None:
    model = shaken(small("fsrcnn", 3, colours=1))
    x = torch.rand(1, 3, 10, 8) * 0.5 + 0.25
    with torch.no_grad():
        found, expected = model(x), interpolate(x, 3, "bicubic")
        chroma = [F.conv2d(picture, model.to_ycbcr)[:, 1:] for picture in (found, expected)]
        luma = F.conv2d(found, model.to_ycbcr)[:, :1] + 16 / 255
        own = model.enlarge(F.conv2d(x, model.to_ycbcr)[:, :1] + 16 / 255)
    assert torch.allclose(*chroma, atol=1e-5)
    assert torch.allclose(luma, own, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_bicubic_skip_is_matlabs_away_from_borders(scale: int) -> None:
    picture = np.random.default_rng(0).integers(96, 160, (12, 15, 3), np.uint8)
    found = interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None].float(), scale, "bicubic")
    expected = upscale(picture, scale).astype(np.float32)  # rounds to 8 bit after each of its passes
    difference = np.abs(found[0].permute(1, 2, 0).clamp(0, 255).numpy() - expected)
    assert difference[3 * scale : -3 * scale, 3 * scale : -3 * scale].max() < 2


def test_options_come_as_yaml_gives_them() -> None:
    model = students.build("swinir_light", 2, depths=[2, 2], dim=12, heads=2)
    assert [len(group.residual_group.blocks) for group in model.layers] == [2, 2]
