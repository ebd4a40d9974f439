"""doctor, ui, track: is everything in place, and the tracking store."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import webbrowser
from collections.abc import Callable
from pathlib import Path

from pipeline.cli.common import add_json, emit, write
from pipeline.errors import FacultyError, InputError

PACKAGES = (
    "torch",
    "ray",
    "mlflow",
    "pyarrow",
    "PyWavelets",
    "pytorch-wavelets",
    "spandrel",
    "onnxruntime",
    "optuna",
)
OPEN_SECONDS = 60
"""That the tracking server may take until its page is opened."""


def add(commands: argparse._SubParsersAction) -> None:
    """Declare these commands."""
    doctor = commands.add_parser(
        "doctor", help="check versions, devices, cluster, storage and tracking server"
    )
    doctor.add_argument("--address", help="Ray cluster to ask (default: none)")
    doctor.add_argument("--cache", default="cache", help="cache to write to (default: cache)")
    add_json(doctor)
    doctor.set_defaults(run=_doctor)

    ui = commands.add_parser("ui", help="open MLflow's page on the runs' store")
    ui.add_argument(
        "store",
        nargs="?",
        help="folder with mlflow.db, or a store's address (default: MLFLOW_TRACKING_URI, else runs)",
    )
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--open", action="store_true", help="open the newest run's experiment in the browser")
    ui.set_defaults(run=_ui)

    track = commands.add_parser("track", help="the tracking store")
    actions = track.add_subparsers(dest="action", required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="upload what was recorded while the tracking server was away")
    sync.add_argument("folder", nargs="?", default="runs", help="folder that holds `spool` (default: runs)")
    sync.add_argument("--uri", help="store (default: the one that was meant)")
    add_json(sync)
    sync.set_defaults(run=_sync)


def _ui(options: argparse.Namespace) -> int:
    from pipeline.engine.pages import newest
    from pipeline.engine.store import Unavailable
    from pipeline.engine.tracking import PAGE, ui_command, ui_store

    store = options.store or os.environ.get("MLFLOW_TRACKING_URI") or "runs"
    command = ui_command(store, host=options.host, port=options.port)
    server = f"http://{options.host}:{options.port}"
    try:
        found = newest(ui_store(store))
    except Unavailable:  # the server that is started now says what is wrong with its store
        found = None
    address = server + (found.experiment if found else PAGE)
    write(f"{address} (Ctrl-C ends it)")
    if found and found.comparison:
        write(f"the {found.students} students of {found.run} side by side: {server}{found.comparison}")
    if not options.open:
        return subprocess.call(command)
    with subprocess.Popen(command) as process:
        try:
            if _answers(server, process):
                webbrowser.open(address)
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def _answers(server: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the server does; False where it has ended or takes more than `OPEN_SECONDS`."""
    end = time.monotonic() + OPEN_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server}/health", timeout=2).close()
            return True
        except OSError:  # not yet
            time.sleep(0.2)
    return False


def _sync(options: argparse.Namespace) -> None:
    from pipeline.engine.tracking import sync

    counts = sync(options.folder, options.uri)
    shown = ", ".join(f"{n} {what}" for what, n in counts.items())
    emit(options, counts, shown if any(counts.values()) else "nothing to upload")


def _doctor(options: argparse.Namespace) -> int:
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        *((name, lambda n=name: importlib.metadata.version(n)) for name in PACKAGES),
        ("devices", _devices),
        ("teachers", _spandrel),
        ("cache", lambda: _storage(options.cache)),
        ("node cache", _node_cache),
        ("tracking", _tracking),
        ("cluster", lambda: _cluster(options.address)),
    ]
    rows = []
    for name, check in checks:
        try:
            rows.append({"check": name, "ok": True, "detail": check()})
        except (FacultyError, ImportError, OSError, RuntimeError) as error:
            rows.append({"check": name, "ok": False, "detail": str(error) or type(error).__name__})
    lines = [f"{'ok ' if r['ok'] else 'NO '} {r['check']:17} {r['detail']}" for r in rows]
    emit(options, {"checks": rows}, "\n".join(lines))
    return 0 if all(r["ok"] for r in rows) else 1


def _python() -> str:
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        raise InputError("python", "3.10 to 3.13", sys.version.split()[0], "make PYTHON=python3.12 install")
    return sys.version.split()[0]


def _devices() -> str:
    import torch

    cpus = len(os.sched_getaffinity(0))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{cpus} CPU cores, {torch.get_num_threads()} torch threads, GPUs: {', '.join(gpus) or 'none'}"


def _spandrel() -> str:
    from teachers.spandrel_import import import_spandrel

    spandrel = import_spandrel()
    count = len(list(spandrel.MAIN_REGISTRY.architectures()))
    return f"spandrel reads {count} architectures"


def _storage(root: str) -> str:
    from pipeline.cache.store import Store

    store = Store.open(root)
    name = f"doctor-{uuid.uuid4().hex}"
    store.write_bytes(name, b"ok")
    try:
        if store.read_bytes(name) != b"ok":
            raise FacultyError(f"{store.uri}: what was written reads back differently")
    finally:
        store.delete(name)
    if store.uri.startswith("file://"):
        return f"{store.uri} writable, {shutil.disk_usage(Path(store.where(''))).free / 1e9:.0f} GB free"
    return f"{store.uri} writable"


def _node_cache() -> str:
    from pipeline.cache.node import node_cache

    folder = node_cache()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder):
        return f"{folder} writable, {shutil.disk_usage(folder).free / 1e9:.0f} GB free"


def _tracking() -> str:
    from pipeline.engine.store import Store, public, resolve_uri, sqlite_path

    store = Store(resolve_uri(None, Path("runs")))
    if sqlite_path(store.uri):
        return f"{store.uri} (made by the first run)"
    try:
        store.probe()
    except Exception as error:
        raise FacultyError(
            f"{public(store.uri)} does not answer ({error}). Start it or unset MLFLOW_TRACKING_URI; "
            "runs meanwhile go to a spool that `faculty track sync` uploads."
        ) from error
    return f"{public(store.uri)} answers"


def _cluster(address: str | None) -> str:
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        return "none asked for; runs start Ray on this machine"
    from pipeline.engine import session

    resources = session.resources(address)
    nodes = [k for k in resources if k.startswith("node:") and k != "node:__internal_head__"]
    shown = {k: v for k, v in sorted(resources.items()) if k in ("CPU", "GPU", "memory")}
    return f"{address}: {len(nodes)} node{'s' * (len(nodes) != 1)}, {shown}"
