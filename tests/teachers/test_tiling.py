"""Large pictures in tiles: the same picture as in one piece, as far as the overlap reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from teachers.descriptor import Teacher, TeacherInfo
from teachers.tiling import starts, tiled


def network(layers: int, scale: int) -> nn.Sequential:
    """Looks `layers` pixels far."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(layers - 1)]
    return nn.Sequential(*body, nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)).double()


@pytest.mark.parametrize("size", [(40, 40), (16, 61), (17, 16), (33, 48), (100, 23), (5, 7)])
@pytest.mark.parametrize("scale", [2, 3])
def test_equals_the_whole_where_no_pixel_looks_beyond_the_overlap(size: tuple[int, int], scale: int) -> None:
    fn = network(4, scale)
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(tiled(fn, x, scale, tile=16, overlap=4), fn(x), atol=1e-12, rtol=0)


def test_differs_only_near_the_seams_where_pixels_look_further() -> None:
    fn, scale, reach, overlap = network(6, 2), 2, 6, 4
    x = torch.rand(1, 3, 40, 16, dtype=torch.float64)
    with torch.no_grad():
        wrong = (tiled(fn, x, scale, tile=20, overlap=overlap) - fn(x)).abs().amax(dim=(0, 1, 3)) > 1e-12
    kept = [(0, 16), (16, 24), (24, 40)]  # rows of LR that come from each of the three tiles
    assert starts(40, 20, overlap) == [0, 12, 20]
    allowed = torch.zeros(80, dtype=torch.bool)
    for _, end in kept[:-1]:
        allowed[scale * (end - (reach - overlap)) : scale * (end + (reach - overlap))] = True
    assert wrong.any() and not (wrong & ~allowed).any()


@pytest.mark.parametrize(("tile", "overlap"), [(8, 4), (16, 8), (16, -1)])
def test_refuses_tiles_that_are_all_overlap(tile: int, overlap: int) -> None:
    with pytest.raises(InputError, match="overlap"):
        tiled(network(1, 2), torch.zeros(1, 3, 32, 32), 2, tile, overlap)


def test_teachers_upscale_large_pictures_in_tiles() -> None:
    teacher = Teacher(TeacherInfo("t", "plain", 2, 0, "", ""), network(3, 2).float())
    x = torch.rand(1, 3, 50, 37)
    seen = []
    teacher.network.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[-2:])))
    whole, parts = teacher.upscale(x), teacher.upscale(x, tile=16, overlap=4)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    assert seen[0] == (50, 37) and max(max(size) for size in seen[1:]) == 16
