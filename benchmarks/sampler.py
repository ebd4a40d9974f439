"""Training patches from shards against a PNG DataLoader of the usual kind, and against copying as many bytes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import noise_pictures, row
from pipeline.cache.format import open_shard, write_shard
from pipeline.cache.manifest import Manifest
from pipeline.cache.sampler import Sampler, Source, to_device
from pipeline.cache.store import Store
from pipeline.data.decode import decode, scan
from pipeline.data.degrade import downscale, upscale
from pipeline.data.tiles import Grid, Tile, columns, cut, tile_id

SCALE, PATCH, BATCH, MARGIN = 2, 48, 16, 4
PICTURES, SIDE = 48, 480  # sub-pictures of 480 pixels are what SR trainers cut DIV2K into
SHARD_ROWS = 128


def rows() -> list[dict[str, Any]]:
    """Both rows for LR, HR and a cached target at x2 and LR patch 48, on one core, files in the page cache."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        root = Path(folder)
        noise_pictures(root / "hr", PICTURES, SIDE)
        sources = make_cache(root)
        sampler = Sampler(sources, scale=SCALE, patch=PATCH, batch=BATCH, seed=0, margin=MARGIN)
        return [against_png(sampler, root), against_memcpy(sampler, sources)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as both sides are measured on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_cache(root: Path) -> dict[str, Source]:
    """Tile shards of the pictures and target shards (bicubic); the same as PNG files in `lr` and `target`."""
    store, grid = Store.open(root / "cache"), Grid(SCALE, 192, MARGIN)
    tiles: list[tuple[str, Tile]] = []
    for name in ("lr", "target"):
        (root / name).mkdir()
    for picture in scan(root / "hr")[0]:
        hr = decode(picture.path)
        lr = downscale(hr, SCALE)
        Image.fromarray(lr).save(root / "lr" / picture.name)
        Image.fromarray(upscale(lr, SCALE)).save(root / "target" / picture.name)
        tiles += [(tile_id(picture.sha256, tile.y, tile.x), tile) for tile in cut(hr, lr, grid)]
    made: dict[str, list] = {"tiles": [], "targets": []}
    for start in range(0, len(tiles), SHARD_ROWS):
        part = columns(tiles[start : start + SHARD_ROWS], grid)
        targets = {"id": part["id"], "out": np.stack([upscale(lr, SCALE) for lr in part["lr"]])}
        for kind, content in (("tiles", part), ("targets", targets)):
            made[kind].append(write_shard(store, f"{kind}/{start}.arrow", content, metadata={}))
    sets = {kind: Manifest(kind, kind, {}, tuple(receipts)) for kind, receipts in made.items()}
    return {
        "lr": Source(store, sets["tiles"], "lr"),
        "hr": Source(store, sets["tiles"], "hr"),
        "target": Source(store, sets["targets"], "out"),
    }


class PNGPatches(Dataset):
    """Decode whole PNG files, crop at random, move, turn into float tensors: how SR trainers usually read."""

    def __init__(self, root: Path) -> None:
        self.files = [
            {name: root / name / path.name for name in ("lr", "hr", "target")}
            for path in sorted((root / "hr").iterdir())
        ]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        pictures = {name: np.asarray(Image.open(path)) for name, path in self.files[index].items()}
        y, x = (random.randrange(side - PATCH + 1) for side in pictures["lr"].shape[:2])
        flip, mirror, transpose = (random.random() < 0.5 for _ in range(3))
        result = {}
        for name, picture in pictures.items():
            factor = 1 if name == "lr" else SCALE
            y0, x0, side = y * factor, x * factor, PATCH * factor
            crop = picture[y0 : y0 + side, x0 : x0 + side]
            crop = crop[:, ::-1] if mirror else crop
            crop = crop[::-1] if flip else crop
            crop = crop.transpose(1, 0, 2) if transpose else crop
            result[name] = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1))).float() / 255
        return result


def against_png(sampler: Sampler, root: Path) -> dict[str, Any]:
    """Patches a second, ready for the network: cropped, moved, float in [0, 1]."""
    loader = DataLoader(PNGPatches(root), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    steps = count()

    def ours() -> None:
        for _ in range(50):
            to_device(sampler.batch(next(steps)), "cpu")

    def theirs() -> None:
        for _ in loader:
            pass

    seconds = best_of({ours: 50 * BATCH, theirs: PICTURES}, rounds=3)
    what = "sampler / PNG DataLoader (480 px files), one core: LR 48, HR, target as float"
    return row(what, 1 / seconds[ours], 1 / seconds[theirs], ">= 30", unit="patches/s", digits=1)


def against_memcpy(sampler: Sampler, sources: dict[str, Source]) -> dict[str, Any]:
    """GB/s of cropping, and of plain copies: from each tile as many bytes as its crop has, but contiguous.

    Both read the same tiles in the same order into fresh memory. Where the copies start is worked out
    beforehand.
    """
    calls, blocks = 4, 300  # short blocks fit between the disturbances of a busy machine
    first = sampler.batch(0).tensors
    sizes = {name: tensor[0].numel() for name, tensor in first.items()}
    tiles = {name: tiles_by_id(source) for name, source in sources.items()}
    plans = [
        [
            {name: [tiles[name][key][: sizes[name]] for key in sampler.batch(step).ids] for name in sources}
            for step in range(block * calls, (block + 1) * calls)
        ]
        for block in range(blocks)
    ]
    ours_block, theirs_block = count(), count()

    def ours() -> None:
        start = next(ours_block) % blocks * calls
        for step in range(start, start + calls):
            sampler.batch(step)

    def theirs() -> None:
        for plan in plans[next(theirs_block) % blocks]:
            for name, pieces in plan.items():
                for target, piece in zip(torch.empty(BATCH, sizes[name], dtype=torch.uint8).numpy(), pieces):
                    target[...] = piece

    moved = calls * BATCH * sum(sizes.values()) / 1e9
    seconds = best_of({ours: moved, theirs: moved}, rounds=blocks)
    what = "crops of LR 48, HR, target from shards / memcpy of as many bytes of the same tiles"
    return row(what, 1 / seconds[ours], 1 / seconds[theirs], ">= 0.5", unit="GB/s")


def tiles_by_id(source: Source) -> dict[str, np.ndarray]:
    """Each tile's bytes, a flat view of the mapped file."""
    result = {}
    for receipt in source.manifest.shards:
        path = source.store.local(receipt.file, sha256=receipt.sha256, bytes=receipt.bytes)
        shard = open_shard(path)
        flat = shard.array(source.column).reshape(shard.rows, -1)
        result |= dict(zip(shard.columns["id"], flat, strict=True))
    return result


def best_of(work: dict[Callable[[], None], float], rounds: int) -> dict[Callable[[], None], float]:
    """Seconds a unit of work of each side, the best of rounds in turn: what the machine does undisturbed."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for side, amount in work.items():
            start = time.perf_counter()
            side()
            best[side] = min(best[side], (time.perf_counter() - start) / amount)
    return best
