"""Ray's processes from outside: whose they are, that they end, what they leave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import ray


def of_ray(folder: str) -> list[int]:
    """Pids of the processes that were started with this RAY_TMPDIR, or below it."""
    mark = f"RAY_TMPDIR={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:  # it ended, or belongs to somebody else
                continue
            if any(v == mark or v.startswith(mark + b"/") for v in variables):
                found.append(int(entry.name))
    return found


def end_ray(folder: str, patience: float = 15) -> None:
    """Wait for a dead driver's Ray to end by itself, then end what is left of it."""
    end = time.monotonic() + patience
    while (left := of_ray(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def processes(kind: str) -> list[int]:
    """Pids of the living actors of a class."""
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # others may run a Ray on this machine
    return [
        a.pid
        for a in list_actors(address, filters=[("class_name", "=", kind), ("state", "=", "ALIVE")])
        if a.pid
    ]


def placement_groups() -> list[str]:
    """States of the placement groups that are not removed, after Ray had a moment to remove them."""
    import ray
    from ray.util import placement_group_table

    assert ray.is_initialized()
    end = time.monotonic() + 20
    while True:
        left = [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.2)
