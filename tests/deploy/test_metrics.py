"""Metrics against scikit-image and against figures worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.metrics import psnr_rgb, psnr_y, quantise, ssim_y, to_y


def pictures(height: int = 40, width: int = 53) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    target = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, target.shape)
    return np.clip(target.astype(int) + noise, 0, 255).astype(np.uint8), target


def test_luma_is_studio_swing() -> None:
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    assert to_y(colours)[0] == pytest.approx([16.0, 235.0, 81.481, 144.553, 40.966])


def test_psnr_of_a_known_error() -> None:
    target = np.full((8, 9, 3), 100, np.uint8)
    assert psnr_rgb(target + 2, target) == pytest.approx(10 * math.log10(255**2 / 4))
    # A grey step of 2 is 2 * 219 / 255 in luma.
    assert psnr_y(target + 2, target) == pytest.approx(10 * math.log10(255**2 / (2 * 219 / 255) ** 2))


def test_equal_pictures_have_infinite_psnr_and_unit_ssim() -> None:
    _, target = pictures()
    assert psnr_y(target, target) == math.inf
    assert ssim_y(target, target) == pytest.approx(1.0)


def test_shaving_drops_the_border_alone() -> None:
    prediction, target = pictures()
    spoiled = prediction.copy()
    spoiled[:3] = spoiled[-3:] = spoiled[:, :3] = spoiled[:, -3:] = 255
    for metric in (psnr_y, psnr_rgb, ssim_y):
        inner = metric(prediction[3:-3, 3:-3], target[3:-3, 3:-3])
        assert metric(spoiled, target, 3) == inner
        assert metric(spoiled, target, 2) != inner


@pytest.mark.parametrize("shave", [0, 4])
def test_ssim_agrees_with_scikit_image(shave: int) -> None:
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    prediction, target = pictures()
    cut = slice(shave, -shave or None)
    _, full = similarity(
        to_y(prediction)[cut, cut], to_y(target)[cut, cut], data_range=255, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, full=True,
    )  # fmt: skip
    # scikit-image truncates the same Gaussian at 11 taps; its map's interior is the valid area.
    assert ssim_y(prediction, target, shave) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-9)


def test_torch_and_numpy_agree() -> None:
    prediction, target = pictures()
    tensors = torch.from_numpy(prediction), torch.from_numpy(target)
    for metric in (psnr_y, psnr_rgb, ssim_y):
        assert metric(*tensors, 2) == metric(prediction, target, 2)


def test_quantise_clamps_rounds_and_moves_channels_last() -> None:
    x = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 3.0]).view(1, 1, 1, 5).repeat(1, 3, 1, 1)
    levels = quantise(x)
    assert levels.dtype == torch.uint8 and levels.shape == (1, 1, 5, 3)
    assert levels[0, 0, :, 1].tolist() == [0, 0, 1, 255, 255]
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(quantise(every.permute(0, 3, 1, 2).float() / 255), every)


def test_wrong_inputs_are_refused() -> None:
    prediction, target = pictures()
    with pytest.raises(ValueError, match="uint8 RGB"):
        psnr_y(prediction.astype(np.float32), target)
    with pytest.raises(ValueError, match="uint8 RGB"):
        psnr_y(prediction.transpose(2, 0, 1), target)
    with pytest.raises(ValueError, match="one size"):
        psnr_y(prediction[:-1], target)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim_y(prediction[:12, :12], target[:12, :12], 1)
