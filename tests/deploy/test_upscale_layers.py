"""Colour and transparency through a network: no rim, no dark edges, no seams between tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_upscale import picture
from torch import Tensor

import students
from pipeline.deploy.upscale import enlarge
from pipeline.deploy.upscale_pictures import Layers, fill_hidden, without_ringing
from pipeline.errors import FacultyError


def bilinear(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def test_constant_transparency_stays_exact_and_other_goes_through_the_network() -> None:
    colour = picture(8, 8)
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return bilinear(x) * 0.9  # a network that would not keep 255

    constant = enlarge(network, Layers(colour, np.full((8, 8), 255, np.uint8), False, None), 2)
    assert constant.alpha is not None and (constant.alpha == 255).all() and len(seen) == 1
    ramp = np.arange(1, 65, dtype=np.uint8).reshape(8, 8)
    result = enlarge(network, Layers(colour, ramp, False, None), 2)
    assert len(seen) == 3
    expected = bilinear(torch.from_numpy(ramp)[None, None].float()) * 0.9
    assert result.alpha is not None
    assert np.abs(result.alpha - expected[0, 0].numpy()).max() <= 0.51


def test_transparency_gets_no_rim() -> None:
    """A network that overshoots at edges, as all do: alpha stays 0 outside, 180 inside."""
    alpha = np.zeros((12, 12), np.uint8)
    alpha[3:9, 3:9] = 180

    def network(x: Tensor) -> Tensor:
        return bilinear(x) + 2 * (bilinear(x) - F.avg_pool2d(bilinear(x), 3, 1, 1))

    result = enlarge(network, Layers(picture(12, 12), alpha, False, None), 2)
    assert result.alpha is not None
    assert result.alpha.max() == 180
    assert (result.alpha[:4] == 0).all() and (result.alpha[8:-8, 8:-8] == 180).all()
    assert np.unique(result.alpha).size > 2  # edges still come from the network


def test_the_range_of_neighbours_reaches_over_borders() -> None:
    small = picture(1, 2, 1)
    assert without_ringing(np.full((2, 4), 255, np.uint8), small, 2).max() == small.max()
    assert without_ringing(np.zeros((2, 4), np.uint8), small, 2).min() == small.min()


def test_hidden_colours_do_not_darken_edges() -> None:
    """A white disc on transparent black: no visible pixel may turn grey."""
    rows, columns = np.mgrid[:20, :20]
    alpha = np.where((rows - 9.5) ** 2 + (columns - 9.5) ** 2 < 49, 255, 0).astype(np.uint8)
    colour = np.where(alpha[..., None] == 255, np.uint8(255), np.uint8(0)).repeat(3, 2)
    result = enlarge(bilinear, Layers(colour, alpha, False, None), 2)
    assert result.alpha is not None
    assert result.colour[result.alpha > 0].min() == 255


def test_hidden_pixels_take_the_nearest_visible_colours() -> None:
    colour = np.zeros((4, 9, 3), np.uint8)
    alpha = np.zeros((4, 9), np.uint8)
    colour[:, 0], alpha[:, 0] = (200, 10, 10), 255
    colour[:, 8], alpha[:, 8] = (10, 10, 200), 128
    filled = fill_hidden(colour, alpha)
    assert filled[0, 1].tolist() == [200, 10, 10] and filled[0, 0].tolist() == [200, 10, 10]
    assert filled[3, 8].tolist() == [10, 10, 200]
    nothing = np.zeros((4, 9), np.uint8)
    assert fill_hidden(colour, nothing) is colour


def test_tiles_join_without_a_seam() -> None:
    torch.manual_seed(0)
    network = students.build("compact", 3, features=6, convs=2).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    layers = Layers(picture(50, 37), picture(50, 37, 1) | np.uint8(1), False, None)
    whole = enlarge(network, layers, 3)
    tiled = enlarge(network, layers, 3, tile=17, overlap=4)  # 4 convolutions of 3x3 look 4 pixels far
    assert whole.alpha is not None and tiled.alpha is not None
    assert (
        np.abs(tiled.colour.astype(int) - whole.colour).max() <= 1
    )  # a sum in another order may round otherwise
    assert np.abs(tiled.alpha.astype(int) - whole.alpha).max() <= 1


def test_one_tile_at_a_time_reaches_the_network() -> None:
    sizes: list[tuple[int, ...]] = []

    def network(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        return bilinear(x)

    enlarge(network, Layers(picture(100, 60), None, False, None), 2, tile=40, overlap=8)
    assert len(sizes) == 8 and max(max(size) for size in sizes) == 40


def test_values_that_are_not_finite_are_no_picture() -> None:
    with pytest.raises(FacultyError, match="not finite"):
        enlarge(lambda x: bilinear(x) * torch.nan, Layers(picture(4, 4), None, False, None), 2)
