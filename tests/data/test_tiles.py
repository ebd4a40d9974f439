"""Tiles of pictures: where they lie, what they hold, and which are new."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.degrade import downscale, modcrop
from pipeline.data.tiles import Grid, columns, cut, positions, tile_id
from pipeline.errors import InputError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("grid", [Grid(2, 96), Grid(3, 96), Grid(4, 96, margin=0), Grid(2, 64, margin=12)])
@pytest.mark.parametrize("size", [(96, 96), (97, 131), (321, 481), (100, 700), (190, 192)])
def test_tiles_leave_no_gap_and_stay_inside(grid: Grid, size: tuple[int, int]):
    corners = positions(*size, grid)
    assert corners == sorted(set(corners))
    inside = grid.margin * grid.scale
    for axis in (0, 1):
        length = size[axis] // grid.scale * grid.scale
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] == 0 and starts[-1] == length - grid.size
        assert all(start % grid.scale == 0 for start in starts)
        gaps = np.diff(starts)
        assert (gaps > 0).all() and (gaps <= grid.size - 2 * inside).all()
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= grid.scale  # an even spread
        covered = np.zeros(length, bool)
        for start in starts:
            covered[start + inside : start + grid.size - inside] = True
        assert covered[inside : length - inside].all()
    assert len(corners) == len({y for y, _ in corners}) * len({x for _, x in corners})


def test_no_more_tiles_than_needed():
    assert positions(192, 192, Grid(2, 192)) == [(0, 0)]
    assert len(positions(192, 194, Grid(2, 192))) == 2
    assert len(positions(192, 192 + 176, Grid(2, 192))) == 2
    assert len(positions(192, 192 + 176 + 2, Grid(2, 192))) == 3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_is_cut_from_the_lr_of_the_whole_picture(scale: int):
    grid = Grid(scale, 24 * scale)
    picture = noise(70 * scale + 1, 50 * scale + 1)
    hr = modcrop(picture, scale)
    lr = downscale(hr, scale)
    tiles = list(cut(picture, None, grid))
    assert [(tile.y, tile.x) for tile in tiles] == positions(*picture.shape[:2], grid)
    for tile in tiles:
        assert np.array_equal(tile.hr, hr[tile.y : tile.y + grid.size, tile.x : tile.x + grid.size])
        y, x = tile.y // scale, tile.x // scale
        assert np.array_equal(tile.lr, lr[y : y + 24, x : x + 24])


@pytest.mark.parametrize("size", [(5, 7), (20, 200), (200, 20), (1, 1)])
def test_a_small_picture_is_mirrored_up_to_a_tile_before_it_is_degraded(size: tuple[int, int]):
    grid = Grid(2, 48)
    picture = noise(*size)
    tiles = list(cut(picture, None, grid))
    assert [(tile.y, tile.x) for tile in tiles] == positions(*size, grid)
    source = modcrop(picture, 2) if min(size) > 1 else picture
    padding = [(0, max(0, 48 - side)) for side in source.shape[:2]]
    padded = np.pad(source, (*padding, (0, 0)), "symmetric")
    assert np.array_equal(tiles[0].hr, padded[:48, :48])
    assert np.array_equal(tiles[0].lr, downscale(padded, 2)[:24, :24])


def test_pictures_without_hr_give_lr_tiles_at_the_same_places():
    grid = Grid(2, 48)
    picture = noise(100, 130)
    both = list(cut(picture, None, grid))
    alone = list(cut(None, downscale(picture, 2), grid))
    assert [(tile.y, tile.x) for tile in alone] == [(tile.y, tile.x) for tile in both]
    assert all(tile.hr is None for tile in alone)
    assert all(np.array_equal(a.lr, b.lr) for a, b in zip(alone, both, strict=True))
    (small,) = cut(None, noise(3, 4), grid)
    assert small.lr.shape == (24, 24, 3) and np.array_equal(small.lr[:3, :4], noise(3, 4))


def test_a_given_pair_is_used_as_it_is_and_must_fit():
    hr, lr = noise(100, 131), noise(50, 65, seed=1)
    tiles = list(cut(hr, lr, Grid(2, 48)))
    assert np.array_equal(tiles[0].lr, lr[:24, :24]) and np.array_equal(tiles[0].hr, hr[:48, :48])
    with pytest.raises(InputError, match="2 times"):
        next(cut(hr, lr[:-1], Grid(2, 48)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((2, 95), "multiple of the scale"),
        ((2, 0), "multiple"),
        ((2, 16, 4), "less than half"),
        ((2, 16, -1), "margin"),
    ],
)
def test_impossible_grids_are_refused(arguments: tuple[int, ...], complaint: str):
    with pytest.raises(InputError, match=complaint):
        Grid(*arguments)


def test_an_id_says_picture_and_place():
    assert tile_id("0123456789abcdef" + "0" * 48, 96, 8) == "0123456789abcdef:96:8"


def test_columns_mark_the_rows_that_have_hr():
    grid = Grid(2, 48)
    with_hr, without = next(cut(noise(48, 48), None, grid)), next(cut(None, noise(24, 24), grid))
    mixed = columns([("a", with_hr), ("b", without)], grid)
    assert mixed["id"] == ["a", "b"] and mixed["has_hr"].tolist() == [1, 0]
    assert np.array_equal(mixed["hr"][0], with_hr.hr) and not mixed["hr"][1].any()
    assert np.array_equal(mixed["lr"][1], without.lr)
    assert "hr" not in columns([("b", without)], grid)
