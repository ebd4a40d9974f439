"""Two equal runs, in two processes and two folders, leave the same bytes; what leaves names no place of a machine."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mending_kit import faculty_run, recognition, super_resolution, tensors
from road_kit import command, environment, faculty

MAKERS = {"super_resolution": super_resolution, "recognition": recognition}
LEAVES = (
    "students/*/*.safetensors",
    "students/*/*.onnx",
    "students/*/*.pth",
    "students/*/*.md",
    "report/**/*",
)
MEASURED = (
    re.compile(rb"\b\d+(\.\d+)? s for [\d,]+ tiles"),  # seconds of the teachers
    re.compile(rb"\d+(\.\d+)? s for all views"),
    re.compile(
        rb"(?<=k \| )\d+(\.\d+)?(?= \| (\*\*)?0\.)"
    ),  # milliseconds a picture in the table of report.md
)
"""Durations: what may differ."""


def leaving(root: Path) -> dict[str, bytes]:
    found = {}
    for run in (root / "runs").iterdir():
        for pattern in LEAVES:
            for path in run.glob(pattern):
                if path.is_file() and path.name != "stamp.json":
                    found[path.relative_to(root).as_posix()] = path.read_bytes()
    return found


def plain(data: bytes) -> bytes:
    for pattern in MEASURED:
        data = pattern.sub(b"-", data)
    return data


@pytest.mark.parametrize("task", ["super_resolution", pytest.param("recognition", marks=pytest.mark.slow)])
def test_equal_runs_leave_equal_bytes(task: str, tmp_path: Path) -> None:
    found = []
    for number, name in enumerate(("one", "another")):
        root = MAKERS[task](tmp_path / name)
        done = faculty("run", "recipe.yaml", "--inline", cwd=root, PYTHONHASHSEED=str(number + 1))
        assert done.returncode == 0, done.stderr
        found.append(leaving(root))
    one, another = found
    assert set(one) == set(another) and any(n.endswith(".onnx") for n in one)
    differ = {n for n in one if plain(one[n]) != plain(another[n])}
    if task == "recognition":  # whose page draws and lists the latencies that it measured
        differ -= {n for n in differ if n.endswith(("report.html", ".svg"))}
    assert not differ
    places = "|".join(re.escape(str(p)) for p in (tmp_path, Path(__file__).parents[2]))
    absolute = re.compile(rb"(?<!\.\.)(" + places.encode() + rb")")
    assert not [n for n, data in one.items() if absolute.search(data)]


def test_a_head_with_many_keys_is_written_in_one_order() -> None:
    import torch
    from safetensors.torch import load

    from pipeline.training.weights import pack

    given = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.float16)}
    metadata = {f"key {i}": "\u00e9" for i in range(8)}
    first = pack(given, metadata)
    assert all(pack(given, dict(reversed(metadata.items()))) == first for _ in range(8))
    assert {k: v.tolist() for k, v in load(first).items()} == {"a": [1.0, 1.0], "b": [0.0, 1.0, 2.0]}


def start(root: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen(
        command("run", "recipe.yaml", *more),
        cwd=root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def gone_on(root: Path, *more: str) -> tuple[int, str]:
    """The same command again: (exit code, what was said)."""
    if more:
        return faculty_run(root)
    done = faculty("run", "recipe.yaml", cwd=root, timeout=280)
    return done.returncode, done.stderr


def killed_at_random(tmp_path: Path, times: int, seed: int, *more: str) -> None:
    """Runs killed at random moments, over Ray or with `--inline`, and gone on with in the same way."""
    whole = super_resolution(tmp_path / "whole")
    begun = time.monotonic()
    assert start(whole, *more).wait(timeout=240) == 0
    length = time.monotonic() - begun
    rng = random.Random(seed)
    for number in range(times):
        root = super_resolution(tmp_path / "place")
        process = start(root, *more)
        moment = rng.uniform(0.3, 1.0) * length  # importing takes the first third
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=180)
        code, said = gone_on(root, *more)
        assert code == 0, f"{number}, killed after {moment:.2f} s: {said}"
        assert tensors(root) == tensors(whole), f"{number}, killed after {moment:.2f} s"
        left = [p for p in root.rglob("*") if p.suffix in (".tmp", ".lock") or ".damaged" in p.name]
        assert not left, f"{number}, killed after {moment:.2f} s: {left}"
        shutil.rmtree(root)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_tensors_and_leaves_nothing_behind(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 2, 1, "--inline")


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 20, 0, "--inline")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_over_ray(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 20, 0)


def test_what_killed_writers_left_is_swept_and_what_living_ones_hold_is_not(tmp_path: Path) -> None:
    import socket

    from pipeline.cache.store import Store

    store = Store.open(tmp_path / "store")
    dead = subprocess.Popen(["true"])
    dead.wait()
    here = socket.gethostname()
    names = [
        f"x.arrow.{pid}-{hashlib.sha256(b'').hexdigest()[:8]}@{here}.tmp" for pid in (dead.pid, os.getpid())
    ]
    elsewhere = "x.arrow.1-0123abcd@another.tmp"
    for name in (*names, elsewhere, "free.lock"):
        store.write_bytes(name, b"\xff half")
    with store.lock("held.lock"):
        store.sweep()
        assert [name for name, _ in store.list()] == sorted(["held.lock", names[1], elsewhere])
    assert not store.exists("held.lock")
