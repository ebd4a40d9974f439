"""Seeded changes of files: of their bits, of their text, and of a recipe's values."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

VALUES = (
    *(
        [],
        {},
        "",
        "x",
        None,
        True,
        -1,
        0,
        0.5,
        [1],
        {"a": 1},
        [[]],
        "../..",
        "a\nb",
        "ü\u2028",
        "${",
        "$HOME",
    ),
    *("0x10", "1e5", "~", "%s", "{0}"),
)
HUGE = (10**30, -(10**30), 1e308, float("inf"), float("nan"), "9" * 5000)


@dataclass(frozen=True)
class Place:
    """Intact inputs, and a folder for one change of one of them."""

    root: Path
    work: Path

    def at(self, name: str) -> Path:
        return self.work / name


@dataclass(frozen=True)
class Case:
    """One command on one file: `file` is what is changed (relative to the place), `arguments` what is run."""

    name: str
    file: str
    arguments: Callable[[Place], list[object]]
    kind: str = "bytes"
    codes: tuple[int, ...] = (0, 2)

    def __str__(self) -> str:
        return self.name


def change(case: Case, data: bytes, rng: random.Random) -> bytes | None:
    """The file's next content; None: a folder stands in its place."""
    ways: list[Callable[[], bytes | None]] = [
        lambda: flipped(data, rng, 1),
        lambda: flipped(data, rng, 1),
        lambda: flipped(data, rng, 30),
        lambda: data[: rng.randrange(len(data))],
        lambda: rng.randbytes(rng.randrange(1, 300)),
        lambda: spliced(data, rng, rng.randbytes(rng.randrange(1, 50))),
        lambda: spliced(data, rng, b"\0" * rng.randrange(1, 9)),
        lambda: b"",
        lambda: None,
        lambda: data + data,
    ]
    if case.kind != "bytes":
        text = data.decode()
        ways += [
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16-le"),
            lambda: spliced(data, rng, "ü".encode("latin-1")),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: text.replace("\n", "\r\n").encode(),
        ]
    if case.kind.startswith("recipe"):
        values = VALUES + (HUGE if case.kind.endswith("+") else ())
        ways += 8 * [lambda: swapped(data, rng, values)] + [
            lambda: data + b"\nname: again\n",
            lambda: spliced(data, rng, b"[" * 4000),
            lambda: bomb(data),
            lambda: data + b"\nloop: &a [*a]\n",
            lambda: data + b"\nwhen: 2020-13-45\n",
            lambda: data + b"\nn: !!int x\no: !!python/object/apply:os.getcwd []\n",
            lambda: spliced(
                data,
                rng,
                rng.choice(["\u2028", "\x85", "\t", "{", "*x", "&a", "${NOT_SET_ANYWHERE}"]).encode(),
            ),
        ]
    return rng.choice(ways)()


def flipped(data: bytes, rng: random.Random, bits: int) -> bytes:
    result = bytearray(data)
    for _ in range(bits):
        result[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(result)


def spliced(data: bytes, rng: random.Random, more: bytes) -> bytes:
    place = rng.randrange(len(data))
    return data[:place] + more + data[place + rng.choice([0, len(more)]) :]


def swapped(data: bytes, rng: random.Random, values: tuple[object, ...]) -> bytes:
    """The recipe with another value, and perhaps of another type, at one of its places."""
    tree = yaml.safe_load(data)
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):  # type: ignore[arg-type]
            places.append((node, key))
            if isinstance(node[key], (dict, list)):  # type: ignore[index]
                walk(node[key])  # type: ignore[index]

    walk(tree)
    node, key = rng.choice(places)
    node[key] = rng.choice(values)  # type: ignore[index]
    return yaml.safe_dump(tree, allow_unicode=True).encode()


def bomb(data: bytes) -> bytes:
    """Few bytes that stand for 9 ** 9 values."""
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return data + "\n".join(["", *lines, "student: {name: fsrcnn, options: {d: *a9}}", ""]).encode()
