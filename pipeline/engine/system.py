"""Load of this machine as metrics, under the names that MLflow's System metrics page shows."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import threading
from collections.abc import Callable

from pipeline.engine.store import configure
from pipeline.errors import InputError

log = logging.getLogger(__name__)

EVERY = 10.0
"""Seconds between two samples."""


def require_psutil() -> None:
    """Raise InputError where psutil, which reads the load, is missing."""
    if importlib.util.find_spec("psutil") is None:
        remedy = "Run `pip install psutil`, or set it to false."
        raise InputError("tracking.system_metrics", "psutil to be installed", "none", remedy)


class SystemMonitor:
    """A thread that samples until `stop`."""

    def __init__(self, record: Callable[[dict[str, float], int], None], every: float = EVERY) -> None:
        configure()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except (ImportError, RuntimeError) as error:
            log.info("tracking: no GPU load: %s", error)
        self._record, self._every, self._stop = record, every, threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End within a sample's time."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        self._sample()  # CPU load counts from the sample before
        for step in itertools.count():
            stopped = self._stop.wait(self._every)
            self._record(self._sample(), step)
            if stopped:
                return

    def _sample(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"system/{name}": value for name, value in values.items()}
