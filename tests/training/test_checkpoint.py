"""Checkpoints: complete or absent, intact or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.cache.store import Store
from pipeline.training import checkpoint


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


def test_where_all_are_damaged_the_training_starts_anew_and_says_so(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (20, 30):
        store.write_bytes(f"step-{step:09d}.pt", b"no")
    assert checkpoint.load_latest(store, fingerprint="f") is None
    assert caplog.text.count("starts anew") == 1 and caplog.text.count("set aside as step-") == 2
    assert store.read_bytes("step-000000020.pt.damaged") == b"no", "nothing is deleted"
    checkpoint.save(store, 10, state(1), fingerprint="f", keep=2)
    assert checkpoint.load_latest(store, fingerprint="f")[0] == 10


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b"\xff", b'{"step": 30, "fingerprint": 5}'])
def test_a_damaged_record_costs_that_checkpoint_alone(store: Store, text: bytes) -> None:
    store.write_bytes("step-000000030.json", text)
    assert checkpoint.load_latest(store, fingerprint="f")[0] == 20
    assert checkpoint.steps(store) == [20]


def test_another_trainings_checkpoint_is_set_aside(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.load_latest(store, fingerprint="g") is None
    assert "a checkpoint of training g" in caplog.text and not checkpoint.steps(store)
    assert store.exists("step-000000030.pt.damaged")


def test_a_record_of_before_without_a_checksum_is_read(store: Store) -> None:
    import json

    facts = json.loads(store.read_bytes("step-000000030.json"))
    assert facts.pop("checksum")
    store.write_bytes("step-000000030.json", json.dumps(facts).encode())
    assert checkpoint.load_latest(store, fingerprint="f")[0] == 30


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.load_latest(Store.open(tmp_path), fingerprint="f") is None
