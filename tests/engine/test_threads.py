"""Threads that nobody waits for."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from pipeline.engine.threads import Threads

HANGING = """
import threading
from pipeline.engine.threads import Threads

begun = threading.Event()
threads = Threads(1)
threads.submit(lambda: (begun.set(), threading.Event().wait()))
later = threads.submit(print, "never")
begun.wait()
threads.close()
print("left", later.cancelled())
"""


def test_calls_run_side_by_side_and_tell_what_came_of_them() -> None:
    together = threading.Barrier(2, timeout=20)
    threads = Threads(2)
    both = [threads.submit(lambda n: (together.wait(), n)[1], n) for n in (1, 2)]
    assert [future.result(20) for future in both] == [1, 2]
    failing = threads.submit(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        failing.result(20)
    assert threads.submit(sorted, [2, 1], reverse=True).result(20) == [2, 1]
    threads.close()


def test_what_has_not_begun_is_cancelled() -> None:
    begun, go_on = threading.Event(), threading.Event()
    threads = Threads(1)

    def hold() -> bool:
        begun.set()
        return go_on.wait(20)

    first = threads.submit(hold)
    second = threads.submit(print, "never")
    assert begun.wait(20)
    threads.close()
    go_on.set()
    assert first.result(20)
    with pytest.raises(CancelledError):
        second.result(20)


def test_an_interpreter_ends_beside_a_thread_that_hangs(repository: Path) -> None:
    """A command that was stopped stayed for ever, a thread of it waiting for a Ray that had left."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=repository, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "left True\n"), ended.stderr
