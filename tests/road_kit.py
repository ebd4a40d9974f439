"""What the tests of the road share: small recipes over the demo's teachers, runs of them, looks at what they left."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from conftest import natural_picture
from PIL import Image

from pipeline.cache.manifest import Manifest
from pipeline.progress import Quiet
from pipeline.recipe.recipe import Recipe
from pipeline.road.run import Run
from pipeline.steps.engines import Engine, InlineEngine
from pipeline.tasks.super_resolution.teach import read
from pipeline.tracking import NullTracker

REPOSITORY = Path(__file__).resolve().parent.parent
TEACHERS = REPOSITORY / "demo" / "teachers"
NAMES = ("edsr", "compact", "rcan")

if "FACULTY_NODE_CACHE" not in os.environ:  # read in every process that a test starts
    os.environ["FACULTY_NODE_CACHE"] = tempfile.mkdtemp(prefix="faculty-tests-")
    atexit.register(shutil.rmtree, os.environ["FACULTY_NODE_CACHE"], ignore_errors=True)


def teacher(name: str) -> dict[str, str]:
    """A recipe's entry for one of the demo's teachers."""
    return {"checkpoint": str(TEACHERS / f"{name}_x2.safetensors"), "name": name, "precision": "fp32"}


def content(root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe over `root`/pictures of two teachers and six steps, with the tables of `changes` merged in."""
    base: dict[str, Any] = {
        "name": "r",
        "scale": 2,
        "output": str(root / "runs"),
        "data": {"train": [str(root / "pictures")], "tile": 48, "holdout": 0.3},
        "cache": {"root": str(root / "cache"), "shard_mb": 0.1},
        "teachers": [teacher("edsr"), teacher("compact")],
        "teach": {"batch": 4, "threads": 1},
        "student": {"name": "fsrcnn", "options": {"d": 8, "s": 4, "m": 1, "head": "pixelshuffle"}},
        "method": {"name": "mtkd"},
        "train": {"steps": 6, "batch": 4, "patch": 12, "lr": 1e-3, "evaluate_every": 3, "log_every": 3},
        "distill": {"cpus_per_worker": 1},
        "tracking": {"enabled": False},
    }
    return _merged(base, changes)


REPLACED = ("fusion", "method", "student")
"""Tables that are one choice: a change stands for the whole of it."""


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = deepcopy(base)
    for key, value in changes.items():
        known = result.get(key)
        nested = isinstance(known, dict) and isinstance(value, dict) and key not in REPLACED
        result[key] = _merged(known, value) if nested else value
    return result


def recipe(root: Path, **changes: Any) -> Recipe:
    """`content` as a validated recipe."""
    return Recipe.model_validate(content(root, **changes))


def recipe_file(root: Path, **changes: Any) -> Path:
    """`content` as a file."""
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(content(root, **changes)))
    return file


def picture(path: Path, height: int, width: int, seed: int) -> Path:
    """Save a picture somewhat like a photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(natural_picture(height, width, seed)).save(path)
    return path


def five_pictures(root: Path) -> Path:
    """Small ones, of which a recipe holds out one."""
    for seed, name in enumerate("abcde"):
        picture(root / "pictures" / f"{name}.png", 96, 96 + 8 * seed, seed)
    return root


class Untouchable:
    """An engine that fails the test when it is asked for anything."""

    name = "untouchable"

    def device_kind(self, gpus: float) -> str:
        return "cpu"

    def map(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("something was computed")

    teach = train = map

    def close(self) -> None:
        """Nothing was started."""


class Road:
    """One run of a recipe, with what it announced."""

    def __init__(self, settings: Recipe, engine: Engine | None = None) -> None:
        self.reporter = Quiet()
        self.opened = 0
        """How often a tracking run was opened: not at all where nothing is computed."""
        self.run = Run(settings, engine or InlineEngine("cpu"), self.reporter, self._open)
        self.settings = settings

    def _open(self) -> NullTracker:
        self.opened += 1
        return NullTracker()

    @property
    def warnings(self) -> list[str]:
        return self.reporter.warnings

    def teach(self) -> tuple:
        """(tiles, teachers)."""
        prepared = self.run.teach()
        return prepared.samples, list(prepared.teachers)

    def distill(self, *methods: str) -> tuple:
        """(tiles, taught, fused, jobs) of the recipe's method, or of the named ones, from the recipe's seed."""
        prepared, jobs = self.run.distill(methods or [self.settings.method.name], [self.settings.seed])
        return prepared.samples, list(prepared.teachers), prepared.fused, jobs


def pixels(road: Road, manifest: Manifest, column: str) -> dict[str, np.ndarray]:
    """{tile id: picture} of one column of a set."""
    store = road.run.planner.store
    shards = [read(store, receipt) for receipt in manifest.shards]
    return {id_: row for s in shards for id_, row in zip(s.columns["id"], s.columns[column], strict=True)}


def snapshot(folder: Path, pattern: str = "*") -> dict[str, tuple[str, int]]:
    """{relative path: (sha256, modification time)} of the files below a folder: equal where nothing was rewritten."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and path.suffix != ".lock"
    }


def hashes(folder: Path, pattern: str = "*") -> dict[str, str]:
    """{relative path: sha256}: equal where the same was computed."""
    return {name: sha256 for name, (sha256, _) in snapshot(folder, pattern).items()}


def rewritten(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """What is new or differs in `after`."""
    return {name for name, state in after.items() if before.get(name) != state}


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weights(job: Any) -> dict[str, bytes]:
    """A trained student's tensors, as bytes."""
    from safetensors.torch import load

    tensors = load(job.output().read_bytes("weights.safetensors"))
    return {name: value.numpy().tobytes() for name, value in sorted(tensors.items())}


def command(*arguments: object) -> list[str]:
    """`faculty ...` for a process of its own, which hears Ctrl-C also where the tests' shell ignores it."""
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pipeline.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", script, *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    """Of such a process: one thread, this checkout."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **changes}


def faculty(
    *arguments: object, cwd: Path, timeout: float = 240, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, to its end."""
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout
    )


def require_front(trials: list[dict[str, Any]]) -> None:
    """Those marked `pareto` are exactly those that no other beats in one figure without losing in the other."""
    for trial in trials:
        beaten = any(
            o["accuracy"] >= trial["accuracy"]
            and o["multiply_adds"] <= trial["multiply_adds"]
            and (o["accuracy"], o["multiply_adds"]) != (trial["accuracy"], trial["multiply_adds"])
            for o in trials
        )
        assert trial["pareto"] is not beaten


def bad_pictures(folder: Path) -> dict[str, str]:
    """{file name: what its refusal says} of pictures that must not be trained on."""
    folder.mkdir(exist_ok=True)
    good = picture(folder / "truncated.png", 64, 64, 31)
    good.write_bytes(good.read_bytes()[:-2000])
    Image.fromarray(natural_picture(64, 64, 32)[..., 0].astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(natural_picture(64, 64, 33)).convert("LAB").save(folder / "lab.tif")
    Image.fromarray(natural_picture(1, 1, 34)).save(folder / "dot.png")
    return {"truncated.png": "truncated", "float.tif": "floating", "lab.tif": "Lab", "dot.png": "1x1"}


def a_shard(root: Path, kind: str) -> Path:
    """One shard of training tiles, of outputs or of fused targets."""
    held = {p.name for p in root.glob("cache/tiles/*/*.pictures.json") if '"held_out": true' in p.read_text()}
    keys = {name.removesuffix(".pictures.json") for name in held}
    return next(p for p in sorted((root / "cache" / kind).rglob("*.arrow")) if p.stem not in keys)


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-100])


def swap(shard: Path) -> None:
    """A foreign shard in its place: whole, but another one's."""
    other = next(
        p for p in shard.parent.glob("*.arrow") if p != shard and p.stat().st_size != shard.stat().st_size
    )
    shutil.copy(other, shard)
