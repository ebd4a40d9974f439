"""Starting and leaving Ray."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Mapping

import ray
from ray._private.services import canonicalize_bootstrap_address
from ray.exceptions import RayError

from pipeline.engine import access
from pipeline.errors import FacultyError, InputError

OBJECT_STORE_BYTES = 200 * 10**6
OWN = "FACULTY_NODE_CACHE"
"""Beginning of the variables that each node has for itself: where and how much it keeps of fetched shards."""
ENVIRONMENT = {
    # A report to Ray Train waits for the controller's poll: its default of 2 s is for hour-long epochs, and 0.1 s takes
    # 3 % of a core, which two workers on two cores both wait for.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
LOCAL = {
    # One machine is not preempted and nobody reads Ray's own metrics: two processes fewer for each training.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # A process that cut tiles has torch in memory: it stays for the next stage, where Ray would end it after a second.
    "RAY_idle_worker_killing_time_threshold_ms": "30000",
}


def start(address: str | None, *, dashboard: bool = False) -> None:
    """Join the cluster at `address`, or the one of the surrounding job, or start Ray on this machine alone.

    No pictures go through the object store, so a local Ray gets a small one. It has a `dashboard` where drivers are its
    actors: Train asks there which of them died, to free what they held. A local Ray with one driver ends with it.
    Raises FacultyError where the address does not answer or does not let us in, or where no Ray starts here; InputError
    for an address of another kind, and for a TMPDIR that leaves Ray's sockets no room.
    """
    ends = signal.getsignal(signal.SIGTERM)
    if not ray.is_initialized():
        _start(address, dashboard)
    # Ray has SIGTERM print a stack trace and end the process without a further word, whichever thread started it.
    if threading.current_thread() is threading.main_thread() and ends is not None:
        signal.signal(signal.SIGTERM, ends)


def _start(address: str | None, dashboard: bool) -> None:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _BEFORE.update({name: os.environ.get(name) for name in (*LOCAL, *OF_A_SESSION)})
    try:
        if address == "local":
            _start_here(dashboard)
        else:
            _join(address)
    except BaseException:
        stop()
        raise


def _start_here(dashboard: bool) -> None:
    for name, value in LOCAL.items():
        os.environ.setdefault(name, value)
    if os.environ.get(access.MODE, "token").lower() == "token":
        # A token of its own: it needs no file, disturbs none, and none that is there for a cluster disturbs it.
        os.environ[access.TOKEN] = secrets.token_hex(32)
        access.set_mode("token")
    logging.getLogger("ray").setLevel(logging.ERROR)  # its notes are about clusters that others can reach
    folder = _own_folder()
    try:
        ray.init(
            address="local",
            _temp_dir=folder,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            include_dashboard=dashboard,
        )
    except (OSError, RuntimeError, RayError) as error:
        raise FacultyError(
            f"Ray does not start on this machine, in {folder}: {error}. Another folder for it: TMPDIR=...; "
            "--inline works without Ray."
        ) from error


def _join(address: str) -> None:
    if "://" in address and not address.startswith("ray://"):
        raise InputError(
            "the address of Ray",
            "ray://HOST:10001, HOST:6379 or auto",
            address,
            "A dashboard's address (http://HOST:8265) is for `faculty submit`.",
        )
    passed_on = {
        k: v
        for k, v in os.environ.items()
        if k in ENVIRONMENT or (k.startswith(("FACULTY_", "MLFLOW_", "AWS_")) and not k.startswith(OWN))
    }
    try:
        where = canonicalize_bootstrap_address(address) if address == "auto" else address
        if where is None:
            raise ConnectionError("no Ray runs on this machine")
        _knock(where)
        access.join(where)
        # In a submitted job some of these are set already, to the same values.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        ray.init(
            address=where,
            logging_level=logging.ERROR,
            log_to_driver=False,  # what matters comes back as results and errors; Ray keeps the rest on the nodes
            runtime_env={"env_vars": passed_on},
        )
    except (OSError, RuntimeError, RayError) as error:
        raise FacultyError(
            f"Ray at {address!r} does not answer: {error}. Check the address "
            f"(`ray status --address {address}`), or leave it out (--address, RAY_ADDRESS) to run on this machine."
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


OF_A_SESSION = ("RAY_TMPDIR", access.MODE, access.TOKEN)
_BEFORE: dict[str, str | None] = {}
"""Variables that a session sets, as they were before it."""
_FOLDERS: list[str] = []
"""The folder of the local Ray."""
SHORT = (os.path.join(os.sep, "tmp"), os.path.join(os.sep, "var", "tmp"))
"""Folders with short names, for where the temporary one is too long for a socket."""
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
PREFIX = "fr-"


def room() -> int:
    """Bytes that the path of the temporary folder may have, so that Ray's sockets below it keep to SOCKET_BYTES:
    TMPDIR/fr-xxxxxxxx/session_2026-01-01_12-00-00_000000_PID/sockets/plasma_store.
    """
    ours = f"/{PREFIX}{'x' * 8}"
    rays = f"/session_2026-01-01_12-00-00_000000_{os.getpid()}/sockets/plasma_store"
    return SOCKET_BYTES - len(ours) - len(rays)


def _own_folder() -> str:
    """A folder for a local Ray alone, also in the environment of its processes.

    In the shared one Ray Train's helpers find the address of a cluster that somebody started on this machine,
    perhaps one long dead, and ask there after their own training. Raises InputError where no folder is short enough.
    """
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    wanted = os.path.abspath(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    for base in (wanted, *SHORT):
        if len(os.fsencode(base)) > room():
            continue
        try:
            if base == wanted:
                os.makedirs(base, exist_ok=True)
            folder = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        except OSError:
            if base == wanted:
                raise InputError(
                    name, "a folder that can be written to", base, f"export {name}=..."
                ) from None
            continue
        os.environ["RAY_TMPDIR"] = folder
        _FOLDERS.append(folder)
        return folder
    raise InputError(
        name,
        f"a path of at most {room()} bytes, as Ray's sockets below it may have {SOCKET_BYTES}",
        f"{wanted} ({len(os.fsencode(wanted))} bytes)",
        f"export {name}=... with a shorter folder that can be written to, or run with --inline.",
    )


def most(name: str) -> float:
    """How much of a resource the cluster has, or would have with all the nodes that it may add for work that waits."""
    have = float(ray.cluster_resources().get(name, 0.0))
    if ray.util.client.ray.is_connected():  # what may be added is not told through a client
        return have
    from ray._private.state import state

    return max(have, float((state.get_max_resources_from_cluster_config() or {}).get(name, 0)))


def resources(address: str) -> dict[str, float]:
    """What the cluster at `address` has, asked for and left again. Raises FacultyError where it does not answer."""
    start(address)
    try:
        return ray.cluster_resources()
    finally:
        stop()


def stop() -> None:
    """Leave the cluster; ends a local Ray. The environment is as before it."""
    if ray.is_initialized():
        ray.shutdown()
    moded = {name: _BEFORE[name] for name in (access.MODE, access.TOKEN) if name in _BEFORE}
    changed = any(os.environ.get(name) != value for name, value in moded.items())
    while _BEFORE:
        name, value = _BEFORE.popitem()
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if changed:
        access.set_mode(os.environ.get(access.MODE))
    while _FOLDERS:
        shutil.rmtree(_FOLDERS.pop(), ignore_errors=True)
