"""The command, called in this process; a place with pictures for it."""

from __future__ import annotations

import json
import os
import subprocess
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from road_kit import picture

from pipeline.cli import main


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        return json.loads(self.out)


def run(*arguments: object) -> Done:
    """The command, in this process."""
    out, err = StringIO(), StringIO()
    quiet = os.environ.get("PYTHONWARNINGS")
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stopped:  # argparse
            code = int(stopped.code or 0)
        finally:
            if quiet is None:
                os.environ.pop("PYTHONWARNINGS", None)
    return Done(code, out.getvalue(), err.getvalue())


def make_place(root: Path) -> Path:
    for seed, name in enumerate("abc"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    picture(root / "Bench" / "HR" / "one.png", 64, 72, 50)
    picture(root / "Bench" / "HR" / "two.png", 72, 64, 51)
    return root


def until(condition, work: subprocess.Popen, seconds: float = 120) -> None:
    """Wait for what a process does; fail when it ends or takes too long."""
    end = time.monotonic() + seconds
    while not condition():
        assert work.poll() is None, work.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
