"""What the engine costs beyond computing: a whole small run, the same run again, and memory as the cache grows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PICTURES, row

RECIPE = """
name: bench
scale: 2
output: {folder}/runs-{engine}
data: {{train: [{train}], tile: 96}}
cache: {{root: {folder}/cache-{engine}, shard_mb: 1}}
teachers:
{teachers}
method: {{name: mtkd}}
student: {{name: fsrcnn, options: {{head: pixelshuffle}}}}
train: {{steps: 20, batch: 4, patch: 16, evaluate_every: 20}}
compare: {{methods: []}}
"""


def rows() -> list[dict[str, Any]]:
    """Fixed cost, second run, memory."""
    with tempfile.TemporaryDirectory() as folder:
        return [*fixed_cost(Path(folder)), memory(Path(folder))]


def fixed_cost(folder: Path) -> list[dict[str, Any]]:
    """`faculty run` over Ray minus the same run inline (whose time is the computing), and over Ray again."""
    demo = PICTURES.parent.parent / "teachers"
    teachers = "\n".join(f"  - {{checkpoint: {p}}}" for p in sorted(demo.glob("*.safetensors")))
    seconds = {}
    for engine in ("inline", "ray", "again"):
        name = "ray" if engine == "again" else engine
        file = folder / f"{name}.yaml"
        file.write_text(RECIPE.format(folder=folder, engine=name, train=PICTURES, teachers=teachers))
        extra = ["--inline"] if engine == "inline" else []
        command = [
            sys.executable,
            "-c",
            "from pipeline.cli import main; raise SystemExit(main())",
            "run",
            str(file),
            *extra,
        ]
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds[engine] = time.perf_counter() - start
    fixed = row(
        "fixed cost of the engine: (`faculty run` over Ray - the same run inline) / 1 s",
        seconds["ray"] - seconds["inline"],
        1.0,
        "<= 25",
        unit="s",
        note=f"over Ray {seconds['ray']:.1f} s, inline {seconds['inline']:.1f} s",
        digits=1,
    )
    again = row(
        "second `faculty run`, nothing changed / 1 s",
        seconds["again"],
        1.0,
        "<= 10",
        unit="s",
        note="the whole process with its imports; Ray is not started",
        digits=1,
    )
    return [fixed, again]


def memory(folder: Path) -> dict[str, Any]:
    """Anonymous memory of a process that samples from ten times the cache, against one times."""
    sizes = {}
    for times in (1, 10):
        grow(folder / "grown", times)
        code = (
            "import sys; sys.path.insert(0, '.'); from benchmarks.engine import sample; "
            f"sample({str(folder / 'grown')!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        sizes[times] = float(done.stdout)
    return row(
        "anonymous memory of a sampling process, cache of 2 GB / 0.2 GB",
        sizes[10],
        sizes[1],
        "<= 1.05",
        unit="MB",
        note="after 2,000 batches; page cache apart",
    )


def grow(folder: Path, times: int) -> None:
    """A cache of `times` x 0.2 GB of noise tiles."""
    from pipeline.cache.format import write_shard
    from pipeline.cache.manifest import Manifest, save
    from pipeline.cache.store import Store

    store = Store.open(folder)
    generator = np.random.default_rng(0)
    side, count = 192, 145
    hr = generator.integers(0, 255, (count, side, side, 3), dtype=np.uint8)
    receipts = []
    for number in range(10 * times):
        columns = {
            "id": [f"{number:04d}:{i:05d}" for i in range(count)],
            "lr": hr[:, ::2, ::2].copy(),
            "hr": hr,
            "has_hr": np.ones(count, np.uint8),
        }
        receipts.append(write_shard(store, f"tiles/{number:04d}.arrow", columns, metadata={}))
    save(Manifest("tiles", "f", {}, tuple(receipts)), store, "manifest.json")


def sample(folder: str) -> None:
    """Print the megabytes of anonymous memory after 2,000 batches."""
    from pipeline.cache.manifest import load
    from pipeline.cache.sampler import Sampler, Source
    from pipeline.cache.store import Store

    store = Store.open(folder)
    manifest = load(store, "manifest.json")
    sampler = Sampler(
        {n: Source(store, manifest, n) for n in ("lr", "hr")}, scale=2, patch=48, batch=16, seed=0, margin=4
    )
    for _ in sampler.iterate(0, 2000):
        continue
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    sys.stdout.write(str(int(status.split("RssAnon:")[1].split()[0]) / 1e3))
