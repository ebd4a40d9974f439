"""A damaged file is found before it is used, named, set aside and made again: the run ends as it ended before."""

from __future__ import annotations

from pathlib import Path

import pytest
from mending_kit import damages, faculty_run, recognition, super_resolution, tensors, trial

MAKERS = {"super_resolution": super_resolution, "recognition": recognition}


@pytest.fixture(scope="module", params=sorted(MAKERS))
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that nothing disturbed."""
    root = MAKERS[request.param](tmp_path_factory.mktemp("whole") / "place")
    code, said = faculty_run(root)
    assert code == 0, said
    return root


def test_a_few_damages_are_mended(whole: Path, tmp_path: Path) -> None:
    for rel, how, seed in damages(whole, 6, 2, seed=1):
        trial(whole, tmp_path / "place", rel, how, seed)


@pytest.mark.slow
def test_eighty_damages_over_every_kind_of_file_are_mended(whole: Path, tmp_path: Path) -> None:
    """60 single bits flipped and 20 files cut short; the kinds are those that are on disk."""
    assert tensors(whole)
    failed = []
    for rel, how, seed in damages(whole, 60, 20, seed=0):
        try:
            trial(whole, tmp_path / "place", rel, how, seed)
        except AssertionError as error:
            failed.append(str(error)[:600])
    assert not failed, f"{len(failed)} of 80:\n" + "\n\n".join(failed)
