"""SIGTERM, of `ray job stop` and Kubernetes, comes once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LOST = """
import os, signal, sys, time
from pipeline.cli import main, road

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)  # the signal is met here, where its exception is lost

def run(options):
    try:
        Destroyed()
        time.sleep(30)
        print("never")
    finally:
        time.sleep(5)  # what is being closed is left alone
        print("closed")

road.add = lambda commands: commands.add_parser("hang").set_defaults(run=run)
sys.exit(main(["hang"]))
"""


def test_a_sigterm_that_meets_a_destructor_is_not_lost(repository: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LOST], cwd=repository, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 143 and ended.stdout == "closed\n", ended.stderr
    assert "goes on" in ended.stderr
