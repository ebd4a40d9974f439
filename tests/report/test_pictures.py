"""Comparison pictures: the right pixels, the right colours, in the right places."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from conftest import natural_picture

from pipeline.metrics import psnr_y
from pipeline.report.pictures import (
    BACKGROUND,
    Crop,
    colours,
    comparison_strip,
    crop_side,
    decibels,
    error_map,
    find_crop,
)


def noisy(picture: np.ndarray, amount: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.0, amount, picture.shape[:2])[..., None]
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def holds(drawing: np.ndarray, patch: np.ndarray) -> bool:
    """Whether `patch` occurs in `drawing`, pixel for pixel."""
    height, width = patch.shape[:2]
    corners = np.argwhere((drawing[: -height + 1, : -width + 1] == patch[0, 0]).all(-1))
    return any(np.array_equal(drawing[y : y + height, x : x + width], patch) for y, x in corners)


def test_error_colours_are_those_of_inferno():
    import matplotlib

    values = np.linspace(0.0, 1.0, 256)
    wanted = matplotlib.colormaps["inferno"](values)[:, :3] * 255
    assert np.abs(colours(values).astype(float) - wanted).max() <= 7.5
    assert (colours(np.array([-1.0, 2.0])) == colours(np.array([0.0, 1.0]))).all()


def test_an_error_map_is_dark_where_right_and_bright_where_wrong():
    reference = np.full((8, 8, 3), 100, np.uint8)
    prediction = reference.copy()
    prediction[2, 3] = 140
    drawn = error_map(prediction, reference, limit=16)
    assert tuple(drawn[0, 0]) == tuple(colours(np.array(0.0)))
    assert tuple(drawn[2, 3]) == tuple(colours(np.array(1.0)))
    assert (drawn.sum(-1) > drawn[0, 0].sum()).sum() == 1


def test_the_crop_is_where_methods_differ_and_neither_where_all_fail_nor_where_the_weakest_does():
    reference = natural_picture(120, 160, 3)
    first, second, weakest = reference.copy(), reference.copy(), noisy(reference, 25.0)
    first[60:80, 100:120] = noisy(reference[60:80, 100:120], 20.0, 1)  # here they differ
    for picture in (first, second):
        picture[10:30, 10:30] = 0  # here both fail alike
    crop = find_crop([weakest, first, second], reference, 24)
    assert crop.side == 24
    assert abs(crop.y - 58) <= 6 and abs(crop.x - 98) <= 6


def test_the_crop_of_one_method_is_where_it_is_wrong_and_shaved_borders_do_not_count():
    reference = natural_picture(64, 64, 4)
    prediction = reference.copy()
    prediction[40:50, 20:30] = 0
    prediction[0:2] = 255
    crop = find_crop([prediction], reference, 16, shave=2)
    assert crop.y >= 2 and abs(crop.y - 37) <= 6 and abs(crop.x - 17) <= 6


def test_a_crop_never_leaves_a_small_picture():
    pictures = [natural_picture(20, 13, seed) for seed in (1, 2)]
    crop = find_crop(pictures, None, 100, shave=30)
    assert crop.side == 13
    assert crop.of(pictures[0]).shape == (13, 13, 3)
    assert crop_side((20, 13)) == 13 and crop_side((2000, 3000)) == 100


def test_each_cell_shows_its_own_pixels_enlarged_without_smoothing():
    reference = natural_picture(96, 144, 5)
    lr = reference[::2, ::2]
    methods = [("bicubic", noisy(reference, 9.0)), ("student", noisy(reference, 5.0, 1))]
    crop = Crop(20, 30, 40)
    drawing = comparison_strip([("LR", lr), *methods], reference, crop=crop)
    zoom = 5
    for picture in [lr.repeat(2, 0).repeat(2, 1), reference, *(p for _, p in methods)]:
        assert holds(drawing, crop.of(picture).repeat(zoom, 0).repeat(zoom, 1))
    assert drawing.dtype == np.uint8 and drawing.shape[2] == 3
    assert tuple(drawing[0, 0]) == BACKGROUND


def test_many_methods_wrap_into_rows_and_nothing_leaves_the_drawing():
    portrait = natural_picture(150, 90, 6)
    many = [(f"method with a rather long name {i}", noisy(portrait, i + 1.0, i)) for i in range(9)]
    drawing = comparison_strip(many, portrait, title="x2")
    assert 700 < drawing.shape[1] < 2200
    assert (drawing[:8] == BACKGROUND).all() and (drawing[-8:] == BACKGROUND).all()
    assert (drawing[:, -8:] == BACKGROUND).all()
    one_row = comparison_strip(many[:3], portrait)
    assert one_row.shape[0] < drawing.shape[0]


def test_without_a_reference_there_are_no_maps():
    pictures = [("a", natural_picture(60, 60, 1)), ("b", natural_picture(60, 60, 2))]
    with_maps = comparison_strip(pictures, natural_picture(60, 60, 3))
    without = comparison_strip(pictures)
    assert without.shape[0] < with_maps.shape[0] - 150


def test_sizes_that_do_not_fit_are_refused_by_name():
    reference = natural_picture(60, 60, 1)
    with pytest.raises(ValueError, match="student: expected"):
        comparison_strip([("student", reference[:50])], reference)
    with pytest.raises(ValueError, match="student: expected"):
        comparison_strip([("student", reference.astype(np.float32))], reference)
    with pytest.raises(ValueError, match="full size"):
        comparison_strip([("LR", reference[::2, ::2])], reference)


def test_scores_read_like_the_tables():
    reference = natural_picture(60, 60, 1)
    assert decibels(psnr_y(noisy(reference, 5.0), reference)).endswith(" dB")
    assert decibels(math.inf) == "equal"
    assert decibels(30.999) == "31.00 dB"


def test_drawing_does_not_import_matplotlib():
    code = "import sys, pipeline.report.pictures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
