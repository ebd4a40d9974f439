"""Batches: the order of tiles, workers' shares, tiles without HR, sources that do not fit, memory, devices."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from sampler_kit import TILE, Tiles, equal, places, same

from pipeline.cache.format import CorruptShard, write_shard
from pipeline.cache.manifest import Manifest, save
from pipeline.cache.order import below, epoch_keys, permute, words
from pipeline.cache.placed import Resident
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import LocalStore
from pipeline.errors import InputError


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("FACULTY_NODE_CACHE", str(tmp_path / "node"))
    return LocalStore(tmp_path / "store")


@pytest.fixture
def tiles(store) -> Tiles:
    return Tiles(store)


def test_every_tile_comes_once_an_epoch_and_each_epoch_in_another_order(tiles):
    sampler = tiles.sampler(batch=1)
    epochs = [[sampler.batch(37 * epoch + i).ids[0] for i in range(37)] for epoch in range(4)]
    assert all(sorted(epoch) == sorted(tiles.ids) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_an_epoch_may_end_inside_a_batch(tiles):
    sampler = tiles.sampler(batch=8)
    drawn = [name for step in range(37) for name in sampler.batch(step).ids]
    for epoch in range(8):
        assert sorted(drawn[37 * epoch : 37 * (epoch + 1)]) == sorted(tiles.ids)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_workers_share_the_same_global_batch(tiles, world):
    sampler = tiles.sampler()
    for step in (0, 3, 511, 512, 100_000):
        whole, parts = (
            sampler.batch(step),
            [tiles.sampler().batch(step, rank, world) for rank in range(world)],
        )
        for name, tensor in whole.tensors.items():
            assert torch.equal(tensor, torch.cat([part.tensors[name] for part in parts]))
        assert whole.ids == [name for part in parts for name in part.ids]
        assert np.array_equal(whole.ops, np.concatenate([part.ops for part in parts]))


def test_a_batch_does_not_depend_on_the_batches_before_it(tiles):
    sampler = tiles.sampler()
    forward = [sampler.batch(step) for step in range(30)]
    for step in (29, 0, 17, 17, 3):
        assert same(sampler.batch(step), forward[step])
        assert same(tiles.sampler().batch(step), forward[step])


def test_a_run_of_samples_may_span_planning_blocks(tiles):
    odd, single = tiles.sampler(batch=6), tiles.sampler(batch=1)
    for step in (682, 683):  # samples 4092 to 4103; a block ends at 4096
        assert odd.batch(step).ids == [single.batch(6 * step + i).ids[0] for i in range(6)]
        assert places(odd.batch(step)) == [places(single.batch(6 * step + i))[0] for i in range(6)]


def test_packing_does_not_change_a_batch(tiles):
    order = np.random.default_rng(0).permutation(37).tolist()
    columns = {"lr": tiles.lr, "hr": tiles.hr, "has_hr": tiles.known.astype(np.uint8)}
    other = tiles.pack("tiles", 7, columns, order)
    sources = {
        "lr": Source(tiles.store, other, "lr"),
        "hr": Source(tiles.store, tiles.tiles, "hr"),
        "target": Source(tiles.store, tiles.pack("out", 37, {"out": tiles.out}, order[::-1]), "out"),
    }
    for step in range(10):
        assert same(tiles.sampler().batch(step), tiles.sampler(sources=sources).batch(step))


def test_seeds_give_different_runs(tiles):
    first, second = (tiles.sampler(seed=seed, batch=37) for seed in (0, 1))
    assert first.batch(0).ids != second.batch(0).ids
    assert places(first.batch(0)) != places(second.batch(0))
    assert not np.array_equal(first.batch(0).ops, second.batch(0).ops)


def test_the_stream_of_a_seed_never_changes(tiles):
    """Pinned: a change here would break the resumption of every run and the repetition of every figure."""
    batch = tiles.sampler(batch=6, seed=1234).batch(1000)
    assert places(batch) == PINNED_PLACES
    assert batch.ops.tolist() == PINNED_OPS


PINNED_PLACES = [(1, 3, 8), (16, 11, 5), (12, 10, 3), (15, 6, 4), (27, 10, 8), (14, 12, 6)]
PINNED_OPS = [5, 5, 7, 0, 2, 5]


def test_tiles_without_hr_are_marked_and_zero(store):
    tiles = Tiles(store, lr_only=(3, *range(10, 20), 36))  # one of the shards holds no hr column at all
    sampler = tiles.sampler(batch=37)
    batch = sampler.batch(0)
    for i, (tile, _, _) in enumerate(places(batch)):
        assert batch.has_hr[i] == tiles.known[tile] == bool(batch.tensors["hr"][i].any())
        assert batch.tensors["target"][i].any()
    assert sampler.tiles == 37
    restricted = tiles.sampler(batch=25, require_hr=True)
    assert restricted.tiles == 25
    assert sorted(restricted.batch(4).ids) == sorted(np.array(tiles.ids)[tiles.known].tolist())
    assert restricted.batch(4).has_hr.all()


def test_a_set_without_any_hr_serves_unless_hr_is_required(store):
    tiles = Tiles(store, lr_only=tuple(range(37)))
    batch = tiles.sampler().batch(0)
    assert batch.tensors["hr"].shape == (8, 16, 16, 3)
    assert not batch.tensors["hr"].any() and not batch.has_hr.any()
    with pytest.raises(InputError, match="with HR"):
        tiles.sampler(require_hr=True)


def test_hr_need_not_be_a_source(tiles):
    batch = tiles.sampler(sources={"lr": tiles.sources()["lr"]}).batch(0)
    assert set(batch.tensors) == {"lr"} and not batch.has_hr.any()


def test_iterate_gives_the_same_batches_ahead_of_time(tiles):
    sampler = tiles.sampler()
    steps = list(sampler.iterate(5, 12, rank=1, world=2))
    assert [step for step, _ in steps] == list(range(5, 12))
    assert all(same(batch, sampler.batch(step, 1, 2)) for step, batch in steps)
    assert list(sampler.iterate(5, 5)) == []


def test_leaving_an_iteration_early_leaves_no_thread(tiles):
    before = threading.active_count()
    for step, _ in tiles.sampler().iterate(0, 1000):
        if step == 3:
            break
    gc.collect()
    assert threading.active_count() == before


def test_sources_that_do_not_fit_are_refused(tiles, store):
    def refuses(complaint: str, **changes) -> None:
        with pytest.raises(InputError, match=complaint):
            tiles.sampler(**changes)

    def with_target(manifest: Manifest, column: str = "out") -> dict[str, Source]:
        return {**tiles.sources(), "target": Source(store, manifest, column)}

    refuses("at most the 24 LR pixels", patch=25)
    refuses("tiles of 24x24 or 3 times that", scale=3)
    refuses("column nothing", sources=with_target(tiles.outputs, "nothing"))
    refuses(
        "10 of them missing and 0 others",
        sources=with_target(tiles.pack("out", 27, {"out": tiles.out}, range(27))),
    )
    refuses("0 of them missing and 1 others", sources=with_target(_with_one_more(tiles)))
    refuses("every id once", sources=with_target(tiles.pack("out", 37, {"out": tiles.out}, [*range(37)] * 2)))
    refuses("at least one shard", sources=with_target(Manifest("out", "0" * 16, {}, ())))
    refuses("tiles of one shape", sources=with_target(_with_one_smaller(tiles)))
    with pytest.raises(InputError, match="multiple of the 3 workers"):
        tiles.sampler().batch(0, 0, 3)


def _with_one_more(tiles: Tiles) -> Manifest:
    extra = write_shard(tiles.store, "more.arrow", {"id": ["z"], "out": tiles.out[:1]}, metadata={})
    return Manifest("out", "more", {}, (*tiles.outputs.shards, extra))


def _with_one_smaller(tiles: Tiles) -> Manifest:
    first = tiles.outputs.shards[0]
    columns = {"id": tiles.ids[: first.rows], "out": tiles.out[: first.rows, :40]}
    other = write_shard(tiles.store, "smaller.arrow", columns, metadata={})
    return Manifest("out", "smaller", {}, (other, *tiles.outputs.shards[1:]))


def test_damaged_and_swapped_shards_are_refused_at_open(tiles, store):
    receipt = tiles.outputs.shards[1]
    path = store.path(receipt.file)
    data = path.read_bytes()
    bad = bytearray(data)
    bad[len(bad) // 2] ^= 1
    for damage in (bytes(bad), data[:-8], store.read_bytes(tiles.outputs.shards[2].file)):
        path.write_bytes(damage)
        with pytest.raises(CorruptShard, match=str(path)):
            tiles.sampler()
    path.unlink()
    with pytest.raises(CorruptShard, match="nothing there"):
        tiles.sampler()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 37, 1000, 4097])
def test_permute_is_a_permutation_that_its_key_decides(count):
    position = np.arange(count, dtype=np.uint64)
    results = [permute(position, count, np.full(count, key, np.uint64)) for key in range(3)]
    assert all(sorted(result) == list(range(count)) for result in results)
    if count >= 37:
        assert len({tuple(result) for result in results}) == 3
        fixed = sum(int((result == np.arange(count)).sum()) for result in results)
        assert fixed < 12  # one each is expected


def test_permutations_are_spread_evenly():
    keys = epoch_keys(0, np.arange(24_000, dtype=np.uint64))
    columns = [permute(np.full(len(keys), i, np.uint64), 4, keys) for i in range(4)]
    counts = Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert len(counts) == 24 and all(800 < count < 1200 for count in counts.values())


def test_words_are_counted_by_sample():
    assert np.array_equal(words(7, 100, 50)[:, 20:30], words(7, 120, 10))
    assert not np.array_equal(words(7, 0, 50), words(8, 0, 50))
    drawn = below(words(7, 0, 30_000)[0], 3)
    assert all(abs(count - 10_000) < 400 for count in np.bincount(drawn, minlength=3)) and drawn.max() == 2


MEMORY = """
import gc, sys
from pipeline.cache.manifest import load
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
store = Store.open(sys.argv[1])
for name in ("small.json", "small.json", "large.json"):
    sampler = Sampler({"lr": Source(store, load(store, name), "lr")}, scale=2, patch=8, batch=64, seed=0, margin=0)
    for step in range(sampler.tiles // 64):
        sampler.batch(step)
    gc.collect()
    with open("/proc/self/smaps_rollup") as file:
        fields = dict(line.split(":") for line in file.readlines()[1:])
    print(int(fields["Anonymous"].split()[0]))
"""


def test_memory_stays_flat_as_the_cache_grows(store):
    """What belongs to the process alone may grow by 400 bytes a tile, where a tile of common size has 138 kB."""
    receipts = []
    for i in range(40):
        ids = [f"{i:016x}:{row}:0" for row in range(1000)]
        columns = {"id": ids, "lr": np.zeros((1000, 12, 12, 3), np.uint8)}
        receipts.append(write_shard(store, f"t/{i}.arrow", columns, metadata={}))
    save(Manifest("tiles", "0", {}, tuple(receipts[:10])), store, "small.json")
    save(Manifest("tiles", "1", {}, tuple(receipts)), store, "large.json")
    command = [sys.executable, "-c", MEMORY, str(store.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    _, small, large = (int(line) * 1024 for line in result.stdout.split())
    assert large - small < 30_000 * 400


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("world", [1, 2])
def test_tiles_that_live_on_a_device_give_the_same_batches(store, device, world):
    some = Tiles(store, lr_only=(3, 4, 11, *range(20, 30)))
    sampler = some.sampler(batch=16)
    resident = Resident(sampler, torch.device(device))
    for rank in range(world):
        pairs = zip(resident.iterate(0, 9, rank, world), sampler.iterate(0, 9, rank, world), strict=True)
        for (step, placed), (again, batch) in pairs:
            assert step == again and placed.ids == batch.ids
            equal(placed.to(device), batch.to("cpu"))


def test_a_column_lives_there_once(tiles):
    sources = {**tiles.sources(), "again": tiles.sources()["target"]}
    resident = Resident(tiles.sampler(sources=sources), torch.device("cpu"))
    places = {name: pixels.data_ptr() for name, (pixels, _) in resident.columns.items()}
    assert places["again"] == places["target"] and len(set(places.values())) == 3
    assert tiles.sampler().nbytes == 37 * 3 * (TILE**2 + 2 * (2 * TILE) ** 2)
    assert tiles.sampler().on(torch.device("cpu")).__class__ is Sampler  # nothing is gained there


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_one_block_of_bytes_is_the_whole_batch(store, device):
    some = Tiles(store, lr_only=(3, 4))
    half = (some.out / 255).astype(np.float16)
    sources = {**some.sources(), "half": Source(store, some.pack("half", 10, {"sr": half}), "sr")}
    batch = some.sampler(sources=sources, batch=37).batch(0)
    raw, unpack = batch.parts(torch.device(device))
    assert set(raw) == {"block"} and raw["block"].device.type == device
    equal(unpack(raw), batch.to("cpu"))
