"""mixup and CutMix among a batch's cached views: which, how, by several workers, and on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recognition_kit import content, picture_folder
from scipy import stats

from pipeline.cache.format import write_shard
from pipeline.cache.manifest import Manifest
from pipeline.cache.order import words
from pipeline.cache.store import Store
from pipeline.tasks.recognition import pictures, ready
from pipeline.tasks.recognition.mixing import beta, how, mixed, partners
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.resident import ResidentViews
from pipeline.tasks.recognition.sampler import Gallery, ViewSampler
from pipeline.tasks.recognition.settings import Mixing

BOTH = Mixing(mixup=0.4, cutmix=1.0, share=0.7)
COLUMNS = ("lr", "hr", "label", "teacher/logits", "teacher/embedding")


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """24 pictures of three classes with outputs of three views."""
    root = tmp_path_factory.mktemp("mixing")
    data = {"layout": "folders", "root": picture_folder(root, 3, 10), "size": 16}
    settings = Recognition.model_validate(content(root, data=data))
    store = Store.open(settings.cache.root)
    plan = pictures.plan(settings, store)
    found = plan.manifest("train", dict(plan.kept) | {t.key: t.run() for t in plan.steps})
    ids = Gallery(store, found).ids
    random = np.random.default_rng(0)
    outputs = {
        "logits": random.normal(0, 3, (len(ids), 3, 3)).astype(np.float16),
        "embedding": random.normal(0, 1, (len(ids), 3, 5)).astype(np.float16),
    }
    receipt = write_shard(store, "outputs/t.arrow", {"id": ids, **outputs}, metadata={})
    return Gallery(store, found, {"teacher": Manifest("outputs", "f" * 16, {}, (receipt,))})


def sampler(gallery: Gallery, mixing: Mixing | None = BOTH, **options: Any) -> ViewSampler:
    views = {"count": 3, "shift": 2, "flip": True}
    settings = Recognition.model_validate(
        content(Path("."), data={"layout": "folders", "size": 16, "views": views})
    )
    chosen = {"batch": 8, "seed": 5, "gap": 2, "columns": COLUMNS} | options
    return ViewSampler(gallery, views=settings.data.views, mixing=mixing, **chosen)


def test_beta_has_the_distribution_that_it_names() -> None:
    random = words(3, 0, 20_000)[2]
    for a in (0.2, 0.5, 1.0, 4.0):
        lam = beta(a, random)
        assert lam.min() >= 0 and lam.max() <= 1
        assert stats.kstest(lam, stats.beta(a, a).cdf).pvalue > 1e-3
    assert np.isfinite(beta(0.01, random)).all()


def test_partners_are_a_permutation_of_each_global_batch_and_another_in_each_step() -> None:
    samples = np.arange(64, dtype=np.uint64)
    found = partners(7, samples, 16).reshape(4, 16)
    assert [sorted(row) for row in found.tolist()] == np.arange(64).reshape(4, 16).tolist()
    assert len({tuple(row % 16) for row in found}) == 4
    assert partners(7, samples[21:27], 16).tolist() == found.reshape(-1)[21:27].tolist()
    assert partners(8, samples, 16).tolist() != found.reshape(-1).tolist()


def test_boxes_have_the_area_that_lam_says_and_shares_are_kept() -> None:
    random = words(1, 0, 4000)
    told = how(Mixing(mixup=0.4, cutmix=1.0, share=0.5), random, (8, 12))
    top, bottom, left, right = told["box"].T
    assert (top >= 0).all() and (bottom <= 8).all() and (left >= 0).all() and (right <= 12).all()
    cells = np.zeros((4000, 8, 12))
    for row, (t, b, le, r) in zip(cells, told["box"]):
        row[t:b, le:r] = 1
    boxed = cells.any((1, 2))
    np.testing.assert_allclose(told["share"][boxed], 1 - cells.mean((1, 2))[boxed], rtol=1e-6)
    assert (told["outside"][boxed] == 1).all()
    np.testing.assert_array_equal(told["share"][~boxed], told["outside"][~boxed])
    mixed_up = (told["share"] < 1) & ~boxed
    assert 0.22 < mixed_up.mean() < 0.28  # half of the half, but for boxes that are too small or outside
    assert 0.18 < boxed.mean() < 0.25
    # Away from the borders the box is sqrt(1 - lam) of a side long, to the nearest cell.
    lam = beta(1.0, random[2])
    alone = how(Mixing(cutmix=1.0), random, (100, 100))["box"]
    inner = (alone[:, ::2] > 0).all(1) & (alone[:, 1::2] < 100).all(1)
    sides = np.sqrt(1 - lam[inner]) * 100
    assert inner.sum() > 300
    assert np.abs(alone[inner, 1] - alone[inner, 0] - sides).max() <= 0.5 + 1e-9
    assert np.abs(alone[inner, 3] - alone[inner, 2] - sides).max() <= 0.5 + 1e-9


def test_a_mixed_batch_is_what_numpy_makes_of_two(gallery: Gallery) -> None:
    source, plain = sampler(gallery), sampler(gallery, None)
    kinds = set()
    for step in range(6):
        found = source.batch(step).to("cpu")
        told = how(BOTH, words(5, step * 8, 8), (8, 8))
        whole = plain.batch(step).tensors
        other = partners(5, np.arange(step * 8, step * 8 + 8, dtype=np.uint64), 8) - step * 8
        np.testing.assert_array_equal(found["share"], told["share"])
        np.testing.assert_array_equal(found["label"], whole["label"])
        np.testing.assert_array_equal(found["partner/label"], whole["label"][other])
        np.testing.assert_array_equal(found["partner/teacher/logits"], whole["teacher/logits"][other])
        np.testing.assert_array_equal(found["teacher/logits"], whole["teacher/logits"])
        lam = told["share"][:, None]
        e = whole["teacher/embedding"].astype(np.float32)
        np.testing.assert_allclose(found["teacher/embedding"], lam * e + (1 - lam) * e[other], rtol=1e-6)
        for name, factor in (("lr", 1), ("hr", 2)):
            x = whole[name].astype(np.float64) / 255
            y = (
                x * told["outside"][:, None, None, None]
                + x[other] * (1 - told["outside"])[:, None, None, None]
            )
            for i, (t, b, le, r) in enumerate(told["box"] * factor):
                y[i, t:b, le:r] = x[other[i], t:b, le:r]
            np.testing.assert_allclose(found[name].permute(0, 2, 3, 1), y, atol=1e-6)
        kinds |= {(a < 1, o < 1) for a, o in zip(told["share"].tolist(), told["outside"].tolist())}
    assert kinds == {(False, False), (True, False), (True, True)}  # as it is, CutMix, mixup


def test_lam_of_one_is_the_picture_as_it_is(gallery: Gallery) -> None:
    whole = sampler(gallery, None).batch(0).to("cpu")
    other = sampler(gallery, None).batch(1).to("cpu")
    told = {
        "share": torch.ones(8),
        "outside": torch.ones(8),
        "rows": torch.zeros(8, 8),
        "columns": torch.zeros(8, 8),
    }
    found = mixed(whole, other, told)
    assert all(torch.equal(found[name], x) for name, x in whole.items())
    boxed = mixed(
        whole, other, told | {"share": torch.zeros(8), "rows": torch.ones(8, 8), "columns": torch.ones(8, 8)}
    )
    assert all(torch.equal(boxed[name], other[name]) for name in ("lr", "hr", "teacher/embedding"))


@pytest.mark.parametrize("mixing", [BOTH, Mixing(mixup=0.2), Mixing(cutmix=1.0)])
def test_two_workers_make_the_global_batch_of_one(gallery: Gallery, mixing: Mixing) -> None:
    source = sampler(gallery, mixing)
    for step in (0, 3, 11):
        whole = source.batch(step).to("cpu")
        parts = [source.batch(step, rank, 2).to("cpu") for rank in range(2)]
        for name, x in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), x), name
        assert torch.equal(sampler(gallery, mixing).batch(step).to("cpu")["lr"], whole["lr"])
    seen = dict(source.iterate(3, 5))
    assert torch.equal(seen[3].to("cpu")["lr"], source.batch(3).to("cpu")["lr"])


@pytest.mark.parametrize("mixing", [BOTH, None])
@pytest.mark.parametrize("lr", [("bicubic",), ("bicubic", "average", "blur_noise")])
@pytest.mark.parametrize(("single", "read"), [(2**15, 2**23), (8 * 64 * 3 * 3, 2**23), (1, 1)])
def test_batches_that_are_read_several_at_once_are_the_same(
    gallery: Gallery,
    mixing: Mixing | None,
    lr: tuple,
    single: int,
    read: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ready, "SINGLE", single)
    monkeypatch.setattr(ready, "BYTES", read)
    source = sampler(gallery, mixing, lr=lr)
    ahead = source.on(torch.device("cpu"))
    assert isinstance(ahead, ready.ReadyViews)
    assert (ahead.steps, ahead.together) == ((1, 1) if read == 1 else (8, 5 if single == 2**15 else 1))
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        for first, last in ((0, 19), (13, 40), (5, 6), (7, 7)):
            found = list(ahead.iterate(first, last, rank, world))
            assert [step for step, _ in found] == list(range(first, last))
            for step, batch in found:
                expected = source.batch(step, rank, world)
                assert batch.ids == expected.ids
                ours, theirs = batch.to("cpu"), expected.to("cpu")
                assert ours.keys() == theirs.keys()
                for name, x in theirs.items():
                    assert ours[name].dtype == x.dtype and torch.equal(ours[name], x), name
                    assert ours[name].stride() == x.stride(), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("world", [1, 2])
def test_mixed_views_that_live_on_a_device_are_the_same(gallery: Gallery, device: str, world: int) -> None:
    source = sampler(gallery)
    resident = ResidentViews(source, torch.device(device))
    for rank in range(world):
        for step in range(2, 9):
            ours = resident.batch(step, rank, world).to(device)
            theirs = source.batch(step, rank, world).to("cpu")
            assert ours.keys() == theirs.keys()
            for name, x in theirs.items():
                assert ours[name].dtype == x.dtype
                torch.testing.assert_close(ours[name].cpu(), x, rtol=0, atol=0 if device == "cpu" else 1e-6)
    if world == 1:
        several = resident.batch(20).ahead(3)
        for n in range(3):
            for name, x in resident.batch(20 + n).ahead(1).items():
                np.testing.assert_array_equal(several[name][n], x[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixing": {"share": 0.5}}, "mixing.share without mixing.mixup or mixing.cutmix"),
        ({"mixing": {"mixup": -1}}, "greater than or equal to 0"),
        ({"mixing": {"mixup": 0.2, "share": 0}}, "greater than 0"),
        ({"mixing": {"mixup": 0.2}, "task": "retrieval"}, "for classification, not for retrieval"),
        (
            {"mixing": {"cutmix": 1}, "compare": {"settings": {"rkd": {"map": 1.0}}}},
            "compare.settings.rkd.map: cached maps of mixed pictures",
        ),
        (
            {"mixing": {"cutmix": 1}, "compare": {"variants": {"m": {"name": "rkd", "map": 1.0}}}},
            "compare.variants.m.map: cached maps of mixed pictures",
        ),
    ],
)
def test_mixing_that_does_not_fit_is_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recognition.model_validate(content(tmp_path, **changes))
    assert words in str(caught.value)


def test_without_mixing_a_recipe_is_what_it_was(tmp_path: Path) -> None:
    assert "mixing" not in Recognition.model_validate(content(tmp_path)).model_dump()
    dumped = Recognition.model_validate(content(tmp_path, mixing={"mixup": 0.2})).model_dump(mode="json")
    assert dumped["mixing"] == {"mixup": 0.2, "cutmix": 0.0, "share": 1.0}
