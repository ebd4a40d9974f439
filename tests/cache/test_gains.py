"""Tiles drawn by what they have to teach: how often, with which weights, and where gains come from."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from sampler_kit import Tiles, equal, same

from pipeline.cache.format import write_shard
from pipeline.cache.manifest import GAINS, Manifest, unneeded
from pipeline.cache.placed import Resident
from pipeline.cache.sampler import Source
from pipeline.cache.slots import LEAST, MOST, UNIT, slots_of, weights_of
from pipeline.cache.store import LocalStore
from pipeline.data.degrade import upscale
from pipeline.errors import InputError
from pipeline.tasks.super_resolution.gains import gains


@pytest.fixture
def tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiles:
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    return Tiles(LocalStore(tmp_path / "store"))


KNOWN = np.random.default_rng(0).gamma(1.0, 8.0, 37)


def test_slots_are_the_bounded_share_of_each_tile() -> None:
    gains_ = np.random.default_rng(1).gamma(1.0, 8.0, 2000)
    ratio = gains_ / gains_.mean()
    assert (ratio < LEAST).any() and (ratio > MOST).any()  # both bounds hold some
    wanted = np.clip(ratio, LEAST, MOST)
    slots = slots_of(gains_)
    assert np.abs(slots / UNIT - wanted).max() <= 0.5 / UNIT + 1e-12
    assert slots.max() / slots.min() == MOST / LEAST
    rising = slots[np.argsort(gains_)]
    assert (np.diff(rising) >= 0).all()


def test_gains_that_are_alike_are_uniform_sampling(tiles: Tiles) -> None:
    assert slots_of(np.full(5, 3.7)).tolist() == slots_of(np.zeros(5)).tolist() == [1] * 5
    plain, alike = tiles.sampler(), tiles.sampler(gains=np.full(37, 2.0))
    for step in range(12):
        assert same(plain.batch(step), alike.batch(step))
        assert alike.batch(step).weights.tolist() == [1.0] * 8
    assert plain.batch(0).weights is None and set(plain.batch(0).to("cpu")) == {
        "lr",
        "hr",
        "target",
        "has_hr",
    }


def test_weights_have_mean_1_over_an_epoch_exactly() -> None:
    slots = slots_of(KNOWN).tolist()
    total, n = sum(slots), len(slots)
    exact = [Fraction(total, n * s) for s in slots]
    assert sum(s * w for s, w in zip(slots, exact, strict=True)) == total
    assert weights_of(np.array(slots)).tolist() == [np.float32(float(w)) for w in exact]


def test_every_tile_comes_as_often_as_it_has_slots_in_each_epoch(tiles: Tiles) -> None:
    sampler = tiles.sampler(batch=1, gains=KNOWN)
    by_id = dict(zip(sorted(tiles.ids), slots_of(KNOWN[np.argsort(tiles.ids)]).tolist(), strict=True))
    length = sum(by_id.values())
    assert sampler.epoch == length > sampler.tiles == 37
    orders = []
    for epoch in range(2):
        drawn = [sampler.batch(epoch * length + i) for i in range(length)]
        orders.append([batch.ids[0] for batch in drawn])
        assert Counter(orders[-1]) == by_id
        weights = np.concatenate([batch.weights for batch in drawn])
        assert weights.dtype == np.float32 and float(weights.mean(dtype=np.float64)) == pytest.approx(
            1, abs=1e-6
        )
        for name, weight in zip(orders[-1], weights, strict=True):
            assert weight == np.float32(length / (37 * by_id[name]))
    assert orders[0] != orders[1]


def test_gains_follow_their_tiles_however_these_are_packed(tiles: Tiles) -> None:
    order = np.random.default_rng(0).permutation(37).tolist()
    columns = {"lr": tiles.lr, "hr": tiles.hr, "has_hr": tiles.known.astype(np.uint8)}
    other = Source(tiles.store, tiles.pack("tiles", 7, columns, order), "lr")
    for step in range(10):
        one = tiles.sampler(gains=KNOWN).batch(step)
        two = tiles.sampler(sources={**tiles.sources(), "lr": other}, gains=KNOWN[order]).batch(step)
        assert same(one, two) and np.array_equal(one.weights, two.weights)


@pytest.mark.parametrize("world", [2, 4])
def test_workers_share_the_same_global_batch_and_weights(tiles: Tiles, world: int) -> None:
    whole = tiles.sampler(gains=KNOWN)
    for step in (0, 5, 600, 99_999):
        parts = [tiles.sampler(gains=KNOWN).batch(step, rank, world) for rank in range(world)]
        assert whole.batch(step).ids == [name for part in parts for name in part.ids]
        assert np.array_equal(whole.batch(step).weights, np.concatenate([part.weights for part in parts]))
        assert len(set(whole.batch(step).weights.tolist())) > 1


def test_tiles_left_out_count_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    some = Tiles(LocalStore(tmp_path / "store"), lr_only=(3, *range(10, 20)))
    huge = np.where(some.known, KNOWN, 1e6)
    sampler = some.sampler(gains=huge, require_hr=True)
    known = np.array(some.ids)[some.known]
    assert sampler.epoch == slots_of(KNOWN[some.known]).sum()
    drawn = {name for step in range(sampler.epoch // 8 + 1) for name in sampler.batch(step).ids}
    assert drawn == set(known.tolist())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("world", [1, 2])
def test_weights_come_along_in_every_form_of_a_batch(tiles: Tiles, device: str, world: int) -> None:
    sampler, there = tiles.sampler(gains=KNOWN), torch.device(device)
    resident = Resident(sampler, there)
    for step in range(6):
        batch = sampler.batch(step, world - 1, world)
        expected = batch.to("cpu")
        assert torch.equal(expected.pop("weight"), torch.from_numpy(batch.weights))
        raw, unpack = batch.parts(there)
        for found in (unpack(raw), resident.batch(step, world - 1, world).to(there)):
            assert found["weight"].dtype == torch.float32
            assert found.pop("weight").tolist() == batch.weights.tolist()
            equal(found, expected)


def test_gains_that_fit_no_tiles_are_refused(tiles: Tiles) -> None:
    with pytest.raises(InputError, match="a value for each of 37 rows"):
        tiles.sampler(gains=KNOWN[:-1])
    for wrong in (np.where(np.arange(37) == 4, np.nan, KNOWN), -KNOWN):
        with pytest.raises(InputError, match="finite numbers of at least 0"):
            tiles.sampler(gains=wrong)


def by_hand(tiles: Tiles, target: np.ndarray) -> list[float]:
    """Tile by tile, pixel values as Python's own numbers."""
    levels = target if target.dtype == np.uint8 else np.rint(np.clip(target.astype(np.float64), 0, 1) * 255)
    found = []
    for small, large in zip(tiles.lr, levels, strict=True):
        off = np.abs(large.astype(np.float64) - upscale(small, 2).astype(np.float64))
        found.append(float(off.sum()) / off.size)
    return found


@pytest.fixture
def noisy(tiles: Tiles) -> Tiles:
    tiles.out = np.random.default_rng(3).integers(0, 256, tiles.out.shape, dtype=np.uint8)
    tiles.outputs = tiles.pack("noisy", 10, {"out": tiles.out})
    return tiles


def test_gains_are_the_mean_distance_from_bicubic(noisy: Tiles) -> None:
    lr, target = noisy.sources()["lr"], noisy.sources()["target"]
    found = gains(lr, target, 2)
    assert found.tolist() == pytest.approx(by_hand(noisy, noisy.out), rel=1e-12)
    hr = gains(lr, noisy.sources()["hr"], 2)
    assert hr.tolist() == pytest.approx(by_hand(noisy, noisy.hr), rel=1e-12)
    half = (noisy.out / 255).astype(np.float16)
    stored = Source(noisy.store, noisy.pack("half", 10, {"out": half}), "out")
    assert gains(lr, stored, 2).tolist() == pytest.approx(by_hand(noisy, half), rel=1e-12)
    assert found.shape == (37,) and hr.tolist() != found.tolist()


def test_tiles_without_hr_have_no_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    some = Tiles(
        LocalStore(tmp_path / "store"), lr_only=(3, *range(10, 20))
    )  # a shard of them has no hr at all
    found = gains(some.sources()["lr"], some.sources()["hr"], 2)
    assert ((found == 0) == ~some.known).all()


def test_gains_are_measured_once_and_again_where_the_record_is_damaged(
    noisy: Tiles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipeline.tasks.super_resolution import gains as module

    calls: list[str] = []
    measure = module._measured

    def counted(*given: object) -> np.ndarray:
        calls.append(given[3].key)
        return measure(*given)

    monkeypatch.setattr(module, "_measured", counted)
    lr, target = noisy.sources()["lr"], noisy.sources()["target"]
    first = gains(lr, target, 2)
    assert len(calls) == len(noisy.outputs.shards) == 4
    assert np.array_equal(gains(lr, target, 2), first) and len(calls) == 4
    receipts = noisy.outputs.shards
    notes = [noisy.store.path(r.file.removesuffix(".arrow") + GAINS) for r in receipts]
    data = bytearray(notes[1].read_bytes())
    data[len(data) // 2] ^= 1
    notes[1].write_bytes(bytes(data))
    notes[2].write_bytes(notes[3].read_bytes())  # whole, but another shard's
    assert np.array_equal(gains(lr, target, 2), first)
    assert calls[4:] == [receipts[1].key, receipts[2].key]
    assert caplog.text.count("is damaged") == 2
    folder = receipts[0].file.rpartition("/")[0]
    kept = [r.file for r in receipts[1:]]
    gone = unneeded(noisy.store, folder, kept)
    name = receipts[0].file.removesuffix(".arrow") + GAINS
    assert name in gone and receipts[1].file.removesuffix(".arrow") + GAINS not in gone


def test_gains_of_other_pixels_are_measured_anew(noisy: Tiles) -> None:
    lr, target = noisy.sources()["lr"], noisy.sources()["target"]
    before = gains(lr, target, 2)
    noisy.out[:10] = 0
    again = Source(noisy.store, noisy.pack("noisy", 10, {"out": noisy.out}), "out")  # the same names
    after = gains(lr, again, 2)
    assert after.tolist() == pytest.approx(by_hand(noisy, noisy.out), rel=1e-12)
    assert (after[:10] != before[:10]).all() and np.array_equal(after[10:], before[10:])


def test_targets_that_lack_a_shard_are_refused(noisy: Tiles) -> None:
    extra = write_shard(noisy.store, "tiles-x/more.arrow", {"id": ["z"], "lr": noisy.lr[:1]}, metadata={})
    more = Manifest("tiles", "more", {}, (*noisy.tiles.shards, extra))
    with pytest.raises(InputError, match="a shard more"):
        gains(Source(noisy.store, more, "lr"), noisy.sources()["target"], 2)
