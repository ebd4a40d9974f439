"""Shards through a network: while one is computed the next is read, and the last one written."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch

from pipeline.errors import FacultyError
from pipeline.steps.batches import Halving, metered
from pipeline.steps.overlap import InTurn, Overlapped

SHARDS = 8


class Device:
    """A network whose every stage waits for what should go on beside it, whichever shard that is."""

    def __init__(self) -> None:
        self.begun = {"read": 0, "compute": 0, "commit": 0}
        self.changed = threading.Condition()
        self.waits = True
        self.busy = threading.Lock()

    def open(self, cache: str, device: str) -> Device:
        return self

    def begin(self, stage: str, beside: str = "") -> None:
        """Count a stage; wait until a further shard is in the stage before, where there is one."""
        with self.changed:
            self.begun[stage] += 1
            self.changed.notify_all()
            if beside and self.waits:
                further = self.changed.wait_for(
                    lambda: self.begun[beside] > self.begun[stage] or self.begun[beside] == SHARDS, 20
                )
                assert further, f"{stage}: no other shard is in {beside} meanwhile"


@dataclass
class Shard:
    number: int
    device: Device
    fails: bool = False

    def read(self) -> int:
        self.device.begin("read")
        return self.number

    def compute(self, shard: int, network: Device, device: str) -> int:
        assert network.busy.acquire(blocking=False), "two shards on one CPU at a time"
        try:
            if self.fails:
                raise FacultyError("not finite")
            network.begin("compute", beside="read")
        finally:
            network.busy.release()
        return shard * 10

    def commit(self, computed: int) -> tuple[int, dict[str, float]]:
        self.device.begin("commit", beside="compute")
        return computed, {"tiles": 1.0}


def through(calls: int) -> tuple[Overlapped, Device]:
    device = Device()
    found = Overlapped(device, "", "cpu")
    found.calls = calls
    return found, device


@pytest.mark.parametrize("calls", [2, 6])
def test_reading_computing_and_writing_overlap(calls: int) -> None:
    overlapped, device = through(calls)
    found = list(overlapped.all([Shard(n, device) for n in range(SHARDS)]))
    assert sorted(receipt for receipt, _ in found) == [10 * n for n in range(SHARDS)]


def test_what_is_computed_is_told_after_each_batch() -> None:
    """Ten samples of three passes each, four at a time; the second batch does not fit and is done again, halved."""
    told: list[float] = []
    batches, tries = Halving("told", 4, 10, passes=3), 0
    with metered(told.append):
        for _ in range(3):
            for _ in batches:
                tries += 1
                with batches.tried():
                    if tries == 2:
                        raise torch.OutOfMemoryError
    assert sum(told) == pytest.approx(10) and told[0] == pytest.approx(4 / 3) and tries == 3 * 5


def test_a_failure_comes_out() -> None:
    overlapped, device = through(2)
    device.waits = False
    with pytest.raises(FacultyError, match="not finite"):
        list(overlapped.all([Shard(n, device, fails=n == 1) for n in range(SHARDS)]))


def test_a_network_that_keeps_something_of_a_call_is_called_by_one_thread_at_a_time() -> None:
    class Keeps:
        label = "keeps"

        def __call__(self, x: int) -> int:
            self.kept = x
            time.sleep(0.001)
            return self.kept

    network = InTurn(Keeps())
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(network, range(100))) == list(range(100))
    assert network.label == "keeps"
