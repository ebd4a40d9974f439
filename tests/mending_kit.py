"""Damage to a finished run, and what must be the same after the same command ran again."""

from __future__ import annotations

import logging
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from command_kit import run
from road_kit import content, picture
from safetensors.torch import load_file

FOLDERS = ("cache", "runs")


def super_resolution(root: Path) -> Path:
    """A recipe of two teachers, weighted, and a student by MTKD, in a folder with its pictures."""
    for seed, name in enumerate("abcd"):
        picture(root / "pictures" / f"{name}.png", 96, 104, seed)
    picture(root / "test" / "t.png", 48, 56, 9)
    recipe = content(
        root,
        output="runs",
        data={"train": ["pictures"], "test": ["test"], "tile": 48, "holdout": 0.3},
        cache={"root": "cache", "shard_mb": 0.1},
        fusion={"kind": "weighted"},
        method={"name": "mtkd"},
        train={
            "steps": 12,
            "batch": 4,
            "patch": 12,
            "lr": 1e-3,
            "evaluate_every": 4,
            "log_every": 4,
            "keep": 2,
        },
    )
    return _written(root, recipe)


def recognition(root: Path) -> Path:
    """The digits recipe by HORKD with its assistant, a few steps each."""
    budget = {"steps": 6, "batch": 16, "lr": 1e-3, "ema": 0.9, "evaluate_every": 3, "log_every": 3}
    recipe = {
        "name": "digits",
        "task": "classification",
        "gap": 2,
        "output": "runs",
        "cache": {"root": "cache", "shard_mb": 0.1},
        "data": {"layout": "digits", "size": 8, "views": {"count": 1, "shift": 1}},
        "teacher": {
            "network": {"name": "resnet14", "options": {"width": 8}, "embedding": 16},
            "train": budget,
        },
        "student": {"name": "resnet8", "options": {"width": 8}, "embedding": 16},
        "method": {"name": "horkd", "anchors": 8},
        "train": budget,
        "tracking": {"enabled": False},
    }
    return _written(root, recipe)


def _written(root: Path, recipe: dict) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    import os

    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def faculty_run(root: Path) -> tuple[int, str]:
    """(exit code, what was said) of `faculty run recipe.yaml --inline` in this process, warnings included."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pipeline").addHandler(handler)
    try:
        with inside(root):
            done = run("run", "recipe.yaml", "--inline")
    finally:
        logging.getLogger("pipeline").removeHandler(handler)
    return done.code, "\n".join([*said, done.err])


def tensors(root: Path) -> dict[str, dict[str, bytes]]:
    """The tensors of every safetensors file of a place."""
    return {
        path.relative_to(root).as_posix(): {
            k: v.numpy().tobytes() for k, v in sorted(load_file(path).items())
        }
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*.safetensors"))
    }


def kind_of(rel: str) -> str:
    """A file's name without what tells it from others of its kind."""
    return re.sub(r"[0-9a-f]{16,}|\d+", "#", rel)


def kinds(root: Path) -> dict[str, list[str]]:
    """{kind: files} of everything that a run left in its cache and output."""
    found: dict[str, list[str]] = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and path.stat().st_size:
                rel = path.relative_to(root).as_posix()
                found.setdefault(kind_of(rel), []).append(rel)
    return found


def harm(path: Path, how: str, rng: random.Random) -> str:
    """Flip one bit of a file, or cut it short. Returns what was done."""
    data = bytearray(path.read_bytes())
    if how == "flip":
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        data[place] ^= 1 << bit
        path.write_bytes(data)
        return f"bit {bit} of byte {place} of {len(data)} flipped"
    length = rng.randrange(len(data))
    path.write_bytes(data[:length])
    return f"cut to {length} of {len(data)} bytes"


def unfinish(root: Path) -> None:
    """As after a kill right before the students' results were written: what they read is read again."""
    for path in (root / "runs").glob("*/trainings/*/result.json"):
        path.unlink()
    for path in (root / "runs").glob("*/trainings/*/weights.safetensors"):
        path.unlink()


def damages(whole: Path, flips: int, cuts: int, seed: int) -> list[tuple[str, str, int]]:
    """(file, how, seed) of as many damages, every kind of file as likely as any other."""
    rng = random.Random(seed)
    by_kind = kinds(whole)
    deck: list[str] = []
    drawn = []
    for how in ["flip"] * flips + ["cut"] * cuts:
        if not deck:
            deck = sorted(by_kind)
            rng.shuffle(deck)
        drawn.append((rng.choice(by_kind[deck.pop()]), how, rng.randrange(2**31)))
    return drawn


def trial(whole: Path, place: Path, rel: str, how: str, seed: int) -> None:
    """Damage one file of a copy of a finished run, run the command again, and compare."""
    shutil.copytree(whole, place)
    try:
        done = harm(place / rel, how, random.Random(seed))
        if rel.endswith((".arrow", ".pt")) or "/step-" in rel:
            unfinish(place)  # else nobody would read it
        code, said = faculty_run(place)
        context = f"{rel}: {done} (seed {seed})\n{said}"
        assert code == 0, context
        assert {k: v for k, v in tensors(place).items() if v} == tensors(whole), context
        left = [p.name for f in FOLDERS for p in (place / f).rglob("*") if p.suffix in (".tmp", ".lock")]
        assert not left, context
        named = [line for line in said.splitlines() if Path(rel).name in line and "set aside" in line]
        aside = list(place.rglob("*.damaged*"))
        assert len(named) <= 1 and (not aside or said), context
    finally:
        shutil.rmtree(place)
