"""Masks, arrays, names and identities as people really have them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import natural_picture
from layout_kit import recipe, refused, shards
from PIL import Image

from pipeline.tasks.recognition.layouts import find
from pipeline.tasks.recognition.masks import read_mask
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.settings import RecognitionData
from pipeline.tasks.recognition.splits import split

BOX = np.zeros((8, 8), np.uint8)
BOX[2:5, 1:7] = 1


def mask_file(kind: str, path: Path) -> str:
    if kind in ("labels in colours", "grey palette"):
        file = Image.fromarray(BOX if kind == "labels in colours" else 255 * BOX, "P")
        colours = (
            [0, 0, 0, 128, 0, 0] if kind == "labels in colours" else [v for v in range(256) for _ in range(3)]
        )
        file.putpalette(colours)
    else:
        values = {
            "0 and 255": 255 * BOX,
            "labels 0 and 1": BOX,
            "16 bits": BOX.astype(np.uint16) * 65535,
            "16 bits, faint": BOX.astype(np.uint16) * 300,
            "grey edges": 127 * BOX,
            "1 bit": BOX.astype(bool),
            "empty": 0 * BOX,
        }
        file = Image.fromarray(values[kind])
    file.save(path)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "defect"),
    [
        ("0 and 255", True),
        ("labels 0 and 1", True),
        ("labels in colours", True),
        ("grey palette", True),
        ("16 bits", True),
        ("1 bit", True),
        ("16 bits, faint", False),
        ("grey edges", False),
        ("empty", False),
    ],
)
def test_masks_of_every_kind_show_the_same_defect(tmp_path: Path, kind: str, defect: bool) -> None:
    found = read_mask(mask_file(kind, tmp_path / "m.png"), 8, 8)
    np.testing.assert_array_equal(found, (BOX > 0) & defect)


@pytest.mark.parametrize("keep", [0, 60])
def test_a_damaged_mask_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(natural_picture(32, 32, 0)[:, :, 0]).save(path)
    path.write_bytes(path.read_bytes()[:keep] or b"no picture")
    refused(lambda: read_mask(str(path), 32, 32), "m.png", "a complete picture")


def test_folders_whose_names_look_like_places_in_arrays(tmp_path: Path) -> None:
    for number, name in enumerate(("std::vector", "x::y::3", "plain")):
        for i in range(4):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(16, 16, 10 * number + i)).save(path)
    store, found, plan = shards(recipe(tmp_path))
    assert plan.classes == ("plain", "std::vector", "x::y::3")
    assert sum(len(Gallery(store, m)) for m in found.values()) == 12


def arrays(path: Path, **changed: np.ndarray) -> RecognitionData:
    pictures = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    np.savez(path, **{"x": pictures, "y": np.arange(12) % 3, **changed})
    return RecognitionData(layout="npz", root=str(path), size=8)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"x": np.zeros((0, 8, 8), np.uint8), "y": np.zeros(0, int)}, ("d.npz: x", "(0, 8, 8)")),
        ({"y": np.zeros(0, int)}, ("d.npz: y", "(0,)")),
        ({"x": np.array(5)}, ("d.npz: x", "()")),
    ],
)
def test_empty_arrays_are_refused_by_their_names(
    tmp_path: Path, changed: Any, words: tuple[str, ...]
) -> None:
    data = arrays(tmp_path / "d.npz", **changed)
    refused(lambda: find(data), *words)


def test_files_that_are_no_npz_are_refused_by_their_names(tmp_path: Path) -> None:
    whole = tmp_path / "d.npz"
    data = arrays(whole)
    single = io.BytesIO()
    np.save(single, np.zeros(3))
    for content in (whole.read_bytes()[: whole.stat().st_size // 2], single.getvalue(), b"", b"text"):
        whole.write_bytes(content)
        refused(lambda: find(data), "d.npz", "plain arrays in an npz file")


def test_test_pictures_have_cameras_of_their_own(tmp_path: Path) -> None:
    sides = {
        "xt": np.random.default_rng(1).integers(0, 256, (4, 8, 8), np.uint8),
        "yt": np.array([3, 3, 4, 4]),
    }
    cameras = {"c": np.arange(12) % 2, "ct": np.array([5, 6, 5, 6])}
    arrays(tmp_path / "d.npz", **sides, **cameras)
    keys = {"layout": "npz", "root": str(tmp_path / "d.npz"), "test_images": "xt", "test_labels": "yt"}
    found = find(
        RecognitionData.model_validate({**keys, "camera": "c", "test_camera": "ct"}), identities=True
    )
    assert [i.camera for i in found.items if i.role == "test"] == [5, 6, 5, 6]
    with pytest.raises(ValueError, match="name theirs, test_camera"):
        RecognitionData.model_validate({**keys, "camera": "c"})
    with pytest.raises(ValueError, match="test_camera without test_images"):
        RecognitionData.model_validate({"layout": "npz", "root": "d.npz", "camera": "c", "test_camera": "ct"})


def people(root: Path, counts: list[int], **data: Any) -> RecognitionData:
    for person, count in enumerate(counts):
        for i in range(count):
            path = root / "data" / f"p{person}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(16, 16, 10 * person + i)).save(path)
    base = {"layout": "folders", "root": str(root / "data"), "size": 16, "split": "identities"}
    return RecognitionData.model_validate({**base, **data})


@pytest.mark.parametrize(
    ("counts", "data", "words"),
    [
        ([3, 3, 3, 3, 3], {}, ("two identities to train on", "found 1", "two at least are held out")),
        ([3, 3, 3, 3], {}, ("two identities to train on", "found 0")),
        ([1] * 12, {}, ("for the val set", "one of them with two pictures", "2 of 2 pictures")),
        ([3] * 5, {"fold": (1, 5)}, ("for the test set", "1 of 3 pictures", "fewer folds")),
    ],
)
def test_people_who_cannot_be_compared_are_refused_before_anything_is_trained(
    tmp_path: Path, counts: list[int], data: dict, words: tuple[str, ...]
) -> None:
    settings = people(tmp_path, counts, **data)
    refused(lambda: split(find(settings, True), settings, identities=True), *words)


def test_a_class_that_a_fold_leaves_empty_is_not_told_of_settings_without_effect(tmp_path: Path) -> None:
    settings = people(tmp_path, [1, 4, 4], split="pictures", fold=(2, 2))
    refused(lambda: split(find(settings), settings), "class 'p0' to train on", "Give it more pictures")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"layout": "market1501"}}, "which classification cannot name"),
        ({"teacher": {"checkpoint": "a.th", "train": {"steps": 2}}}, "`train` or `checkpoint`, not both"),
        ({"teacher": {"timm": "resnet18", "pretrained": True}}, "`train` or `timm`, not both"),
        ({"teacher": {"input": {"size": 64}}}, "`input` is for a teacher made elsewhere"),
        ({"teacher": {"classes": ["a", "b"]}}, "`classes` is for a teacher made elsewhere"),
        (
            {
                "fusion": {"weights": {"a": 3}},
                "teacher": {"train": None},
                "teachers": [{"checkpoint": p} for p in "ab"],
            },
            "fusion.weights goes with fusion.kind: weighted, found mean",
        ),
        ({"seed": 2**62}, "seed"),
    ],
)
def test_settings_without_effect_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        recipe(tmp_path, **changes)
    assert words in str(caught.value)
