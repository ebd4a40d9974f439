"""Threads that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Threads:
    """`count` threads that run calls in the order of `submit`, as a ThreadPoolExecutor's, but daemons: the interpreter
    ends without them. After Ctrl-C a thread may wait for a Ray that has left, in native code and for ever.
    """

    def __init__(self, count: int) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._pending: list[Future[Any]] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[..., Any], *args: Any, **settings: Any) -> Future[Any]:
        """The future result of `call(*args, **settings)`, or what it raises."""
        future: Future[Any] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(*args, **settings))
                except BaseException as error:
                    future.set_exception(error)

        self._pending.append(future)
        self._calls.put(run)
        return future

    def close(self) -> None:
        """Nothing that has not begun will; whoever is under way is not waited for."""
        for future in self._pending:
            future.cancel()
        for _ in self._threads:
            self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
