"""Run the benchmarks, print them as ratios with their targets, write their part of benchmarks/results.md.

python -m benchmarks [NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

SUBJECTS = (
    "wavelet",
    "sampler",
    "training",
    "halves",
    "optimiser",
    "recognition",
    "teaching",
    "scaling",
    "engine",
    "rates",
)
ON_GPU = ("gpu",)
"""Asked for by name alone."""
RESULTS = Path(__file__).parent / "results.md"
GPU_PART = "\n## On a GPU\n"
"""Begins the second part of the results."""


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    options.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join((*SUBJECTS, *ON_GPU))} (default: all but {ON_GPU[0]})",
    )
    options.add_argument("--json", metavar="FILE", help="also write the rows as JSON; - for standard output")
    chosen = options.parse_args()
    names = chosen.names or SUBJECTS
    if unknown := set(names) - {*SUBJECTS, *ON_GPU}:
        options.error(f"no benchmark named {', '.join(sorted(unknown))}")
    found: list[dict[str, Any]] = []
    for name in names:
        started = time.perf_counter()
        for row in importlib.import_module(f"benchmarks.{name}").rows():
            found.append(row)
            say(line(row))
        say(f"({name}: {time.perf_counter() - started:.0f} s)")
    if chosen.json == "-":
        sys.stdout.write(json.dumps({"rows": found}, indent=1) + "\n")
    elif chosen.json:
        Path(chosen.json).write_text(json.dumps({"rows": found}, indent=1) + "\n")
    if tuple(names) in (SUBJECTS, ON_GPU):
        RESULTS.write_text(both(page(found, tuple(names) == ON_GPU)))
        say(f"written: {RESULTS}")
    return 0 if all(row["met"] for row in found) else 1


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def line(row: dict[str, Any]) -> str:
    mark = "met   " if row["met"] else "NOT MET"
    return f"{mark} {row['what']}: {row['ours']} / {row['theirs']} = {row['ratio']} (target {row['target']})"


def both(part: str) -> str:
    """results.md with a new part, the other one as it was."""
    old = RESULTS.read_text() if RESULTS.exists() else ""
    cpu, mark, gpu = old.partition(GPU_PART)
    if part.startswith(GPU_PART):
        return cpu.rstrip() + "\n" + part
    return part + (mark + gpu if mark else "")


def page(rows: list[dict[str, Any]], gpu: bool = False) -> str:
    """A part of results.md: the machine and the table."""
    head = [
        GPU_PART if gpu else "# Benchmarks\n",
        f"`make bench{'-gpu' if gpu else ''}` on {date.today().isoformat()}: {machine()}.",
        "Both sides of a row ran in the same process or in turn in the same run; only the ratio means something.",
        "",
        "| what | ours | theirs | ratio | target | met |",
        "| --- | ---: | ---: | ---: | --- | --- |",
    ]
    shown = ("what", "ours", "theirs", "ratio", "target")
    body = [
        f"| {' | '.join(str(r[key]) for key in shown)} | {'yes' if r['met'] else '**no**'} |" for r in rows
    ]
    notes = [f"- {r['what']}: {r['note']}" for r in rows if r.get("note")]
    return "\n".join([*head, *body, "", *notes, ""]).rstrip() + "\n"


def machine() -> str:
    """CPU model, usable cores, torch and Python."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [
            entry.split(":", 1)[1].strip() for entry in info.read_text().splitlines() if "model name" in entry
        ]
        cpu = models[0] if models else cpu
    cores = len(os.sched_getaffinity(0))
    return f"{cpu}, {cores} cores, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
