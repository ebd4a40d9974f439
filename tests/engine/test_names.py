"""Names that users give, in MLflow's space: one to one, whatever they hold."""

from __future__ import annotations

import itertools
import re

import pytest

from pipeline.engine.names import legal
from pipeline.engine.records import image, metrics

np = pytest.importorskip("numpy")
validation = pytest.importorskip("mlflow.utils.validation")

SETS = ("测试集一", "测试集二", "Set (a)", "Set [a]")


def read(spelled: str) -> str:
    """The name that was spelled."""
    return re.sub(r"_x([0-9A-F]{4,6})_", lambda m: chr(int(m[1], 16)), spelled)


def test_chinese_names_stay_and_no_two_sets_share_a_metric() -> None:
    names = list(metrics({f"{name}/psnr_y": 30.0 for name in SETS}, 0).values)
    assert names == [
        "测试集一/psnr_y",
        "测试集二/psnr_y",
        "Set _x0028_a_x0029_/psnr_y",
        "Set _x005B_a_x005D_/psnr_y",
    ]


def test_every_short_name_is_taken_and_can_be_read_back() -> None:
    parts = ["a", "_", "x", "_x", "0028", "(", "/", ".", "-", " ", "一", "\U0001f600", "\udce9", ":"]
    seen: dict[str, str] = {}
    for length in range(1, 6):
        for letters in itertools.product(parts, repeat=length):
            name = "".join(letters)
            spelled = legal(name)
            assert seen.setdefault(spelled, name) == name
    for spelled, name in seen.items():
        assert read(spelled) == name
        validation._validate_metric_name(spelled)


def test_usual_names_stay_as_they_are() -> None:
    for name in (
        "train/loss",
        "held_out/psnr_y",
        "edsr_x2/psnr_y",
        "x2_0",
        "benchmark/Set5/psnr_y",
        "a_x2_b c.d-e",
    ):
        assert legal(name) == name


def test_long_names_that_differ_at_the_end_alone_stay_two() -> None:
    first, second = (legal("测" * 300 + end) for end in "ab")
    assert first != second and max(len(first), len(second)) <= 250
    validation._validate_metric_name(first)


def test_pictures_names_are_ascii_and_one_to_one() -> None:
    shown = np.zeros((2, 2, 3), np.uint8)
    names = [image(name, shown, 0).name for name in SETS]
    assert len(set(names)) == 4 and all(re.fullmatch(r"[a-zA-Z0-9_\-./ ]+", name) for name in names)
    assert [read(name) for name in names] == list(SETS)
