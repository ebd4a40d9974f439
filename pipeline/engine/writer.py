"""The thread that carries records from a queue to a run, or to its spool while no store can be reached."""

from __future__ import annotations

import atexit
import contextlib
import logging
import queue
import shlex
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engine.records import Record
from pipeline.engine.sink import Sink
from pipeline.engine.spool import Spool
from pipeline.engine.store import Rejected, Store, Unavailable, public
from pipeline.errors import FacultyError

log = logging.getLogger(__name__)

QUEUE = 10_000
"""Records that may wait; more go straight to the spool."""
LINGER = 1.0
"""Seconds that a record may wait for others to share its call."""
BATCH = 1000
ATTEMPTS = 2
"""Tries before the spool takes over; each HTTP try already holds MLflow's own retries."""
PROBE_EVERY = 15.0
"""Seconds between two looks for a store that was lost."""


@dataclass(frozen=True, slots=True)
class _Marker:
    """Goes through the queue behind the records it waits for."""

    done: threading.Event
    stop: bool = False


class Writer:
    """Delivers the records of one run of one process."""

    def __init__(self, store: Store, header: Mapping[str, Any], folder: Path, *, owner: bool) -> None:
        """`owner`: this process began the run, so it knows that the run is empty, and creates it in a store
        that could not be reached then.
        """
        self._store, self._header, self._folder, self._owner = store, dict(header), folder, owner
        self._queue: queue.Queue[Record | _Marker] = queue.Queue(QUEUE)
        self._spool = Spool(folder, header, store.uri)
        self._sink: Sink | None = None if header["local"] else Sink(store, header["id"], fresh=owner)
        self.online = self._sink is not None
        # Another machine may not see the store that the run began in, so a resumed run looks first.
        self._probed = time.monotonic() if owner else float("-inf")
        self._unseen = not owner
        self._hurry = threading.Event()
        self._unsent: list[Record] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tracking {header['name']}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def header(self) -> dict[str, Any]:
        """The run's header, with the store's id as soon as it has one."""
        return {**self._header, "id": self._sink.run_id, "local": False} if self._sink else self._header

    def put(self, record: Record) -> None:
        """Take a record; never waits."""
        if self._closed:
            log.warning("tracking: %s of run %s came after its end", record.kind, self._header["name"])
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:  # the store is too slow
            self._keep([record])

    def flush(self, timeout: float) -> bool:
        """Wait for what was put so far; False where it is in the spool or still on its way."""
        marker = _Marker(threading.Event())
        try:
            self._queue.put(marker, timeout=timeout)
        except queue.Full:
            return False
        return marker.done.wait(timeout) and self._spool.empty

    def close(self, timeout: float = 30.0) -> None:
        """Send what is left and stop. What the store does not take in `timeout` seconds goes to the spool."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        end = time.monotonic() + timeout
        with contextlib.suppress(queue.Full):
            self._queue.put(_Marker(threading.Event(), stop=True), timeout=timeout)
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._hurry.set()
            self._keep([*self._unsent, *self._waiting()])
        if not self._spool.empty:
            where, folder = public(self._store.uri), shlex.quote(str(self._folder))
            log.warning("tracking: %s has not everything; later: faculty track sync %s", where, folder)
            self._spool.release()

    def _run(self) -> None:
        while True:
            self._unsent, marker = self._gather()
            try:
                self._deliver(last=marker is not None)
            except Exception:  # the work being recorded must not end because of its record
                log.exception("tracking: lost %d records of run %s", len(self._unsent), self._header["name"])
            self._unsent = []
            if marker is not None:
                marker.done.set()
            if self._hurry.is_set() or (marker is not None and marker.stop):
                return

    def _gather(self) -> tuple[list[Record], _Marker | None]:
        """What is in the queue, waiting a little for more, up to a marker."""
        batch: list[Record] = []
        try:
            item = self._queue.get(timeout=None if self._spool.empty else PROBE_EVERY)
            end = time.monotonic() + LINGER
            while not isinstance(item, _Marker):
                batch.append(item)
                if len(batch) == BATCH:
                    return batch, None
                item = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            return batch, item
        except queue.Empty:
            return batch, None

    def _deliver(self, *, last: bool) -> None:
        if not self.online or self._unseen or not self._spool.empty:
            self._reconnect(now=last or self._unseen)
        if self.online and self._sink:
            try:
                self._send(self._sink)
            except Unavailable as error:
                self.online, self._probed = False, time.monotonic()
                where = public(self._store.uri)
                log.warning("tracking: %s is lost (%s); recording to %s", where, error, self._folder)
        if not self._hurry.is_set():  # else `close` has taken them
            self._keep(self._unsent)

    def _send(self, sink: Sink) -> None:
        failures = 0
        while self._unsent:
            try:
                self._unsent = self._unsent[sink.write(self._unsent) :]
                failures = 0
            except Unavailable:
                failures += 1
                if failures == ATTEMPTS or self._hurry.wait(0.5):
                    raise

    def _reconnect(self, *, now: bool) -> None:
        """Look for the store where it is time to, and upload the spool there."""
        if self._hurry.is_set() or not (now or time.monotonic() - self._probed >= PROBE_EVERY):
            return
        self._probed = time.monotonic()
        try:
            self._store.probe()
            if self._sink is None or not self.online:
                run_id = self._store.locate(self.header, create=self._owner)
                self._sink = Sink(self._store, run_id, fresh=False)
            count = self._spool.drain(self._sink.write)
        except (Unavailable, Rejected, FacultyError, OSError) as error:
            self.online = False
            level = logging.WARNING if self._unseen else logging.DEBUG
            log.log(level, "tracking: %s; recording to %s", error, self._folder)
        else:
            self.online = True
            if count:
                log.info("tracking: %s is back; %d spooled records uploaded", public(self._store.uri), count)
        self._unseen = False

    def _keep(self, left: Iterable[Record]) -> None:
        for record in left:
            try:
                self._spool.append(record)
            except OSError as error:
                log.error("tracking: lost %s of run %s: %s", record.kind, self._header["name"], error)

    def _waiting(self) -> Iterable[Record]:
        with contextlib.suppress(queue.Empty):
            while True:
                if isinstance(item := self._queue.get_nowait(), Record):
                    yield item
