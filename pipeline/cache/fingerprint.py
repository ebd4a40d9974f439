"""Content fingerprints: the name under which a result is stored follows from what went into it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20


def canonical(obj: object) -> bytes:
    """Return the one byte string that stands for `obj` on every machine and Python version.

    Mappings (string keys, any order), sequences, dataclasses, strings, numbers, booleans and None are
    allowed. Floats are written by `repr`, the shortest text that reads back equal, so 1 and 1.0 differ and
    0.1 is always `0.1`.

    Raises: TypeError for any other type or key, ValueError for a float that is not finite.
    """
    text = json.dumps(_plain(obj), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def fingerprint(obj: object) -> str:
    """Return 16 hexadecimal digits (64 bits of SHA-256) of `canonical(obj)`."""
    return hashlib.sha256(canonical(obj)).hexdigest()[:16]


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return stream_sha256(file)


def stream_sha256(stream: BinaryIO) -> str:
    """Return the SHA-256 of what is left in a readable binary stream (a file or a pyarrow stream)."""
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _plain(obj: object) -> object:
    if obj is None or type(obj) in (str, int, float, bool):
        return obj
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {field.name: _plain(getattr(obj, field.name)) for field in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        for key in obj:
            if type(key) is not str:
                raise TypeError(f"a fingerprint takes string keys alone, not {key!r}")
        return {key: _plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    raise TypeError(f"a fingerprint cannot take a {type(obj).__name__}: {obj!r}")
