"""Who may go on among trainings in threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """`with turns:` is for one thread alone; `with turns.shared():` for any number, while nobody is alone.

    Alone is who draws from torch's generators, which the threads share, or captures a CUDA graph; a replay that draws
    nothing is shared. Who wants to be alone goes first, or many short replays would keep it waiting for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._sharing = self._wanted = 0

    def __enter__(self) -> None:
        self._changed.acquire()
        self._wanted += 1
        try:
            self._changed.wait_for(lambda: self._sharing == 0)
        except BaseException:
            self._wanted -= 1
            self._changed.release()
            raise
        self._wanted -= 1

    def __exit__(self, *_: object) -> None:
        self._changed.notify_all()
        self._changed.release()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._wanted == 0)
            self._sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._sharing -= 1
                if self._sharing == 0:
                    self._changed.notify_all()


TURN = Turns()
