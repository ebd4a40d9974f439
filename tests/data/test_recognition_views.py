"""Views of recognition's pictures and the batches of them: seeded, of the same place at every gap, shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import natural_picture
from layout_kit import class_folders, recipe, refused, shards

from pipeline.cache import manifest as manifests
from pipeline.cache.format import write_shard
from pipeline.cache.manifest import Manifest
from pipeline.tasks.recognition.degradations import student_pictures
from pipeline.tasks.recognition.resident import ResidentViews
from pipeline.tasks.recognition.sampler import Gallery, ViewSampler
from pipeline.tasks.recognition.settings import Sampling, Views
from pipeline.tasks.recognition.views import Move, draw, enlarge, see, shrink


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return class_folders(tmp_path)


def test_the_views_are_seeded_mirrored_and_the_first_is_the_picture() -> None:
    picture = natural_picture(12, 10, 0)[None]
    views = Views(count=8, shift=3, flip=True)
    assert draw(views, "abc", 0) == Move()
    moves = [draw(views, "abc", n) for n in range(8)]
    assert moves == [draw(views, "abc", n) for n in range(8)] != [draw(views, "abd", n) for n in range(8)]
    assert {m[2] for m in moves} == {True, False} and all(abs(m[0]) <= 3 and abs(m[1]) <= 3 for m in moves)
    padded = np.pad(picture[0], ((3, 3), (3, 3), (0, 0)), mode="symmetric")
    for down, right, flipped, *_ in moves:
        expected = padded[3 - down : 15 - down, 3 - right : 13 - right]
        expected = expected[:, ::-1] if flipped else expected
        np.testing.assert_array_equal(see(picture, [Move(down, right, flipped)])[0], expected)


def test_views_are_zoomed_and_lit_and_masks_stay_masks() -> None:
    views = Views(count=64, shift=2, zoom=0.5, light=0.4)
    moves = [draw(views, "abc", n) for n in range(64)]
    assert moves[0] == Move() and len({m.zoom for m in moves}) == 64
    assert all(1 / 1.5 <= m.zoom <= 1.5 and 1 / 1.4 <= m.contrast <= 1.4 for m in moves)
    assert all(abs(m.brightness) <= 51.2 for m in moves)
    ramp = np.broadcast_to(np.arange(100, 164, 2, dtype=np.uint8)[None, :, None], (32, 32, 3))[None]
    inner = see(ramp, [Move(zoom=1.25)])[0, 16, 4:28, 0].astype(float)
    np.testing.assert_allclose(inner, 131 + (2 / 1.25) * (np.arange(4, 28) - 15.5), atol=0.51)
    moved = see(ramp, [Move(right=3, zoom=1.25)])[0, 16, 8:28, 0].astype(float)
    np.testing.assert_allclose(moved, 131 + (2 / 1.25) * (np.arange(8, 28) - 15.5) - 6, atol=0.51)
    lit = see(ramp, [Move(contrast=0.5, brightness=10)])[0, 0, :, 0].astype(float)
    np.testing.assert_allclose(lit, 141 + (np.arange(32) - 15.5), atol=0.51)
    mask = np.zeros((1, 16, 16, 1), np.uint8)
    mask[:, 4:9, 4:9] = 255
    assert set(np.unique(see(mask, [Move(contrast=0.5, brightness=60)], light=False))) == {0, 255}
    assert see(mask, [Move(zoom=1.5)])[0].mean() > mask.mean()


def test_lr_is_the_degradation_of_the_same_view_at_every_gap() -> None:
    from pipeline.data.degrade import downscale

    hr = np.stack([natural_picture(48, 48, n) for n in range(2)])
    np.testing.assert_array_equal(shrink(hr, 4)[1], downscale(hr[1], 4))
    np.testing.assert_array_equal(shrink(hr, 1), hr)
    assert shrink(hr, 8).shape == (2, 6, 6, 3) and shrink(hr, 12).shape == (2, 4, 4, 3)
    assert enlarge(shrink(hr, 8), 8).shape == hr.shape
    assert student_pictures(hr, 4, enlarged=True).shape == hr.shape


def sampler(folders: Path, **options: Any) -> ViewSampler:
    settings = recipe(folders)
    store, found, _ = shards(settings)
    chosen = {"batch": 6, "seed": 1, "gap": 2, "views": settings.data.views} | options
    return ViewSampler(Gallery(store, found["train"]), **chosen)


def test_pictures_that_are_kept_are_those_made_anew(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sampler(folders)
    seen = [kept.batch(step).tensors["lr"] for step in range(40)]
    assert kept._kept.count > 6
    monkeypatch.setattr("pipeline.tasks.recognition.kept.KEPT_BYTES", 3 * seen[0][0].nbytes)
    few = sampler(folders)
    for step, expected in enumerate(seen):
        np.testing.assert_array_equal(few.batch(step).tensors["lr"], expected)
        np.testing.assert_array_equal(sampler(folders).batch(step).tensors["lr"], expected)
    assert few._kept.count == 3


def test_the_order_is_a_function_of_the_step_and_workers_share_each_batch(folders: Path) -> None:
    source = sampler(folders)
    count = len(source.gallery)
    whole = [source.batch(step) for step in range(8)]
    ids = [i for batch in whole for i in batch.ids]
    assert len(set(ids[:count])) == count  # an epoch holds every picture once
    for step in (0, 3):
        parts = [source.batch(step, rank, 2) for rank in range(2)]
        assert parts[0].ids + parts[1].ids == whole[step].ids
        joined = np.concatenate([p.tensors["lr"] for p in parts])
        np.testing.assert_array_equal(joined, whole[step].tensors["lr"])
    later = dict(source.iterate(3, 6))
    assert [later[s].ids for s in (3, 4, 5)] == [whole[s].ids for s in (3, 4, 5)]
    assert [b.ids for b in whole] != [sampler(folders, seed=2).batch(s).ids for s in range(8)]
    refused(lambda: source.batch(0, 0, 4), "multiple of the 4 workers")


def test_p_x_k_batches_hold_k_pictures_of_p_identities(folders: Path) -> None:
    source = sampler(folders, sampling=Sampling(identities=2, pictures=3))
    for step in range(6):
        batch = source.batch(step)
        labels, counts = np.unique(batch.tensors["label"], return_counts=True)
        assert len(labels) == 2 and set(counts) == {3}
        assert len(set(batch.ids)) == 6
        parts = [source.batch(step, rank, 2) for rank in range(2)]
        assert parts[0].ids + parts[1].ids == batch.ids


def test_one_identity_alone_is_refused(folders: Path) -> None:
    settings = recipe(folders)
    store, found, _ = shards(settings)
    gallery = Gallery(store, found["train"])
    gallery.labels = np.zeros_like(gallery.labels)
    refused(
        lambda: ViewSampler(
            gallery, batch=4, seed=0, gap=2, views=Views(), sampling=Sampling(identities=2, pictures=2)
        ),
        "at least two identities",
    )


def test_cached_views_of_other_pictures_are_refused(folders: Path) -> None:
    settings = recipe(folders)
    store, found, _ = shards(settings)
    receipt = write_shard(
        store, "outputs/x.arrow", {"id": ["0" * 16], "logits": np.zeros((1, 3, 2), np.float16)}, metadata={}
    )
    foreign = Manifest("outputs", "f" * 16, {"pictures": "others"}, (receipt,))
    refused(lambda: Gallery(store, found["train"], {"teacher": foreign}), "outputs of teacher", "other data")
    manifests.save(foreign, store, "outputs/manifest.json")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("world", [1, 2])
def test_views_that_live_on_a_device_give_the_same_batches(folders: Path, device: str, world: int) -> None:
    source = sampler(folders, columns=("lr", "hr", "label"))
    resident = ResidentViews(source, torch.device(device))
    for rank in range(world):
        for (step, placed), (same, batch) in zip(
            resident.iterate(2, 9, rank, world), source.iterate(2, 9, rank, world), strict=True
        ):
            assert step == same and placed.ids == batch.ids
            ours, theirs = placed.to(device), batch.to("cpu")
            assert ours.keys() == theirs.keys() == {"lr", "hr", "label"}
            for name, x in theirs.items():
                assert ours[name].dtype == x.dtype and torch.equal(ours[name].cpu(), x)
    several = resident.batch(20).ahead(3)["row"]
    assert [row.tolist() for row in several] == [
        resident.batch(20 + n).ahead(1)["row"][0].tolist() for n in range(3)
    ]
    assert resident._known[several].all()
