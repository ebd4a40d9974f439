"""Layouts, splits and shards of recognition, and every bad input that they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import natural_picture
from layout_kit import class_folders, recipe, refused, shards
from PIL import Image

from pipeline.tasks.recognition import pictures as picturing
from pipeline.tasks.recognition.layouts import find, market_name
from pipeline.tasks.recognition.masks import read_mask
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.settings import RecognitionData
from pipeline.tasks.recognition.splits import split


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return class_folders(tmp_path)


def test_a_folder_per_class_becomes_three_splits_without_overlap(folders: Path) -> None:
    settings = recipe(folders)
    store, found, plan = shards(settings)
    assert plan.classes == ("cat", "dog", "owl")
    galleries = {name: Gallery(store, m) for name, m in found.items()}
    ids = [set(g.ids) for g in galleries.values()]
    assert sum(map(len, ids)) == 24 == len(set.union(*ids))
    for gallery in galleries.values():
        assert set(gallery.labels) == {0, 1, 2}
    assert len(found["train"].shards) > 1
    again = picturing.plan(settings, store)
    assert not again.steps and again.fingerprints == plan.fingerprints


@pytest.mark.parametrize("aside", ["pictures", "identities"])
def test_folds_test_every_picture_once(folders: Path, aside: str) -> None:
    def parts(fold: tuple[int, int]) -> dict[str, set[str]]:
        data = recipe(folders).data.model_copy(update={"fold": fold, "split": aside})
        found = split(find(data), data, identities=False)
        return {name: {i.id for i in items} for name, items in found.items()}

    whole = {i.id for i in find(recipe(folders).data).items}
    tested = [parts((k, 3)) for k in (1, 2, 3)]
    assert set.union(*(p["test"] for p in tested)) == whole
    assert sum(len(p["test"]) for p in tested) == len(whole)
    for fold in tested:
        assert not fold["test"] & (fold["train"] | fold["val"]) and set.union(*fold.values()) == whole
    for wrong in ([0, 3], [4, 3], [1, 1]):
        with pytest.raises(ValueError):
            RecognitionData(fold=wrong)
    with pytest.raises(ValueError, match="test set of their own"):
        RecognitionData(layout="npz", test_images="x_test", fold=(1, 2))


def test_one_more_picture_moves_no_picture_of_another_class(folders: Path) -> None:
    def others() -> dict[str, set[str]]:
        settings = recipe(folders)
        parts = split(find(settings.data), settings.data)
        return {name: {i.id for i in items if i.label != "owl"} for name, items in parts.items()}

    before, (_, first, _) = others(), shards(recipe(folders))
    Image.fromarray(natural_picture(20, 20, 99)).save(folders / "data/owl/new.png")
    assert others() == before
    assert shards(recipe(folders))[1]["train"].fingerprint != first["train"].fingerprint


def test_the_same_picture_twice_is_left_out_and_refused_under_another_label(folders: Path) -> None:
    data = (folders / "data/cat/0.png").read_bytes()
    (folders / "data/cat/copy.png").write_bytes(data)
    found = find(recipe(folders).data)
    assert len(found.items) == 24 and [
        ("2 copies" in t or "1 copies" in t, "duplicate" in t) for t in found.left_out[:2]
    ] == [
        (True, False),
        (False, True),
    ]
    (folders / "data/dog/copy.png").write_bytes(data)
    refused(lambda: find(recipe(folders).data), "dog", "label of the same picture")


def test_a_class_without_pictures_is_refused(folders: Path, tmp_path: Path) -> None:
    (folders / "data" / "yak").mkdir()
    refused(lambda: find(recipe(folders).data), "yak", "pictures of this class")
    data = RecognitionData(root=str(folders / "data"), layout="folders", classes=("cat", "dog", "owl", "emu"))
    (folders / "data" / "yak").rmdir()
    refused(lambda: find(data), "'emu'", "none of it")
    one = tmp_path / "one" / "cat"
    one.mkdir(parents=True)
    Image.fromarray(natural_picture(16, 16, 0)).save(one / "a.png")
    refused(lambda: find(RecognitionData(layout="folders", root=str(one.parent))), "two classes")


def test_a_class_that_keeps_no_picture_to_train_on_is_refused() -> None:
    from pipeline.tasks.recognition.layouts import Found, Item

    items = [Item(f"{i:016x}", f"p{i}", "a" if i < 9 else "b", "") for i in range(10)]
    parts = split(Found(tuple(items), ("a", "b")), RecognitionData())
    assert [i.label for i in parts["train"]].count("b") == 1  # a single picture is trained on, not tested on
    own = [Item(i.id, i.name, i.label, "", role="test" if i.label == "b" else "train") for i in items]
    refused(lambda: split(Found(tuple(own), ("a", "b")), RecognitionData()), "class 'b'")


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def test_npz_arrays_with_their_own_test_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = npz(
        tmp_path / "a.npz",
        x=rng.integers(0, 256, (12, 16, 16, 3), np.uint8),
        y=np.arange(12) % 3,
        xt=rng.integers(0, 256, (6, 16, 16, 3), np.uint8),
        yt=np.arange(6) % 3,
    )
    data = {"layout": "npz", "root": file, "test_images": "xt", "test_labels": "yt", "holdout": 0.3}
    settings = recipe(tmp_path, data=data)
    store, found, _ = shards(settings)
    assert found["test"].rows == 6 and found["train"].rows == 9 and found["val"].rows == 3
    gallery = Gallery(store, found["test"])
    with np.load(file) as arrays:
        stored = {a.tobytes() for a in gallery.hr(np.arange(6))}
        assert stored == {a.tobytes() for a in arrays["xt"]}


def test_labels_out_of_range_and_other_bad_arrays_are_refused(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)

    def read(identities: bool = False, classes: tuple = (), **arrays: np.ndarray) -> None:
        file = npz(tmp_path / "bad.npz", **{"x": x, **arrays})
        find(RecognitionData(layout="npz", root=file, classes=classes), identities)

    refused(lambda: read(y=np.array([0, 1, 2, 0, 1, 7]), classes=("a", "b", "c")), "labels 0..2", "7")
    refused(lambda: read(y=np.array([0, 1, 3, 0, 1, 3])), "every class 0..3", "none of 2")
    refused(lambda: read(y=np.array([0, 1, -1, 0, 1, 0])), "labels from 0", "-1")
    refused(lambda: read(y=np.zeros(5, int)), "(6,) integers")
    refused(lambda: read(y=np.zeros(6)), "integers", "float64")
    refused(lambda: read(), "one of the arrays", "'y'")
    read(True, y=np.array([3, 9, 3, 9, 3, 9]))  # identities may have any numbers
    file = tmp_path / "pickled.npz"
    np.savez(file, x=np.array([{}], dtype=object), y=np.zeros(1, int))
    refused(lambda: find(RecognitionData(layout="npz", root=str(file))), "plain arrays")


def test_market_names_roles_and_junk(tmp_path: Path) -> None:
    assert market_name(Path("0002_c1s1_000451_03.jpg")) == ("0002", 1)
    refused(lambda: market_name(Path("person.jpg")), "0002_c1s1_000451_03.jpg")
    names = {
        "bounding_box_train": [f"000{n}_c{c}s1_00000{n}_0{c}" for n in range(1, 5) for c in (1, 2)],
        "query": ["0007_c1s1_000004_00", "0008_c1s1_000004_00"],
        "bounding_box_test": [
            "0007_c2s1_000005_01",
            "0008_c3s1_000006_01",
            "-1_c3s1_000007_01",
            "0000_c3s1_000008_01",
        ],
    }
    for number, (folder, files) in enumerate(names.items()):
        for i, name in enumerate(files):
            path = tmp_path / "data" / folder / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(32, 16, 10 * number + i)).save(path)
    data = {"layout": "market1501", "size": [32, 16], "holdout": 0.5}
    store, found, plan = shards(recipe(tmp_path, task="retrieval", data=data))
    assert len(plan.classes) == 2 and set(plan.classes) < {"0001", "0002", "0003", "0004"}
    seen = {name: set(Gallery(store, m).labels) for name, m in found.items()}
    assert seen["train"] == {0, 1} and not seen["train"] & seen["val"] and not seen["val"] & seen["test"]
    gallery = Gallery(store, found["test"])
    everything = np.arange(len(gallery))
    assert len(gallery) == 5  # the junk picture is left out, the distractor stays
    assert sorted(gallery.rows.take("role", everything)) == [1, 1, 2, 2, 2]
    assert sorted(gallery.rows.take("camera", everything)) == [1, 1, 2, 3, 3]
    assert gallery.labels.min() == 2  # people who are not trained on come after those who are


def test_real_market_names(shared: Path) -> None:
    files = sorted((shared / "data/recognition/market1501_samples").glob("*.jpg"))
    assert [market_name(f) for f in files] == [
        ("0022", 6),
        ("0027", 2),
        ("0032", 6),
        ("0048", 1),
        ("0065", 6),
    ]


def mask_set(root: Path) -> Path:
    for folder, defect in (("ok", False), ("crack", True)):
        for i in range(6):
            path = root / "data" / folder / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(natural_picture(32, 24, 7 * i + defect)).save(path, quality=95)
            mask = np.zeros((32, 24), np.uint8)
            if defect:
                mask[8:24, 6:18] = 255
                mask[7, 6:18], mask[24, 6:18] = 128, 127  # grey edges: above 127 is defect, 127 is not
            Image.fromarray(mask).save(path.with_name(f"{i}_mask.png"))
    return root


def test_masks_are_binary_and_empty_ones_are_pictures_without_defect(tmp_path: Path) -> None:
    mask_set(tmp_path)
    truth = read_mask(str(tmp_path / "data/crack/0_mask.png"), 32, 24)
    assert truth.sum() == 17 * 12 and truth[7, 6] and not truth[24, 6]
    data = {"layout": "masks", "size": [32, 24]}
    store, found, _ = shards(recipe(tmp_path, task="segmentation", data=data))
    gallery = Gallery(store, found["train"])
    masks = gallery.masks(np.arange(len(gallery)))
    assert set(np.unique(masks)) == {0, 255}
    assert {int((m > 0).sum()) for m in masks} == {0, 17 * 12}
    half = {"layout": "masks", "size": [16, 12]}
    store, found, _ = shards(recipe(tmp_path, task="segmentation", data=half))
    assert Gallery(store, found["train"]).masks(np.arange(1)).shape == (1, 16, 12, 1)


def test_a_mask_of_another_size_or_absent_is_refused(tmp_path: Path) -> None:
    mask_set(tmp_path)
    Image.fromarray(np.zeros((32, 25), np.uint8)).save(tmp_path / "data/ok/3_mask.png")
    data = {"layout": "masks", "size": [32, 24]}
    refused(lambda: shards(recipe(tmp_path, task="segmentation", data=data)), "3_mask.png", "24x32", "25x32")
    (tmp_path / "data/ok/3_mask.png").unlink()
    refused(lambda: find(recipe(tmp_path, task="segmentation", data=data).data), "its mask")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gap": 8}, "leaves 2x2 pixels"),
        ({"gap": 5}, "gap must be one of"),
        ({"gap": 3}, "multiple of gap"),
        ({"gap": [2, 2]}, "different values"),
        ({"task": "segmentation"}, "does not go with data.layout"),
        ({"teacher": {"train": None}}, "a `checkpoint`"),
        ({"teacher": {"train": None, "pretrained": True}}, "`train` too"),
        ({"teacher": {"checkpoint": "a.pth", "pretrained": True}}, "not both"),
        ({"sampling": {"identities": 3, "pictures": 2}}, "must be sampling.identities x"),
        ({"sampling": {"identities": 1, "pictures": 2}}, "greater than or equal to 2"),
        ({"data": {"split": "identities"}}, "must be known"),
        ({"method": {"name": "rkd", "map": 1.0}}, "cache.features: map"),
        ({"compare": {"settings": {"kd": {"tau": 4}}}}, "tau"),
        ({"task": "detection"}, "classification"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        recipe(tmp_path, **changes)
    assert words in str(caught.value)
