"""Fusion by region and band: what is flat, edge and texture, the fit against a second one, what a target is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from pipeline.errors import InputError
from teachers.regional import MIDDLE, REGIONS, RIDGE, RegionalFit, fuse_regions, regions

SIDE = 24


@pytest.fixture
def tiles() -> tuple[list[np.ndarray], np.ndarray]:
    """Two teachers' outputs and HR, (3, 24, 24, 3): flat left, an edge in the middle, noise on the right."""
    generator = np.random.default_rng(0)
    hr = np.full((3, SIDE, SIDE, 3), 60.0)
    hr[:, :, 8:] = 180.0
    hr[:, :, 15:] += generator.normal(0, 40, (3, SIDE, 9, 3))
    noisy = hr + generator.normal(0, 3, hr.shape)
    soft = ndimage.gaussian_filter(hr, (0, 1, 1, 0), mode="reflect")
    return [_bytes(noisy), _bytes(soft)], _bytes(hr)


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def test_flat_edge_and_texture_are_told_apart(tiles: tuple) -> None:
    _, hr = tiles
    kinds = regions(torch.tensor(hr).permute(0, 3, 1, 2).float())
    assert (kinds[:, :, :4] == REGIONS.index("flat")).all()
    assert (kinds[:, :, 7:9] == REGIONS.index("edge")).all()
    assert (kinds[:, :, 18:] == REGIONS.index("texture")).float().mean() > 0.6


def _rows(outputs: list[np.ndarray], levels: int) -> np.ndarray:
    """(tiles, bands of all teachers, H, W, 3) by scipy."""
    spline = np.array([1, 4, 6, 4, 1]) / 16
    found = []
    for output in outputs:
        rest = output.astype(float)
        for level in range(levels):
            kernel = np.zeros(4 * 2**level + 1)
            kernel[:: 2**level] = spline
            smooth = ndimage.convolve1d(ndimage.convolve1d(rest, kernel, 1), kernel, 2)
            found.append(rest - smooth)
            rest = smooth
        found.append(rest - MIDDLE)
    return np.stack(found, 1)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_weights_and_target_are_those_of_a_second_computation(tiles: tuple, levels: int) -> None:
    outputs, hr = tiles
    fit = RegionalFit(2, levels)
    fit.add([o[:2] for o in outputs], hr[:2])
    fit.add([o[2:] for o in outputs], hr[2:])
    weights = fit.solve()
    mean = np.mean([o.astype(float) for o in outputs], 0)
    kinds = regions(torch.tensor(mean).permute(0, 3, 1, 2).float()).numpy()
    bands = np.moveaxis(_rows(outputs, levels), 1, -1)  # (tiles, H, W, 3, bands)
    target = mean.copy()
    for kind in range(len(REGIONS)):
        x, y = bands[kinds == kind].reshape(-1, bands.shape[-1]), (hr - mean)[kinds == kind].reshape(-1)
        x = np.c_[x, np.ones(len(x))]
        # Ridge regression as plain least squares, with rows that pull each weight to zero.
        pull = np.sqrt(RIDGE * len(x)) * np.eye(x.shape[1])
        solution = np.linalg.lstsq(np.r_[x, pull], np.r_[y, np.zeros(x.shape[1])], rcond=None)[0]
        assert weights.values[kind] == pytest.approx(solution, abs=2e-4)
        target[kinds == kind] += bands[kinds == kind] @ solution[:-1] + solution[-1]
    fused = fuse_regions(outputs, weights=weights)
    assert np.abs(fused - np.clip(target, 0, 255)).max() <= 0.51
    error = [np.square(o.astype(float) - hr).mean() for o in (fused, *outputs, _bytes(mean))]
    assert error[0] < 0.8 * min(error[1:])  # better than each, and than their mean


def test_a_teacher_that_is_right_is_taken_as_it_is(tiles: tuple) -> None:
    (noisy, soft), hr = tiles
    fit = RegionalFit(2, 1)
    fit.add([hr, soft], hr)
    assert np.abs(fuse_regions([hr, soft], weights=fit.solve()).astype(int) - hr).max() <= 1
    assert np.abs(fuse_regions([noisy, soft], weights=fit.solve()).astype(int) - noisy).max() <= 1


def test_what_cannot_be_is_said(tiles: tuple) -> None:
    outputs, hr = tiles
    with pytest.raises(InputError, match="tiles with HR"):
        RegionalFit(2, 1).solve()
    fit = RegionalFit(2, 1)
    with pytest.raises(InputError, match="3 uint8 arrays"):
        fit.add(outputs[:1], hr)
    fit.add(outputs, hr)
    with pytest.raises(InputError, match="2 uint8 arrays"):
        fuse_regions([*outputs, hr], weights=fit.solve())
