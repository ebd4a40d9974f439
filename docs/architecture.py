"""Draws docs/architecture.svg from the code's own imports: `python docs/architecture.py`; `--check` only compares."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURE = Path(__file__).with_name("architecture.svg")
TOP = ("pipeline", "teachers", "students", "tune_spaces")
WORDS = {
    "cli": "the command",
    "engine": "Ray, MLflow",
    "search": "what tune does",
    "road": "run, results",
    "tasks": "what differs",
    "steps": "planner, jobs",
    "training": "the one loop",
    "methods": "one file each",
    "losses": "one file each",
    "deploy": "export, upscale",
    "report": "tables, pages",
    "recipe": "settings",
    "cache": "shards, stores",
    "data": "decode, degrade",
    "students": "what ships",
    "teachers": "what is learned from",
    "core": "errors, metrics, cost",
}
WIDE, HIGH, BESIDE, BELOW = 150, 44, 18, 40


def modules() -> dict[str, Path]:
    """{module: file} of the package."""
    files = [p for top in TOP for p in sorted((ROOT / top).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def imports(known: dict[str, Path]) -> dict[str, set[str]]:
    """{module: modules that it imports}, inside functions too, but not for types alone."""
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        seen: set[str] = set()
        _walk(ast.parse(path.read_text()), known, seen)
        found[name] = seen - {name}
    return found


def _walk(node: Any, known: dict[str, Path], seen: set[str]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Import):
            seen |= {alias.name for alias in child.names} & known.keys()
        elif isinstance(child, ast.ImportFrom) and child.module:
            whole = {f"{child.module}.{alias.name}" for alias in child.names}
            seen |= (whole & known.keys()) or ({child.module} & known.keys())
        _walk(child, known, seen)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, empty where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(graph[name]):
            if found := visit(other):
                return found
        path.pop()
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name))), [])


def room(module: str) -> str:
    """The folder of a module; files directly in pipeline/ are `core`."""
    top, _, rest = module.partition(".")
    if top != "pipeline":
        return top
    first = rest.partition(".")[0]
    return first if (ROOT / "pipeline" / first).is_dir() and first else "core"


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """{folder: folders that it imports}; students and teachers share networks and stand side by side."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, others in graph.items():
        if room(name) != "tune_spaces":
            found[room(name)] |= {room(other) for other in others} - {room(name)}
    found["teachers"].discard("students")
    return dict(found)


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """How many floors stand below each folder."""
    known: dict[str, int] = {}

    def floor(name: str) -> int:
        if name not in known:
            known[name] = max((1 + floor(other) for other in graph[name]), default=0)
        return known[name]

    return {name: floor(name) for name in graph}


def reduced(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no longer way stands for."""

    def reach(name: str) -> set[str]:
        return set().union(*({other} | reach(other) for other in graph[name])) if graph[name] else set()

    return [(a, b) for a in graph for b in graph[a] if not any(b in reach(c) for c in graph[a] - {b})]


def drawn(graph: dict[str, set[str]]) -> str:
    """The picture."""
    floor = floors(graph)
    levels = [sorted(n for n in graph if floor[n] == i) for i in range(max(floor.values()), -1, -1)]
    across = max(len(level) for level in levels) * (WIDE + BESIDE) + BESIDE
    tall = len(levels) * (HIGH + BELOW) + BESIDE
    place = {}
    for y, level in enumerate(levels):
        left = (across - len(level) * (WIDE + BESIDE) + BESIDE) / 2
        for x, name in enumerate(level):
            place[name] = (left + x * (WIDE + BESIDE), BESIDE + y * (HIGH + BELOW))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {tall}" font-family="sans-serif">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#8a94a6"/></marker></defs>',
        f'<rect width="{across}" height="{tall}" fill="#ffffff"/>',
    ]
    for a, b in sorted(reduced(graph)):
        (x1, y1), (x2, y2) = place[a], place[b]
        start, end = (x1 + WIDE / 2, y1 + HIGH), (x2 + WIDE / 2, y2)
        bend = (end[1] - start[1]) / 2
        parts.append(
            f'<path d="M{start[0]:g} {start[1]:g}C{start[0]:g} {start[1] + bend:g} {end[0]:g} {end[1] - bend:g} '
            f'{end[0]:g} {end[1]:g}" fill="none" stroke="#8a94a6" stroke-width="1.3" marker-end="url(#a)"/>'
        )
    for name, (x, y) in sorted(place.items()):
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{WIDE}" height="{HIGH}" rx="6" fill="#eef3fb" stroke="#3b5b92"/>'
            + _text(name, x, y + 18, 14, "#1b2a41")
            + _text(WORDS.get(name, ""), x, y + 34, 11, "#52627a")
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(words: str, x: float, y: float, size: int, colour: str) -> str:
    middle = f'x="{x + WIDE / 2:g}" y="{y:g}" text-anchor="middle"'
    return f'<text {middle} font-size="{size}" fill="{colour}">{words}</text>'


def main() -> int:
    """Draw, or with `--check` say whether the picture is as it would be drawn; 1 where it is not, or for a circle."""
    graph = imports(modules())
    if found := circle(graph):
        sys.stderr.write("circle: " + " -> ".join(found) + "\n")
        return 1
    picture = drawn(rooms(graph))
    if "--check" in sys.argv[1:]:
        same = PICTURE.is_file() and PICTURE.read_text() == picture
        sys.stderr.write("as drawn\n" if same else "draw it again: python docs/architecture.py\n")
        return 0 if same else 1
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
