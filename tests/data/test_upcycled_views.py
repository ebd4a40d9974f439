"""Upcycled views, pixel by pixel against a second computation of each kind."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import natural_picture

from pipeline.data.degrade import downscale, modcrop
from pipeline.data.tiles import Grid, Tile, cut, tile_id
from pipeline.data.upcycle import KINDS, LIGHT, MIX, Upcycled, moved, upcycled

SHA = "0123456789abcdef" * 4
OTHER = "f" * 64


def views(
    view: Upcycled, hr: np.ndarray, grid: Grid, sha: str = SHA, *, alone: bool = False
) -> list[tuple[Tile, str, Tile, str]]:
    """(tile, id, its view, what was done) of a picture; `alone`: of its LR without its HR."""
    lr = downscale(modcrop(hr, grid.scale), grid.scale)
    tiles = list(cut(None, lr, grid)) if alone else list(cut(hr, None, grid))
    made = upcycled(view, sha, tiles, grid, lr)
    return [(tile, *found) for tile, found in zip(tiles, made, strict=True)]


def numbers(made: str) -> list[int]:
    return [int(word) for word in made.split()[1:]]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zoomed_in_is_a_piece_of_hr_as_large_as_lr(scale: int) -> None:
    hr, places = natural_picture(50 * scale, 61 * scale + 1, 3), set()
    for tile, name, view, made in views(Upcycled("zoom_in", 0, 5), hr, Grid(scale, 24 * scale)):
        y, x = numbers(made)
        assert 0 <= y <= 24 * scale - 24 and 0 <= x <= 24 * scale - 24
        assert np.array_equal(view.lr, hr[tile.y + y : tile.y + y + 24, tile.x + x : tile.x + x + 24])
        assert view.hr is None and name == f"{tile_id(SHA, tile.y, tile.x)}:zoom_in0"
        places.add((y, x))
    assert len(places) > 3


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_zoomed_out_is_a_window_of_shrunken_lr_that_the_tile_lies_in(scale: int, alone: bool) -> None:
    hr = natural_picture(24 * scale * scale + 13 * scale, 36 * scale * scale + 7, 4)
    lr = downscale(modcrop(hr, scale), scale)
    small = downscale(modcrop(lr, scale), scale)
    corners = set()
    for tile, _, view, made in views(Upcycled("zoom_out", 1, 5), hr, Grid(scale, 24 * scale), alone=alone):
        y, x = numbers(made)
        assert view.hr is None and np.array_equal(view.lr, small[y : y + 24, x : x + 24])
        for begin, start, length in ((tile.y, y, small.shape[0]), (tile.x, x, small.shape[1])):
            first, last = begin // scale, min(begin // scale + 24, length * scale)
            assert start * scale <= first and last <= (start + 24) * scale
        corners.add((y, x))
    assert len(corners) > 1


@pytest.mark.parametrize("sides", [(3, 5), (20, 90), (49, 50)])
def test_a_picture_too_small_to_be_shrunk_is_mirrored(sides: tuple[int, int]) -> None:
    hr, grid = natural_picture(*sides, 4), Grid(2, 48)
    for kind in KINDS:
        for _, _, view, _ in views(Upcycled(kind, 0, 0), hr, grid):
            assert view.lr.shape == (24, 24, 3) and view.lr.dtype == np.uint8
    lr = downscale(modcrop(hr, 2), 2)
    lr = np.pad(lr, ((0, max(0, 24 - lr.shape[0])), (0, max(0, 24 - lr.shape[1])), (0, 0)), "symmetric")
    small = downscale(modcrop(lr, 2), 2)
    missing = [(0, max(0, 24 - side)) for side in small.shape[:2]]
    mirrored = np.pad(small, (*missing, (0, 0)), "symmetric")
    (_, _, view, made), *_ = views(Upcycled("zoom_out", 0, 0), hr, grid)
    y, x = numbers(made)
    assert np.array_equal(view.lr, mirrored[y : y + 24, x : x + 24])


def test_mixed_is_the_convex_sum_of_two_tiles_of_the_picture() -> None:
    grid, hr = Grid(2, 48), natural_picture(100, 130, 6)
    whole = views(Upcycled("mixed", 0, 2), hr, grid)
    for number, (tile, _, view, made) in enumerate(whole):
        weight, other, move = float(made.split()[1]), *map(int, made.split()[2:])
        assert MIX[0] <= weight <= MIX[1] and other != number
        second = whole[other][0].lr.astype(float)
        second = np.flip(second, [a for a, bit in ((1, 1), (0, 2)) if move & bit])
        second = np.swapaxes(second, 0, 1) if move & 4 else second
        expected = weight * tile.lr + (1 - weight) * second
        assert view.hr is None
        assert np.abs(view.lr - expected).max() <= 0.5 + 255 * 0.0005  # the note has three digits
    ((tile, _, view, made),) = views(Upcycled("mixed", 0, 2), natural_picture(48, 48, 7), grid)
    assert made.split()[2] == "0" and made.split()[3] != "0", "the tile itself, but not as it is"
    assert not np.array_equal(view.lr, tile.lr)


def test_recoloured_is_a_permutation_a_light_and_an_inversion() -> None:
    seen = set()
    for number in range(4):
        view = Upcycled("recoloured", number, 1)
        for tile, _, found, made in views(view, natural_picture(100, 130, 8), Grid(2, 48)):
            _, channels, side, gain, *inverted = made.split()
            expected = np.stack([tile.lr[..., "RGB".index(c)] for c in channels], -1) * float(gain)
            assert sorted(channels) == ["B", "G", "R"] and LIGHT[0] <= float(gain) <= LIGHT[1]
            expected = expected + 255 * (1 - float(gain)) if side == "white" else expected
            expected = 255 - expected if inverted else expected
            assert np.abs(found.lr - expected).max() <= 0.5 + 255 * 0.0005
            seen |= {channels, side, bool(inverted)}
    assert {"white", "black", True, False} < seen and len(seen) > 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_follows_from_picture_seed_and_number_alone(kind: str) -> None:
    hr, grid = natural_picture(100, 130, 9), Grid(2, 48)

    def pixels(view: Upcycled, sha: str = SHA) -> bytes:
        return b"".join(v.lr.tobytes() for _, _, v, _ in views(view, hr, grid, sha))

    known = pixels(Upcycled(kind, 0, 0))
    assert pixels(Upcycled(kind, 0, 0)) == known
    others = [pixels(Upcycled(kind, 1, 0)), pixels(Upcycled(kind, 0, 1)), pixels(Upcycled(kind, 0, 0), OTHER)]
    assert len({known, *others}) == 4
    assert len({Upcycled(k, n, s).identity for k in KINDS for n in (0, 1) for s in (0, 1)}) == 16


def test_zooming_in_without_hr_is_an_error_of_who_asks() -> None:
    with pytest.raises(ValueError, match="needs HR"):
        views(Upcycled("zoom_in", 0, 0), natural_picture(96, 96, 1), Grid(2, 48), alone=True)


def test_the_eight_moves_differ() -> None:
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert len({moved(square, move).tobytes() for move in range(8)}) == 8
