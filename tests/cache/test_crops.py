"""Crops: of one place in every source, within the margin, moved in eight ways alike on every path."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sampler_kit import MARGIN, PATCH, TILE, Tiles, places

from pipeline.cache.sampler import Source, to_device
from pipeline.cache.store import LocalStore


@pytest.fixture
def tiles(tmp_path, node) -> Tiles:
    return Tiles(LocalStore(tmp_path / "store"))


def moved(x: np.ndarray, op: int) -> np.ndarray:
    """The reference of the eight moves, on one (H, W, C) square."""
    x = x[:, ::-1] if op & 1 else x
    x = x[::-1] if op & 2 else x
    return x.transpose(1, 0, 2) if op & 4 else x


def test_crops_of_all_sources_are_of_the_same_place(tiles):
    sampler = tiles.sampler()
    for step in range(20):
        batch = sampler.batch(step)
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.tensors.items()}
        assert shapes == {"lr": (8, 8, 8, 3), "hr": (8, 16, 16, 3), "target": (8, 16, 16, 3)}
        for i, (tile, y, x) in enumerate(places(batch)):
            square = np.s_[tile, y : y + PATCH, x : x + PATCH]
            large = np.s_[tile, 2 * y : 2 * (y + PATCH), 2 * x : 2 * (x + PATCH)]
            assert batch.ids[i] == tiles.ids[tile]
            assert np.array_equal(batch.tensors["lr"][i], tiles.lr[square])
            assert np.array_equal(batch.tensors["hr"][i], tiles.hr[large])
            assert np.array_equal(batch.tensors["target"][i], tiles.out[large])


def test_crops_keep_the_margin_and_use_every_place(tiles):
    sampler = tiles.sampler(batch=37)
    drawn = [place for step in range(60) for place in places(sampler.batch(step))]
    expected = set(range(MARGIN, TILE - MARGIN - PATCH + 1))
    assert {y for _, y, _ in drawn} == {x for _, _, x in drawn} == expected
    counts = Counter((y, x) for _, y, x in drawn)
    assert len(counts) == len(expected) ** 2 and max(counts.values()) < 4 * len(drawn) / len(counts)


@pytest.mark.parametrize("patch", [TILE, TILE - 1, TILE - 2 * MARGIN + 1])
def test_a_tile_without_room_for_the_margin_is_used_up_to_its_edge(tiles, patch):
    sampler = tiles.sampler(patch=patch, batch=37)
    drawn = [place for step in range(12) for place in places(sampler.batch(step))]
    assert {y for _, y, _ in drawn} == {x for _, _, x in drawn} == set(range(TILE - patch + 1))


def test_all_eight_moves_are_drawn_and_none_without_augmentation(tiles):
    counts = Counter(op for step in range(100) for op in tiles.sampler().batch(step).ops.tolist())
    assert set(counts) == set(range(8)) and min(counts.values()) > 60
    assert not tiles.sampler(augment=False).batch(5).ops.any()
    assert places(tiles.sampler(augment=False).batch(5)) == places(tiles.sampler().batch(5))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_moves_equal_numpy_on_every_source(tiles, device, dtype):
    batch = tiles.sampler(batch=37).batch(0)
    assert set(batch.ops) == set(range(8))
    result = to_device(batch, device, dtype)
    for name, crops in batch.tensors.items():
        tensor = result[name]
        assert tensor.dtype == dtype and tensor.is_contiguous(memory_format=torch.channels_last)
        for i, op in enumerate(batch.ops.tolist()):
            expected = torch.from_numpy(moved(crops[i].numpy(), op).astype(np.float32) / 255).to(dtype)
            assert torch.equal(tensor[i].permute(1, 2, 0).cpu(), expected)


def test_moves_of_lr_and_hr_agree(tiles):
    result = to_device(tiles.sampler(batch=37).batch(1), "cpu")
    nearest = result["lr"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    first_channel = (
        result["hr"][:, 0] * 255 % 50
    )  # the tile's number; rows and columns were marked by 100 and 50
    assert torch.allclose(first_channel, nearest[:, 0] * 255, atol=1e-3)


def test_the_moves_of_the_gpu_path_equal_those_of_the_cpu_path(tiles):
    from pipeline.cache.placed import moved as moved_there
    from pipeline.cache.sampler import _moved_on_cpu

    batch = tiles.sampler(batch=37).batch(0)
    for crops in (*batch.tensors.values(), batch.tensors["hr"].to(torch.float16)):
        there = moved_there(crops, torch.from_numpy(batch.ops))
        assert there.is_contiguous() and torch.equal(there, _moved_on_cpu(crops, batch.ops))


def test_float16_outputs_keep_their_values(tiles):
    half = (tiles.out / 255).astype(np.float16)
    outputs = tiles.pack("half", 10, {"out": half})
    sampler = tiles.sampler(sources={**tiles.sources(), "target": Source(tiles.store, outputs, "out")})
    batch = sampler.batch(0)
    assert batch.tensors["target"].dtype == torch.float16
    result = to_device(batch, "cpu")
    assert torch.allclose(result["target"], 1 - result["hr"], atol=1e-3)
