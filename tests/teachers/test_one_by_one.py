"""Teachers that take one picture at a time, and options of one's own that are long texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.tasks.super_resolution.teach import one_by_one
from teachers.factory import sha256


def test_a_teacher_of_one_picture_at_a_time_is_given_one_at_a_time() -> None:
    def shy(x: Tensor) -> Tensor:
        if len(x) > 1:
            raise RuntimeError("The size of tensor a (12) must match the size of tensor b (0)")
        return 2 * x

    x = torch.rand(3, 3, 4, 4)
    assert torch.equal(one_by_one(shy, x), 2 * x)


def test_what_fails_for_one_picture_fails() -> None:
    tried: list[int] = []

    def broken(x: Tensor) -> Tensor:
        tried.append(len(x))
        raise RuntimeError("no")

    for error, most in ((RuntimeError, [3, 1]), (torch.OutOfMemoryError, [])):
        tried.clear()
        with pytest.raises(error):
            one_by_one(broken if error is RuntimeError else full, torch.rand(3, 3, 4, 4))
        assert tried == most


def full(x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("full")


def test_a_long_text_among_the_options_of_a_factory_is_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long_texts.py").write_text("def make(prompt):\n    return prompt\n")
    monkeypatch.syspath_prepend(tmp_path)
    one, other = (sha256("long_texts:make", {"prompt": 300 * letter}) for letter in "ab")
    assert one != other
