"""MLflow runs that never hold up the work they record.

The driver opens one run and children below it; a worker resumes a run from its plain `handle()`. Every call
only puts a record into a queue; one thread a tracker sends them in batches. Where the store cannot be
reached, records go to a spool in the run's folder instead; the thread looks for the store every few seconds
and uploads the spool when it is back, and `sync` uploads what a finished run has left.
"""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.engine import records
from pipeline.engine.records import Record
from pipeline.engine.spool import sync
from pipeline.engine.store import (
    PAGE,
    Rejected,
    Store,
    Unavailable,
    is_server,
    page,
    public,
    resolve_uri,
    sqlite_path,
    sqlite_uri,
)
from pipeline.engine.system import SystemMonitor, require_psutil
from pipeline.engine.writer import Writer
from pipeline.errors import FacultyError, InputError
from pipeline.tracking import DataSet, NullTracker, RunTracker, Status

__all__ = ["PAGE", "NullTracker", "Tracker", "open_tracker", "resume", "sync", "ui_command", "ui_store"]

log = logging.getLogger(__name__)


class Tracker:
    """One MLflow run, with the calls of `pipeline.tracking.RunTracker`. Made by `open_tracker` and
    `resume`.

    A metric or picture is stored once for each name and step: a resumed training that replays steps adds
    nothing. As a context manager it ends the run with FINISHED, FAILED (exception) or KILLED (interrupt).
    """

    def __init__(self, store: Store, header: Mapping[str, Any], spool: Path, *, owner: bool) -> None:
        self._store, self._spool = store, spool
        self._writer = Writer(store, header, spool, owner=owner)
        self._monitor: SystemMonitor | None = None

    @property
    def run_id(self) -> str:
        """MLflow's run id, or `local-...` for a run that began while no store could be reached."""
        return str(self._writer.header["id"])

    @property
    def online(self) -> bool:
        """Whether records reach the store now."""
        return self._writer.online

    @property
    def uri(self) -> str:
        """The store's address."""
        return self._store.uri

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record scalars at a global step."""
        self._writer.put(records.metrics(values, step))

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings once; nested mappings and lists become dotted names, long text is cut."""
        self._writer.put(records.params(values))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set labels; a later value replaces an earlier one."""
        self._writer.put(records.tags(values))

    def inputs(self, sets: Sequence[DataSet]) -> None:
        """Record the data sets that the run reads; a set that is recorded already adds nothing."""
        for found in sets:
            self._writer.put(records.inputs(found))

    def image(self, name: str, picture: np.ndarray, step: int) -> None:
        """Record a picture (H, W, 3) uint8 at a global step. Raises ValueError for anything else."""
        self._writer.put(records.image(name, picture, step))

    def artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file or a folder under `folder`; it must stay in place until `flush`."""
        self._writer.put(Record("artifact", records.now(), name=folder or "", payload=Path(path).absolute()))

    def text(self, content: str, file: str) -> None:
        """Record `content` as the text file `file`."""
        self._writer.put(Record("text", records.now(), name=file, payload=content))

    def child(
        self, name: str, tags: Mapping[str, str] | None = None, params: Mapping[str, Any] | None = None
    ) -> Tracker:
        """A new run below this one. Asks the store once, unless it is lost at the moment."""
        parent = self._writer.header
        header = _header(parent["experiment"], name, parent["artifacts"], tags, parent)
        return _begin(self._store, header, self._spool, params, ask=self.online)

    def monitor_system(self) -> None:
        """Record this machine's load every ten seconds until `finish`."""
        self._monitor = SystemMonitor(self.metrics)

    def handle(self) -> dict[str, Any]:
        """Plain data for `resume` in another process: the store's address, the run's id and header, the
        spool.
        """
        return {
            "uri": self.uri,
            "run_id": self.run_id,
            "spool": str(self._spool),
            "header": self._writer.header,
        }

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until what was recorded so far is in the store; False where it is in the spool or on its
        way.
        """
        return self._writer.flush(timeout)

    def finish(
        self, status: Status = "FINISHED", tags: Mapping[str, str] | None = None, timeout: float = 30.0
    ) -> None:
        """Set the run's last status, then close."""
        if tags:
            self.tags(tags)
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        self._writer.put(Record("status", records.now(), name=status))
        self.close(timeout)

    def close(self, timeout: float = 30.0) -> None:
        """Send what is left and stop, leaving the status alone; what is not taken in time is spooled."""
        if self._monitor:
            self._monitor.stop()
            self._monitor = None
        self._writer.close(timeout)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        ended: Status = "FINISHED"
        if kind is not None:
            ended = "FAILED" if issubclass(kind, Exception) else "KILLED"
        self.finish(ended)

    def __reduce__(self) -> Any:
        raise TypeError("a Tracker holds a thread; send tracker.handle() and call resume(handle) over there")


def open_tracker(
    experiment: str,
    run_name: str,
    *,
    uri: str | None,
    folder: Path,
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, Any] | None = None,
    system_metrics: bool = False,
) -> Tracker:
    """Begin a run, on the driver and before any fan-out: makes store, experiment and run, in this order.

    `folder` (local) receives `mlflow.db` and `mlartifacts` where neither `uri` nor MLFLOW_TRACKING_URI
    names another store, and `spool` where the store cannot be reached. A run's name may be used again; its
    id is new. Raises InputError for an address that MLflow does not write to and for a deleted experiment;
    an unreachable server is a warning. `system_metrics` records CPU, memory, disk, network and GPU load
    (needs psutil).
    """
    if system_metrics:
        require_psutil()
    store = Store(resolve_uri(uri, folder))
    spool = folder.resolve() / "spool"
    database = sqlite_path(store.uri)
    artifacts = (database.parent if database else folder.resolve()) / "mlartifacts"
    ask = True
    try:
        store.initialise()
    except Unavailable as error:
        ask = False
        log.warning("tracking: %s; recording to %s", error, spool)
    header = _header(experiment, run_name, artifacts.as_uri(), tags, None)
    tracker = _begin(store, header, spool, params, ask=ask)
    if system_metrics:
        tracker.monitor_system()
    return tracker


def resume(handle: Mapping[str, Any], *, reopen: bool = False) -> RunTracker:
    """The run of `handle`, in this process; returns at once. An empty handle gives a NullTracker.

    `reopen` sets the status of a run that had ended back to RUNNING.
    """
    if not handle:
        return NullTracker()
    tracker = Tracker(Store(handle["uri"]), handle["header"], Path(handle["spool"]), owner=False)
    if reopen:
        tracker._writer.put(Record("status", records.now(), name="RUNNING"))
    return tracker


def ui_store(where: str | Path) -> str:
    """The address of the store that `where` names: an address, or the folder holding `mlflow.db`."""
    address = isinstance(where, str) and "://" in where
    return resolve_uri(str(where) if address else sqlite_uri(Path(where, "mlflow.db")), Path())


def ui_command(where: str | Path, *, host: str = "127.0.0.1", port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages for a store: its address, or the folder holding `mlflow.db`.

    Raises InputError where there is no store, and for a server's address, which is a page already.
    """
    uri = ui_store(where)
    if is_server(uri):
        raise InputError(public(uri), "a database", "an MLflow server", f"Open {page(uri, Path())}")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    if path := sqlite_path(uri):
        if not path.exists():
            remedy = "A run with tracking enabled makes it."
            raise InputError(str(path), "an MLflow database", "nothing there", remedy)
        command += ["--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    # Its background jobs serve nothing that is shown here and cost seven processes.
    settings = ["MLFLOW_DISABLE_TELEMETRY=true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"]
    return ["env", *settings, *command, "--host", host, "--port", str(port), "--workers", "1"]


def _header(
    experiment: str,
    name: str,
    artifacts: str,
    tags: Mapping[str, str] | None,
    parent: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What it takes to create a run, now or later."""
    return {
        "id": "",
        "local": False,
        "experiment": experiment,
        "name": name,
        "artifacts": artifacts,
        "tags": dict(records.tags(tags or {}).values),
        "start": records.now(),
        "parent": dict(parent) if parent else None,
    }


def _begin(
    store: Store, header: dict[str, Any], spool: Path, params: Mapping[str, Any] | None, *, ask: bool
) -> Tracker:
    """A tracker over a new run, or over one that will be created when the store is there."""
    if ask:
        try:
            store.probe()
            header["id"] = store.create_run(header)
        except Unavailable as error:
            log.warning("tracking: %s is lost (%s); recording to %s", public(store.uri), error, spool)
        except Rejected as error:
            raise FacultyError(f"MLflow refused run {header['name']}: {error}") from error
    if not header["id"]:
        header |= {"id": f"local-{uuid.uuid4().hex}", "local": True}
    tracker = Tracker(store, header, spool, owner=True)
    if params:
        tracker.params(params)
    return tracker
