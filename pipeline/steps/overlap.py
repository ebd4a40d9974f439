"""Shards through one loaded network: while some are computed, others are read, hashed and written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch

from pipeline.cache.format import Receipt
from pipeline.cache.stats import Stats
from pipeline.steps.batches import metered
from pipeline.steps.values import Network, OutputStep

COMPUTED = {"cpu": 1, "cuda": 2}
"""Shards that a device computes at a time: a GPU begins the next while the last one's outputs are copied back."""
UNDER_WAY = {"cpu": 2, "cuda": 6}
"""Shards at a time, those included that are read or written: a GPU makes more than one thread can hash."""


class InTurn:
    """A network that one thread at a time calls: what it keeps in a forward pass (hooks, sizes) is of one call.

    Its kernels are queued on the threads' streams, where they overlap all the same.
    """

    def __init__(self, network: Any) -> None:
        self._network, self._turn = network, threading.Lock()

    def __call__(self, *args: Any) -> Any:
        with self._turn:
            return self._network(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


class Overlapped:
    """A network on a device, to be called from `UNDER_WAY` threads."""

    def __init__(self, network: Network, cache: str, device: str) -> None:
        """Load it. Raises what loading raises."""
        self.device, self.kind = device, torch.device(device).type
        self.calls = 1 if self.kind == "cpu" else UNDER_WAY[self.kind]
        """Threads of `all`; one is this thread."""
        self.network = network.open(cache, device)
        if COMPUTED[self.kind] > 1:
            self.network = InTurn(self.network)
        self._computed: dict[int, float] = {}
        self._places: SimpleQueue[Any] = SimpleQueue()
        for _ in range(COMPUTED[self.kind]):
            self._places.put(torch.cuda.Stream(device) if self.kind == "cuda" else None)
        if self.kind == "cuda":
            torch.cuda.synchronize(device)  # the weights are there before another stream reads them

    def __call__(
        self, step: OutputStep, threads: int = 0, moved: Callable[[float], None] | None = None
    ) -> tuple[Receipt, Stats]:
        """Read, compute with `threads` CPU threads (0: as many as there are), commit. Raises what the step raises."""
        shard, key = step.read(), id(step)

        def tell(samples: float) -> None:
            self._computed[key] = self._computed.get(key, 0.0) + samples
            if moved is not None:
                moved(self.computed())

        try:
            with self._place(), metered(tell):
                if threads:
                    torch.set_num_threads(threads)
                computed = step.compute(shard, self.network, self.device)
            return step.commit(computed)
        finally:
            self._computed.pop(key, None)

    def computed(self) -> float:
        """Samples that are computed and not yet committed."""
        return sum(list(self._computed.values()))

    def all(
        self, steps: Sequence[OutputStep], moved: Callable[[float], None] | None = None
    ) -> Iterator[tuple[Receipt, Stats]]:
        """Every step, in the order in which they finish; on a CPU `moved(samples)` says after each batch how many are
        computed and not yet committed. Raises the first failure, once what is under way has ended.
        """
        if self.calls == 1:
            yield from (self(step, moved=moved) for step in steps)
            return
        pool = ThreadPoolExecutor(self.calls)
        try:
            for done in as_completed([pool.submit(self, step) for step in steps]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def _place(self) -> Iterator[None]:
        stream = self._places.get()
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            self._places.put(stream)
