"""The evaluation protocol against published bicubic rows, and its errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.degrade import downscale, modcrop
from pipeline.deploy.evaluate import PictureScore, bicubic, evaluate, load_set
from pipeline.errors import FacultyError, InputError
from pipeline.metrics import psnr_y, ssim_y


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "Tiny" / "HR"
    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, (height, width) in {"b": (47, 40), "a": (33, 50)}.items():
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(root / f"{name}.png")
    return root


def test_a_set_is_named_by_its_folder_and_hr_by_its_parent(folder: Path) -> None:
    assert load_set(folder, 2).name == "Tiny"
    other = folder.rename(folder.parent / "Other")
    assert load_set(other, 2).name == "Other"
    assert [Path(path).name for _, path in load_set(other, 2).pictures] == ["a.png", "b.png"]


def test_scores_are_the_mean_over_pictures_with_scale_pixels_shaved(folder: Path) -> None:
    scores: list[PictureScore] = []
    result = evaluate(bicubic(3), [load_set(folder, 3)], 3, on_picture=scores.append)
    expected = []
    for name in ("a.png", "b.png"):
        hr = modcrop(np.asarray(Image.open(folder / name)), 3)
        lr = torch.from_numpy(downscale(hr, 3)).permute(2, 0, 1)[None].float() / 255
        sr = (bicubic(3)(lr)[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
        expected.append((psnr_y(sr, hr, 3), ssim_y(sr, hr, 3)))
    assert np.array([(s.psnr_y, s.ssim_y) for s in scores]) == pytest.approx(np.array(expected))
    psnr, ssim = np.mean(expected, axis=0)
    assert result == {"Tiny": {"images": 2, "psnr_y": pytest.approx(psnr), "ssim_y": pytest.approx(ssim)}}


def test_a_model_of_another_scale_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="another scale"):
        evaluate(bicubic(2), [load_set(folder, 3)], 3)


def test_non_finite_predictions_are_refused(folder: Path) -> None:
    with pytest.raises(FacultyError, match="non-finite"):
        evaluate(lambda lr: bicubic(2)(lr) * torch.nan, [load_set(folder, 2)], 2)


def test_two_sets_of_one_name_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="one name"):
        evaluate(bicubic(2), [load_set(folder, 2)] * 2, 2)


def test_pictures_too_small_for_ssim_are_refused(folder: Path) -> None:
    Image.new("RGB", (15, 40)).save(folder / "small.png")
    with pytest.raises(InputError, match="small"):
        load_set(folder, 2)


@pytest.mark.parametrize(
    ("scale", "psnr", "ssim"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)]
)
def test_bicubic_row_of_set5(shared: Path, scale: int, psnr: float, ssim: float) -> None:
    row = evaluate(bicubic(scale), [load_set(shared / "data/sr/Set5/HR", scale)], scale)["Set5"]
    assert row["images"] == 5
    assert row["psnr_y"] == pytest.approx(psnr, abs=0.02)
    assert row["ssim_y"] == pytest.approx(ssim, abs=0.001)


def test_bicubic_row_of_bsd100(shared: Path) -> None:
    row = evaluate(bicubic(2), [load_set(shared / "data/sr/BSD100/HR", 2)], 2)["BSD100"]
    assert row["images"] == 100
    assert row["psnr_y"] == pytest.approx(29.56, abs=0.02)
    assert row["ssim_y"] == pytest.approx(0.8431, abs=0.001)
