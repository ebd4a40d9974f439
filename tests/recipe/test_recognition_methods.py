"""Defaults of recognition's methods: of classes, and of masks."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.recipe.reading import with_method
from pipeline.tasks.recognition.recipe import Recognition

MASKS = {"task": "segmentation", "data": {"layout": "masks", "root": "."}}
CLASSES = {"task": "classification"}


def recipe(of: dict[str, Any], **content: Any) -> Recognition:
    train = {"steps": 1}
    return Recognition.model_validate(
        {"name": "x", "teacher": {"train": train}, "train": train, **of, **content}
    )


@pytest.mark.parametrize(
    ("of", "contrast", "distances"), [(CLASSES, 1.0, 2.0), (MASKS, 0.0, 0.7)], ids=["classes", "masks"]
)
def test_who_answers_pixels_need_not_tell_pictures_apart(
    of: dict[str, Any], contrast: float, distances: float
) -> None:
    own: Any = recipe(of, method={"name": "rkd"}).method
    assert (own.contrast, own.distances) == (contrast, distances)
    named = {"variants": {"v": {"name": "rkd", "distances": 4.0}}, "settings": {"horkd": {"order3": 5.0}}}
    kd = recipe(of, method={"name": "kd"}, compare={"methods": ["rkd", "horkd", "v"], **named})
    compared: Any = with_method(kd, "rkd").method
    assert compared == own
    variant: Any = with_method(kd, "v").method
    assert (variant.contrast, variant.distances) == (contrast, 4.0)
    horkd: Any = with_method(kd, "horkd").method
    assert (horkd.contrast, horkd.order2, horkd.order3) == (contrast, distances, 5.0)


def test_what_a_recipe_says_stands() -> None:
    asked: Any = recipe(MASKS, method={"name": "rkd", "contrast": 3.0}).method
    assert (asked.contrast, asked.distances) == (3.0, 0.7)
