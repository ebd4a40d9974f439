"""MATLAB's bicubic, and that it is the same everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.decode import decode
from pipeline.data.degrade import degrade, downscale, downscale_tensor, modcrop, upscale, upscale_tensor
from pipeline.errors import InputError

SET5 = ("baby", "bird", "butterfly", "head", "woman")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cubic(t: float) -> float:
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def naive(x: np.ndarray, out: int, ratio: float) -> np.ndarray:
    """MATLAB's imresize along axis 0, one output value at a time, in floating point."""
    size, stretch = x.shape[0], max(1.0, 1 / ratio)
    result = np.zeros((out, *x.shape[1:]), np.uint8)
    for i in range(out):
        centre = (i + 0.5) / ratio - 0.5
        taps = range(int(np.floor(centre - 2 * stretch)), int(np.ceil(centre + 2 * stretch)) + 1)
        weights = [cubic((centre - tap) / stretch) for tap in taps]
        mirrored = [tap % (2 * size) for tap in taps]
        lines = [min(tap, 2 * size - 1 - tap) for tap in mirrored]
        for j in range(x.shape[1]):
            for channel in range(x.shape[2]):
                value = sum(w * float(x[line, j, channel]) for w, line in zip(weights, lines, strict=True))
                value = round(value / sum(weights), 9)  # ties survive the rounding errors of this sum
                result[i, j, channel] = min(255, max(0, int(np.floor(value + 0.5))))
    return result


def naive_resize(x: np.ndarray, ratio: float) -> np.ndarray:
    height, width = round(x.shape[0] * ratio), round(x.shape[1] * ratio)
    return naive(naive(x, height, ratio).transpose(1, 0, 2), width, ratio).transpose(1, 0, 2)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", SET5)
def test_lr_equals_matlab_bit_for_bit(shared: Path, name: str, scale: int):
    folder = shared / "data" / "sr" / "Set5"
    golden = decode(folder / "LR_matlab_bicubic" / f"X{scale}" / f"{name}x{scale}.png")
    hr = modcrop(decode(folder / "HR" / f"{name}.png"), scale)
    assert np.array_equal(degrade(hr, "bicubic", scale), golden)


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.67), (3, 30.40), (4, 28.43)])
def test_down_and_up_give_the_bicubic_row_of_set5(shared: Path, scale: int, expected: float):
    values = []
    for name in SET5:
        hr = modcrop(decode(shared / "data" / "sr" / "Set5" / "HR" / f"{name}.png"), scale)
        pair = [
            luma(picture)[scale:-scale, scale:-scale]
            for picture in (hr, upscale(downscale(hr, scale), scale))
        ]
        values.append(10 * np.log10(255**2 / np.mean((pair[0] - pair[1]) ** 2)))
    assert np.mean(values) == pytest.approx(expected, abs=0.02)


def luma(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([65.481, 128.553, 24.966]) / 255 + 16


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("size", [(12, 24), (24, 12), (12, 12)])
def test_both_directions_equal_the_definition(scale: int, size: tuple[int, int]):
    x = noise(*size)
    assert np.array_equal(downscale(x, scale), naive_resize(x, 1 / scale))
    assert np.array_equal(upscale(x[:5, :7], scale), naive_resize(x[:5, :7], scale))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_pictures_smaller_than_the_kernel_are_mirrored_as_often_as_needed(scale: int):
    x = noise(scale, 2 * scale, seed=scale)
    assert np.array_equal(downscale(x, scale), naive_resize(x, 1 / scale))
    assert np.array_equal(upscale(x[:1, :1], scale), np.broadcast_to(x[:1, :1], (scale, scale, 3)))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_a_flat_picture_stays_flat(scale: int, value: int):
    x = np.full((24, 36, 3), value, np.uint8)
    assert (downscale(x, scale) == value).all() and (upscale(x, scale) == value).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_get_the_same_bits(scale: int, layout: torch.memory_format):
    pictures = [noise(36, 48, seed) for seed in range(3)]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(memory_format=layout)
    for tensor_function, function in ((downscale_tensor, downscale), (upscale_tensor, upscale)):
        result = tensor_function(batch, scale)
        assert result.dtype == torch.uint8
        for picture, mine in zip(pictures, result, strict=True):
            assert np.array_equal(mine.permute(1, 2, 0).numpy(), function(picture, scale))


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_gpu_gets_the_same_bits(scale: int):
    batch = torch.from_numpy(np.stack([noise(120, 240, seed) for seed in range(3)])).permute(0, 3, 1, 2)
    for function in (downscale_tensor, upscale_tensor):
        assert torch.equal(function(batch.cuda(), scale).cpu(), function(batch, scale))


def test_modcrop_cuts_bottom_and_right():
    x = noise(11, 14)
    assert np.array_equal(modcrop(x, 4), x[:8, :12])
    assert modcrop(x, 1).shape == x.shape


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(ValueError, match="multiples of 2"):
        downscale(noise(11, 12), 2)
    with pytest.raises(ValueError, match="uint8"):
        upscale(noise(4, 4).astype(np.float32), 2)
    with pytest.raises(InputError, match="1, 2, 3 or 4"):
        downscale(noise(10, 10), 5)
    with pytest.raises(InputError, match="one of bicubic, found 'blur'"):
        degrade(noise(4, 4), "blur", 2)
