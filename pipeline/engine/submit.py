"""A command as a job of a Ray cluster: its working folder goes along, its output comes back, its exit code too."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine import session
from pipeline.errors import FacultyError, InputError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
EXCLUDES = (
    "**/.git/**",
    "**/.venv/**",
    "**/__pycache__/**",
    "**/.*_cache/**",
    "runs/**",
    "cache/**",
    "mlruns/**",
    "*.arrow",
    "*.db",
)
"""What a job does not need of the working folder; what .gitignore names stays at home too."""
PASSED_ON = ("MLFLOW_", "AWS_", "GOOGLE_", "FACULTY_", "HF_")
"""Beginnings of the environment variables that go along: addresses and credentials of storage and tracking."""


def runtime_env(folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The job's environment: the folder without what it does not need, and the variables that go along.

    Nothing is installed: image or nodes have Faculty. Raises InputError for a folder that is missing.
    """
    if not folder.is_dir():
        raise InputError("--working-dir", "a folder", str(folder))
    variables = {
        k: v for k, v in environ.items() if k.startswith(PASSED_ON) and not k.startswith(session.OWN)
    }
    variables.setdefault("PYTHONUNBUFFERED", "1")
    return {"working_dir": str(folder.resolve()), "excludes": list(EXCLUDES), "env_vars": variables}


def submit(
    arguments: Sequence[str],
    *,
    address: str | None,
    folder: Path,
    wait: bool,
    say: Callable[[str], None],
    write: Callable[[str], None],
    environ: Mapping[str, str] = os.environ,
) -> int:
    """Run `faculty <arguments>` on the cluster; returns its exit code (0 at once where `wait` is off).

    Raises FacultyError where the cluster does not answer or does not let us in, InputError for a folder that Ray does
    not take because of its size.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    use_token()
    described = runtime_env(folder, environ)
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(
            entrypoint=shlex.join(["python", "-m", "pipeline.cli", *arguments]), runtime_env=described
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if "exceed" in str(error):
            remedy = (
                "Keep pictures and caches elsewhere (s3://, a network folder), or list them in .gitignore."
            )
            raise InputError(
                f"--working-dir {folder}", "a folder small enough to send", _first_line(error), remedy
            ) from error
        raise FacultyError(
            f"Ray's job server at {address} does not take the job: {_first_line(error)}. Is it the dashboard's address "
            "(port 8265, perhaps through `ray dashboard cluster.yaml`), and is the token the head's (RAY_AUTH_TOKEN)?"
        ) from error
    passed = sorted(described["env_vars"])
    say(f"job {job} on {address}; variables that go along: {', '.join(passed)}")
    if not wait:
        say(f"ray job logs {job} --address {address} --follow")
        return 0
    try:
        asyncio.run(_follow(client, job, write))
    except KeyboardInterrupt:
        say(f"the job goes on; `ray job logs {job} --address {address} --follow`, `ray job stop {job}`")
        raise
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    say(f"job {job}: {info.status.value}" + (f", {info.message.strip()}" if info.message else ""))
    if info.status == JobStatus.STOPPED:
        return 130
    return info.driver_exit_code or 1


def use_token() -> None:
    """Send the cluster's token where this machine has one; Ray's client does it only when told to."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or file.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


async def _follow(client: Any, job: str, write: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        write(lines.rstrip("\n"))


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
