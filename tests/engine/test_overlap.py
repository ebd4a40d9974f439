"""Shards through a network: while one is computed the next is read, and the last one written."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from pipeline.errors import FacultyError
from pipeline.steps.overlap import InTurn, Overlapped

SHARDS = 8


class Device:
    """A network whose every stage waits for what should go on beside it."""

    def __init__(self) -> None:
        self.read = [threading.Event() for _ in range(SHARDS + 1)]
        self.computing = [threading.Event() for _ in range(SHARDS + 1)]
        for last in (self.read[-1], self.computing[-1]):
            last.set()
        self.busy = threading.Lock()

    def open(self, cache: str, device: str) -> Device:
        return self


@dataclass
class Shard:
    number: int
    device: Device
    fails: bool = False

    def read(self) -> int:
        self.device.read[self.number].set()
        return self.number

    def compute(self, shard: int, network: Device, device: str) -> int:
        assert network.busy.acquire(blocking=False), "two shards on one CPU at a time"
        try:
            network.computing[shard].set()
            if self.fails:
                raise FacultyError("not finite")
            assert network.read[shard + 1].wait(20), "the next one is not read"
        finally:
            network.busy.release()
        return shard * 10

    def commit(self, computed: int) -> tuple[int, dict[str, float]]:
        assert self.device.computing[self.number + 1].wait(20), "the next one is not computed"
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


def test_a_failure_comes_out() -> None:
    overlapped, device = through(2)
    for event in (*device.read, *device.computing):
        event.set()
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
