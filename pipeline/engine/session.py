"""Starting and leaving Ray."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Mapping

import ray

from pipeline.errors import FacultyError, InputError

OBJECT_STORE_BYTES = 200 * 10**6
OWN = "FACULTY_NODE_CACHE"
"""Beginning of the variables that each node has for itself: where and how much it keeps of fetched shards."""
ENVIRONMENT = {
    # A report to Ray Train waits for the controller's poll; its default of 2 s is for hour-long epochs.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
LOCAL = {
    # One machine is not preempted and nobody reads Ray's own metrics: two processes fewer for each training.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def start(address: str | None, *, dashboard: bool = False) -> None:
    """Join the cluster at `address`, or the one of the surrounding job, or start Ray on this machine alone.

    No pictures go through the object store, so a local Ray gets a small one. It has a `dashboard` where drivers are its
    actors: Train asks there which of them died, to free what they held. A local Ray with one driver ends with it.
    Raises FacultyError where the address does not answer.
    """
    if ray.is_initialized():
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        for name, value in LOCAL.items():
            if name not in os.environ:
                os.environ[name] = value
                _SET.append(name)
    passed_on = {
        k: v
        for k, v in os.environ.items()
        if k in ENVIRONMENT or (k.startswith(("FACULTY_", "MLFLOW_", "AWS_")) and not k.startswith(OWN))
    }
    try:
        if address == "local":
            # Its notes are about clusters that others can reach.
            logging.getLogger("ray").setLevel(logging.ERROR)
            ray.init(
                address="local",
                _temp_dir=_own_folder(),
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
                include_dashboard=dashboard,
            )
        else:
            _knock(address)
            # In a submitted job some of these are set already, to the same values.
            os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,  # what matters comes back as results and errors; Ray keeps the rest on the nodes
                runtime_env={"env_vars": passed_on},
            )
    except (OSError, RuntimeError) as error:
        raise FacultyError(
            f"Ray at {address!r} does not answer: {error}. Check the address "
            f"(`ray status --address {address}`), or leave --address out to run on this machine."
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port, for which Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def require(address: str | None, where: str, needs: Mapping[str, float]) -> None:
    """Refuse work for which Ray on this machine would wait for ever; a cluster may grow, so there it may wait.

    Raises InputError naming `where` in the recipe.
    """
    if address or os.environ.get("RAY_ADDRESS"):
        return
    have = ray.cluster_resources()
    for name, wanted in needs.items():
        if wanted > have.get(name, 0.0):
            raise InputError(
                where,
                f"at most the {have.get(name, 0.0):g} {name}s of this machine",
                f"{wanted:g}",
                "Lower it, or name a cluster that has them with --address.",
            )


_SET: list[str] = []
"""Variables of LOCAL that a local Ray has set, taken back when it ends."""
_FOLDERS: list[tuple[str, str | None]] = []
"""The folder of the local Ray, and RAY_TMPDIR as it was before."""


def _own_folder() -> str:
    """A folder for a local Ray alone, also in the environment of its processes.

    In the shared one Ray Train's helpers find the address of a cluster that somebody started on this machine,
    perhaps one long dead, and ask there after their own training.
    """
    before = os.environ.get("RAY_TMPDIR")
    folder = tempfile.mkdtemp(prefix="faculty-ray-", dir=before)
    os.environ["RAY_TMPDIR"] = folder
    _FOLDERS.append((folder, before))
    return folder


def resources(address: str) -> dict[str, float]:
    """What the cluster at `address` has, asked for and left again. Raises FacultyError where it does not answer."""
    start(address)
    try:
        return ray.cluster_resources()
    finally:
        stop()


def stop() -> None:
    """Leave the cluster; ends a local Ray."""
    if ray.is_initialized():
        ray.shutdown()
    while _SET:
        del os.environ[_SET.pop()]
    while _FOLDERS:
        folder, before = _FOLDERS.pop()
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
