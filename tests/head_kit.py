"""A Ray head on this machine, started by Ray's own command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from ray_kit import end_ray
from road_kit import environment


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Head:
    """`ray start --head` of one machine, with a token, a folder and ports of its own.

    With a `home` it is as somebody starts it who sets no variable: HOME is that folder, with `.ray/auth_token` below it
    or without, and PATH is the system's, without this environment.
    """

    def __init__(self, folder: Path, home: Path | None = None) -> None:
        self.gcs, self.dashboard, *others = free_ports(7)
        self.folder = folder
        self.env = self._plain(home) if home else self._told()
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
        names += ("ray-client-server-port", "runtime-env-agent-port")
        options = [f"--{name}={port}" for name, port in zip(names, others, strict=True)]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={self.gcs}", f"--dashboard-port={self.dashboard}", f"--temp-dir={folder / 't'}"),
                *("--object-store-memory=100000000", "--disable-usage-stats", *options),
            ],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.address = f"http://127.0.0.1:{self.dashboard}"

    def _plain(self, home: Path) -> dict[str, str]:
        return {"HOME": str(home), "PATH": os.defpath, "RAY_TMPDIR": str(self.folder)}

    def _told(self) -> dict[str, str]:
        programs = self.folder / "bin"  # what a submitted job's PATH is: the head's
        programs.mkdir()
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "faculty").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m pipeline.cli "$@"\n')
        for file in programs.iterdir():
            file.chmod(0o755)
        return environment(
            RAY_TMPDIR=str(self.folder),
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN="a-token-of-this-test-alone-0123456789",
            PATH=os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        )

    def wait(self) -> None:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert self.process.poll() is None, self.process.stdout.read()
            try:
                urllib.request.urlopen(self.address + "/api/authentication_mode", timeout=5).read()
                return
            except OSError:
                time.sleep(0.3)
        raise AssertionError("Ray's head did not start")

    def end(self) -> None:
        self.process.terminate()
        end_ray(str(self.folder), patience=10)
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)

    def job(self, place: Path, *entrypoint: str) -> tuple[int, str]:
        """`ray job submit`: exit code and output."""
        done = subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", str(place)),
                *("--address", self.address, "--", *entrypoint),
            ],
            env=self.env,
            cwd=place,
            capture_output=True,
            text=True,
            timeout=400,
        )
        return done.returncode, done.stdout + done.stderr
