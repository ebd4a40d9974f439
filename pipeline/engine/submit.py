"""A command as a job of a Ray cluster: its working folder goes along, its output comes back, its exit code too."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.engine import session
from pipeline.engine.packing import Package
from pipeline.errors import FacultyError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
PAUSE, PATIENCE = 1.0, 60.0
"""Seconds between two looks at a job whose stream broke off, and for which nobody may answer."""
PASSED_ON = ("MLFLOW_", "AWS_", "GOOGLE_", "FACULTY_", "HF_")
"""Beginnings of the environment variables that go along: addresses and credentials of storage and tracking."""
SOURCES = "pipeline/cli/__main__.py"
NO_FACULTY = "No module named 'pipeline'"
WORKER_COMMAND = re.compile(r"--python_worker_command=(.*?/python[\d.]*) ")
"""How a node's raylet starts Python workers: with the interpreter that started Ray there."""


def runtime_env(package: Package, environ: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, Any]:
    """The job's environment: the files of the package, and the variables that go along (PASSED_ON, and `more` by name).

    Nothing is installed: image or nodes have what Faculty needs.
    """
    variables = {
        k: v
        for k, v in environ.items()
        if k in more or (k.startswith(PASSED_ON) and not k.startswith(session.OWN))
    }
    variables.setdefault("PYTHONUNBUFFERED", "1")
    return {
        "working_dir": str(package.folder),
        "excludes": list(package.excludes),
        "env_vars": variables,
    }


def submit(
    arguments: Sequence[str],
    *,
    address: str | None,
    package: Package,
    variables: Sequence[str] = (),
    wait: bool,
    say: Callable[[str], None],
    write: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run `faculty <arguments>` on the cluster, by the interpreter that its head runs with; returns its exit code (0 at
    once where `wait` is off). `variables` of this environment go along beside PASSED_ON.

    Raises FacultyError where the cluster does not answer or does not let us in, InputError for a package that Ray does
    not take because of its size.
    """
    from ray.dashboard.modules.dashboard_sdk import SubmissionClient
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    from pipeline.engine import access

    package.check()
    for name in ("ray", JobSubmissionClient.__module__, SubmissionClient.__module__):
        logging.getLogger(name).setLevel(logging.ERROR)  # their notes on packing are said below, in a line
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    described = runtime_env(package, environ, variables)
    try:
        mode = _mode(address)
        headers = access.headers(mode, address)
        client = JobSubmissionClient(address, headers=headers)
        python = _interpreter(client.get_address(), headers)
        whose = (
            "which must have Faculty" if SOURCES not in package.files else "with the sources of this folder"
        )
        say(f"sending {package.folder}: {package}; it runs by the head's {python}, {whose}")
        job = client.submit_job(
            entrypoint=shlex.join([python, "-m", "pipeline.cli", *arguments]), runtime_env=described
        )
    except RayError as error:
        if mode == "token":
            raise access.stale(address) from error
        raise FacultyError(
            f"Ray's job server at {address} does not let us in: {_first_line(error)}"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise FacultyError(
            f"Ray's job server at {address} does not take the job: {_first_line(error)}. Is it the dashboard's address "
            "(port 8265, perhaps through `ray dashboard cluster.yaml`)?"
        ) from error
    passed = sorted(described["env_vars"])
    say(f"job {job} on {address}; variables that go along: {', '.join(passed)}")
    if not wait:
        say(f"ray job logs {job} --address {address} --follow")
        return 0
    last: list[str] = []

    def show(lines: str) -> None:
        last[:] = [lines]
        write(lines)

    onward = f"the job goes on; `ray job logs {job} --address {address} --follow`, `ray job stop {job}`"
    try:
        info = _ended(client, job, show)
    except KeyboardInterrupt:
        say(onward)
        raise
    except (ConnectionError, RuntimeError, OSError) as error:
        raise FacultyError(f"{address} does not answer any more ({_first_line(error)}): {onward}") from error
    if info.status == JobStatus.SUCCEEDED:
        return 0
    say(f"job {job}: {info.status.value}" + (f", {info.message.strip()}" if info.message else ""))
    if NO_FACULTY in "".join(last):
        say(
            f"{python} on the head has no Faculty: install it there (`pip install .` of the checkout), or submit "
            "from a checkout (--working-dir), whose sources go along."
        )
    if info.status == JobStatus.STOPPED:
        return 130
    return info.driver_exit_code or 1


def _mode(address: str) -> str | None:
    """The cluster's authentication mode, "token" or "disabled"; None where the server does not say.

    Raises OSError where nobody answers.
    """
    try:
        return _get(address, "/api/authentication_mode", {}).get("authentication_mode")
    except (urllib.error.HTTPError, ValueError):
        return None


def _interpreter(address: str, headers: Mapping[str, str], patience: float = 15) -> str:
    """The path of the Python that the cluster's head runs with; `python` where the dashboard does not say.

    A job's own `python` is that of the PATH with which the head was started, which may be any. A head that has just
    started does not know its processes yet; it has `patience` seconds.
    """
    end = time.monotonic() + patience
    while True:
        try:
            nodes = _get(address, "/nodes?view=summary", headers)["data"]["summary"]
        except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
            return "python"
        for node in nodes:
            if node.get("raylet", {}).get("isHeadNode") and (
                found := WORKER_COMMAND.search(" ".join(node.get("cmdline", ())))
            ):
                return found[1]
        if time.monotonic() > end:
            return "python"
        time.sleep(0.5)


def _get(address: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    base = (address if "://" in address else f"http://{address}").rstrip("/")
    with urllib.request.urlopen(
        urllib.request.Request(base + path, headers=dict(headers)), timeout=30
    ) as answer:
        return json.loads(answer.read())


def _ended(client: Any, job: str, write: Callable[[str], None]) -> Any:
    """What is known of the job when it has ended; its output is written meanwhile, from where it broke off.

    Raises what Ray raises where nobody answers for `PATIENCE` seconds.
    """
    written = passed = 0

    def rest(lines: str) -> None:
        nonlocal written, passed
        passed += len(lines)
        if passed > written:
            write(lines[max(0, len(lines) - (passed - written)) :].rstrip("\n"))
            written = passed

    lost = 0.0
    while True:
        passed = 0  # a stream begins at the beginning
        try:
            asyncio.run(_follow(client, job, rest))
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return info
            lost = 0.0
        except (ConnectionError, RuntimeError, OSError):
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                raise
        time.sleep(PAUSE)


async def _follow(client: Any, job: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        write(lines)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
