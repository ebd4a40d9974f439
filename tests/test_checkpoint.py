"""Checkpoints: complete or absent, intact or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import checkpoint
from pipeline.errors import FacultyError, InputError
from pipeline.shards.store import Store


def state(value: float) -> dict:
    return {"weights": torch.full((3,), value)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "run")
    for step in (10, 20, 30):
        checkpoint.save(store, step, state(step), fingerprint="f", keep=2)
    return store


def test_the_newest_is_read_and_only_as_many_as_asked_for_are_kept(store: Store) -> None:
    step, found = checkpoint.load_latest(store, fingerprint="f")
    assert step == 30 and found["weights"].tolist() == [30.0] * 3
    assert checkpoint.steps(store) == [20, 30]


def test_a_file_without_its_record_is_not_a_checkpoint(store: Store) -> None:
    store.write_bytes("step-000000040.pt", b"half of a checkpoint")
    assert checkpoint.load_latest(store, fingerprint="f")[0] == 30


def test_one_flipped_bit_is_found_and_the_one_before_is_taken(store: Store) -> None:
    data = bytearray(store.read_bytes("step-000000030.pt"))
    data[len(data) // 2] ^= 1
    store.write_bytes("step-000000030.pt", bytes(data))
    assert checkpoint.load_latest(store, fingerprint="f")[0] == 20


def test_when_all_are_damaged_that_is_an_error(store: Store) -> None:
    for step in (20, 30):
        store.write_bytes(f"step-{step:09d}.pt", b"no")
    with pytest.raises(FacultyError, match="every checkpoint is damaged"):
        checkpoint.load_latest(store, fingerprint="f")


def test_another_trainings_checkpoint_is_refused(store: Store) -> None:
    with pytest.raises(InputError, match="a checkpoint of training g"):
        checkpoint.load_latest(store, fingerprint="g")


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(Store.open(tmp_path), fingerprint="f") is None
