"""Several ways in which LR arises: each against a second computation, and which of them a sample has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import natural_picture
from recognition_kit import content, picture_folder
from scipy import ndimage, stats

from pipeline.cache.order import words
from pipeline.cache.store import Store
from pipeline.tasks.recognition import degradations, pictures
from pipeline.tasks.recognition.answers import given
from pipeline.tasks.recognition.degradations import noise_name, student_pictures
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.resident import ResidentViews
from pipeline.tasks.recognition.sampler import Gallery, ViewSampler
from pipeline.tasks.recognition.settings import Mixing, Views
from pipeline.tasks.recognition.views import draw, enlarge, see

ALL = ["bicubic", "average", "blur_noise"]
VIEWS = Views(count=3, shift=2, flip=True)


def settings(root: Path, **changes: Any) -> Recognition:
    data = {"layout": "folders", "root": str(root / "data"), "size": 16, "views": VIEWS.model_dump()}
    return Recognition.model_validate(content(root, **{"data": data, "lr": ALL, **changes}))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    root = tmp_path_factory.mktemp("degradations")
    picture_folder(root, 3, 10)
    recipe = settings(root)
    store = Store.open(recipe.cache.root)
    plan = pictures.plan(recipe, store)
    return Gallery(store, plan.manifest("train", dict(plan.kept) | {t.key: t.run() for t in plan.steps}))


def sampler(gallery: Gallery, **options: Any) -> ViewSampler:
    return ViewSampler(gallery, **({"batch": 8, "seed": 5, "gap": 2, "views": VIEWS, "lr": ALL} | options))


def photographs(height: int = 48, width: int = 24) -> np.ndarray:
    return np.stack([natural_picture(height, width, n) for n in range(3)])


@pytest.mark.parametrize("gap", [2, 3, 4, 8])
def test_an_average_is_the_mean_of_a_square(gap: int) -> None:
    hr = photographs()
    found = student_pictures(hr, gap, False, "average")
    squares = hr.reshape(3, 48 // gap, gap, 24 // gap, gap, 3).astype(np.int64).sum((2, 4))
    np.testing.assert_array_equal(found, (2 * squares + gap**2) // (2 * gap**2))  # halves go up


@pytest.mark.parametrize("gap", [2, 3, 4])
def test_a_blur_is_scipys_gaussian_at_every_gap_th_point(gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degradations, "_noise", lambda names, shape: np.zeros(shape, np.int64))
    hr = photographs()
    found = student_pictures(hr, gap, False, "blur_noise").astype(np.float64)
    # Points between pixels: of pictures with every pixel 2 x 2 times; its own blur is taken off the deviation.
    fine = hr.repeat(2, 1).repeat(2, 2).astype(np.float64)
    deviation = np.sqrt((2 * 0.5 * gap) ** 2 - 3 / 12)
    soft = ndimage.gaussian_filter(fine, (0, deviation, deviation, 0), mode="reflect", truncate=3)
    at = soft[:, gap - 1 :: 2 * gap] + soft[:, gap :: 2 * gap]
    expected = (at[:, :, gap - 1 :: 2 * gap] + at[:, :, gap :: 2 * gap]) / 4
    assert np.abs(found - expected).max() < 2.0 and np.abs(found - expected).mean() < 0.5
    flat = np.full((1, 16 * gap, 8 * gap, 3), 77, np.uint8)
    assert (student_pictures(flat, gap, False, "blur_noise") == 77).all()


def test_noise_is_seeded_and_has_the_deviation_that_it_says() -> None:
    grey = np.full((2, 256, 256, 3), 128, np.uint8)
    names = [noise_name(VIEWS, "a", 1), noise_name(VIEWS, "b", 1)]
    found = student_pictures(grey, 4, False, "blur_noise", names)
    noise = found.astype(np.float64) - 128
    assert noise.std() == pytest.approx(8, rel=0.02) and abs(noise.mean()) < 0.15
    assert abs(stats.kurtosis(noise, axis=None)) < 0.2
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(student_pictures(grey[:1], 4, False, "blur_noise", names[1:])[0], found[1])
    others = [noise_name(VIEWS, "a", 2), noise_name(Views(seed=1), "a", 1)]
    for name in others:
        assert (student_pictures(grey[:1], 4, False, "blur_noise", [name])[0] != found[0]).mean() > 0.9
    dark = student_pictures(np.zeros_like(grey), 4, False, "blur_noise", names)
    assert 0.4 < (dark == 0).mean() < 0.6  # cut off, not wrapped


@pytest.mark.parametrize("enlarged", [False, True])
def test_each_sample_has_one_of_them_drawn_by_its_number(gallery: Gallery, enlarged: bool) -> None:
    source = sampler(gallery, enlarged=enlarged)
    numbers, _ = sampler(gallery, lr=["bicubic"]).where(0, steps=40)
    views = sampler(gallery, lr=["bicubic"]).where(0, steps=40)[1]
    low = words(5, 0, 320)[0] & np.uint64(0xFFFFFFFF)
    kinds = [ALL[int(word) * 3 >> 32] for word in low]
    assert all(80 < kinds.count(kind) < 135 for kind in ALL)
    for step in range(8):
        found = source.batch(step).tensors["lr"]
        for i in range(8):
            n = step * 8 + i
            name = gallery.ids[numbers[n]]
            hr = see(gallery.hr(numbers[n : n + 1]), [draw(VIEWS, name, int(views[n]))])
            named = [noise_name(VIEWS, name, int(views[n]))]
            lr = student_pictures(hr, 2, False, kinds[n], named)  # type: ignore[arg-type]
            np.testing.assert_array_equal(found[i], (enlarge(lr, 2) if enlarged else lr)[0])
        parts = [source.batch(step, rank, 2).tensors["lr"] for rank in range(2)]
        np.testing.assert_array_equal(np.concatenate(parts), found)
    # A training with one of them alone sees the same pictures in the same views.
    single = sampler(gallery, lr=["average"]).batch(0)
    assert single.ids == source.batch(0).ids


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_on_a_device_they_are_the_same(gallery: Gallery, device: str) -> None:
    source = sampler(gallery, columns=("lr", "hr", "label"), mixing=Mixing(cutmix=1.0))
    resident = ResidentViews(source, torch.device(device))
    for step in range(6):
        ours, theirs = resident.batch(step).to(device), source.batch(step).to("cpu")
        for name, x in theirs.items():
            torch.testing.assert_close(ours[name].cpu(), x, rtol=0, atol=0 if device == "cpu" else 1e-6)


def test_tests_are_taken_under_the_first(gallery: Gallery, tmp_path: Path) -> None:
    numbers = np.arange(4)
    hr = gallery.hr(numbers)
    np.testing.assert_array_equal(
        given(gallery, numbers, settings(tmp_path), 2), student_pictures(hr, 2, False)
    )
    np.testing.assert_array_equal(given(gallery, numbers, settings(tmp_path), 1), hr)
    noisy = settings(tmp_path, lr=["blur_noise", "bicubic"])
    names = [noise_name(VIEWS, gallery.ids[n], 0) for n in numbers]
    expected = student_pictures(hr, 2, False, "blur_noise", names)
    np.testing.assert_array_equal(given(gallery, numbers, noisy, 2), expected)
    np.testing.assert_array_equal(given(gallery, numbers[2:], noisy, 2), expected[2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": "nearest"}, "'bicubic', 'average' or 'blur_noise'"),
        ({"lr": []}, "one or several different degradations"),
        ({"lr": ["average", "average"]}, "one or several different degradations"),
        ({"lr": "average", "gap": [1, 2]}, "lr: at a gap of 1 pictures stay as they are"),
        ({"lr": "bicubic", "lr_scored": ["average"], "gap": 1}, "lr_scored: at a gap of 1 pictures stay"),
        ({"lr_scored": ["bicubic"]}, "lr_scored: bicubic is what every figure is of already"),
    ],
)
def test_degradations_that_make_no_sense_are_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        settings(tmp_path, **changes)
    assert message in str(caught.value)


def test_the_one_of_before_is_in_no_dump(tmp_path: Path) -> None:
    assert "lr" not in settings(tmp_path, lr="bicubic").model_dump()
    assert settings(tmp_path).model_dump(mode="json")["lr"] == ALL
    assert settings(tmp_path, lr="average").degradations == ("average",)
    both = settings(tmp_path, lr=["average", "bicubic"], lr_scored=["blur_noise", "bicubic"])
    assert both.other_degradations == ("bicubic", "blur_noise")
