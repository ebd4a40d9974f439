"""The command `faculty`. Exit codes: 0 done, 2 bad input, 1 failure with its cause first."""

from __future__ import annotations

import argparse
import atexit
import gc
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Sequence

# What libraries make when they are imported lives to the end. To search it for garbage as they come in, whenever the
# collector goes through everything, and once more at exit took a fifth of a short command's time.
gc.disable()
try:
    from pipeline import __version__
    from pipeline.cli import cache, models, plan, road, setup, speed, submit, tune
    from pipeline.errors import FacultyError
    from pipeline.tasks.registry import TASKS
finally:
    gc.freeze()
    gc.enable()
atexit.register(gc.freeze)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="faculty",
        description="Several large pretrained networks (teachers) into one small, fast one (student).",
    )
    top.add_argument("--version", action="version", version=f"faculty {__version__}")
    top.add_argument("--debug", action="store_true", help="show log messages and full tracebacks")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (road, tune, submit, plan, models, speed, cache, setup):
        module.add(commands)
    top.set_defaults(parse=top.parse_args)  # `submit` reads the command that it sends
    return top


class Terminated(KeyboardInterrupt):
    """SIGTERM, of `ray job stop`, Kubernetes or a batch system: as Ctrl-C, but for the exit code."""


AGAIN_S = 2.0


def _terminated(number: int, frame: object) -> None:
    """Raises Terminated, and where it was lost again every AGAIN_S seconds until `main` has heard of it: who catches it
    on its way may be a destructor or a callback of a library, and nobody sends a second signal.
    """
    signal.signal(signal.SIGALRM, _terminated)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
    under_way = sys.exc_info()[1]
    while under_way is not None and not isinstance(under_way, Terminated):
        under_way = under_way.__context__
    if under_way is None:  # else it is on its way, through whatever is being closed
        raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    in_front = threading.current_thread() is threading.main_thread()
    if in_front and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    logging.basicConfig(
        level=logging.DEBUG if options.debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if not options.debug:
        warnings.filterwarnings("ignore")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        return options.run(options) or 0
    except FacultyError as error:
        if options.debug:
            raise
        _say(_located(error, options))
        return error.exit_code
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):
            signal.setitimer(signal.ITIMER_REAL, 0)
        _say("stopped. The same command goes on from what is committed.")
        return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if options.debug:
            raise
        _say(f"{type(error).__name__}: {error}")
        _say("run it again with --debug before the command's name for the whole traceback")
        return 1


def _located(error: FacultyError, options: argparse.Namespace) -> str:
    """The error, after the recipe's file where it speaks of one of its settings without saying whose."""
    file, where = getattr(options, "recipe", None), getattr(error, "where", "")
    setting = re.split(r"[^a-z_]", where, maxsplit=1)[0]
    ours = any(setting in task.recipe.model_fields for task in TASKS.values())
    return f"{file}: {error}" if file and ours and str(file) not in str(error) else str(error)


def _say(text: str) -> None:
    sys.stderr.write(f"faculty: {text}\n")
