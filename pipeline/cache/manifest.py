"""The list of shards that make up one finished set, and the receipts of a set that is still being filled.

Each shard gets its receipt `<file>.json` right after it is committed, so an interrupted fill goes on where it
stopped. The manifest is written last: readers trust it alone.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.cache import records
from pipeline.cache.format import SUFFIX, CorruptShard, Receipt, verify
from pipeline.cache.node import Damaged
from pipeline.cache.store import DAMAGED, TEMPORARY, Store
from pipeline.errors import InputError

VERSION = 1
RECEIPT_SUFFIX = ".json"
_THREADS = 8  # reading and hashing wait for disks and networks, not for the interpreter
_REMEDY = "Delete it and build this cache again."
_FIELDS = {field.name: field.type for field in dataclasses.fields(Receipt)}
_SET_ASIDE = re.compile(re.escape(DAMAGED) + r"(-\d+)?$")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A finished set of shards."""

    kind: str
    """What the shards hold: tiles, outputs, targets."""
    fingerprint: str
    """`fingerprint(inputs)`: 16 hexadecimal digits."""
    inputs: dict[str, Any]
    """What the set was made from, in readable form: plain JSON values."""
    shards: tuple[Receipt, ...]
    version: int = VERSION

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a set."""

    file: str
    kind: str
    """damaged (missing, truncated, changed) or extra (there, but in no manifest)."""
    detail: str


def save(manifest: Manifest, store: Store, rel: str) -> None:
    """Write a manifest atomically, after all its shards."""
    records.save(store, rel, dataclasses.asdict(manifest))


def keep(manifest: Manifest, store: Store, rel: str) -> Manifest:
    """Write a manifest where it is not there as it is. One that is damaged or of another version is set aside."""
    try:
        if store.exists(rel) and load(store, rel) == manifest:
            return manifest
    except InputError as error:
        records.set_aside(store, rel, f"expected {error.expected}, found {error.found}")
    save(manifest, store, rel)
    return manifest


def load(store: Store, rel: str) -> Manifest:
    """Read a manifest. Raises InputError if it is absent or of another version, Damaged (one, too) if it is damaged."""
    where = store.where(rel)
    data = _parse(rel, where, _read(store, rel, where))
    if data.get("version") != VERSION:
        raise InputError(
            where, f"a manifest of version {VERSION}", f"version {data.get('version')!r}", _REMEDY
        )
    kinds = {"kind": str, "fingerprint": str, "inputs": dict, "shards": list, "version": int}
    _check(where, data, kinds)
    shards = tuple(_receipt(f"{where}: shards.{i}", item) for i, item in enumerate(data["shards"]))
    return Manifest(**{**data, "shards": shards})


def write_receipt(store: Store, receipt: Receipt) -> None:
    """Record that a shard is committed, as `<file>.json` beside it."""
    records.save(store, receipt.file + RECEIPT_SUFFIX, dataclasses.asdict(receipt))


def committed(store: Store, folder: str, note: str = "") -> dict[str, Receipt]:
    """Return key -> receipt of the shards in `folder` that have a receipt, the size that it says, and their `note`.

    Receipts and shards that are damaged as far as their sizes tell are set aside: they count as not made.
    """
    sizes = dict(store.list(folder))
    names = [rel for rel in sizes if rel.endswith(SUFFIX + RECEIPT_SUFFIX)]
    receipts = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for receipt in pool.map(lambda rel: _committed(store, rel, sizes), names):
            if receipt is None:
                continue
            if note and (rel := receipt.file.removesuffix(SUFFIX) + note) not in sizes:
                records.missing(store, rel)
                continue
            receipts[receipt.key] = receipt
    return receipts


def _committed(store: Store, rel: str, sizes: Mapping[str, int]) -> Receipt | None:
    """The receipt `rel` if its shard is there in the size that it says."""
    file = rel.removesuffix(RECEIPT_SUFFIX)

    def own(data: Any) -> Receipt:
        receipt = _receipt(store.where(rel), data)
        if receipt.file != file or receipt.key != PurePosixPath(file).name.removesuffix(SUFFIX):
            raise ValueError(f"it is the receipt of {receipt.file}")
        return receipt

    receipt = records.load(store, rel, own)
    if receipt is None or sizes.get(file) == receipt.bytes:
        return receipt
    if file not in sizes:
        records.missing(store, file)
    else:
        records.set_aside(store, file, f"expected {receipt.bytes} bytes, found {sizes[file]}")
    return None


def verify_set(store: Store, manifest: Manifest, full: bool) -> list[Problem]:
    """Return what is wrong with a set: shards that fail `verify`, and shards beside them that it lacks.

    Where sets share a folder, one set's extra shards are another's own.
    """

    def examine(receipt: Receipt) -> list[Problem]:
        try:
            verify(store, receipt, full)
        except CorruptShard as error:
            return [Problem(receipt.file, "damaged", f"expected {error.expected}, found {error.found}")]
        return []

    with ThreadPoolExecutor(_THREADS) as pool:
        problems = [problem for found in pool.map(examine, manifest.shards) for problem in found]
    listed = {receipt.file for receipt in manifest.shards}
    for folder in sorted({str(PurePosixPath(file).parent) for file in listed}):
        for rel, size in store.list("" if folder == "." else folder):
            if rel.endswith(SUFFIX) and rel not in listed:
                problems.append(Problem(rel, "extra", f"{size} bytes that no row of the manifest names"))
    return problems


GAINS = ".gains.json"
"""How the records of what tiles have to teach end."""
NOTES = (".stats.json", ".pictures.json", GAINS)
"""What stages write beside a shard, under its key."""


def unneeded(store: Store, folder: str, keep: Collection[str]) -> dict[str, int]:
    """Return name -> bytes of what no one needs in `folder`.

    These are leftovers of killed writers, files set aside as damaged, shards not named in `keep`, and receipts and
    notes of absent shards.
    """
    present = dict(store.list(folder))
    needed = set(keep) & set(present)
    doomed = {}
    for rel, size in present.items():
        note = next((n for n in NOTES if rel.endswith(n)), None)
        shard = rel.removesuffix(note) + SUFFIX if note else rel.removesuffix(RECEIPT_SUFFIX)
        if (
            rel.endswith(TEMPORARY)
            or _SET_ASIDE.search(rel)
            or (shard.endswith(SUFFIX) and shard not in needed)
        ):
            doomed[rel] = size
    return doomed


def gc(store: Store, folder: str, keep: Collection[str]) -> list[str]:
    """Delete what is `unneeded` and return the names.

    Call it under the folder's lock: a live writer's file looks like a leftover.
    """
    doomed = unneeded(store, folder, keep)
    for rel in sorted(doomed, reverse=True):  # a receipt goes before its shard
        store.delete(rel)
    return list(doomed)


def _read(store: Store, rel: str, where: str) -> bytes:
    try:
        return store.read_bytes(rel)
    except FileNotFoundError as error:
        raise InputError(where, "a manifest", "nothing there", "Build this cache first.") from error


def _parse(rel: str, where: str, data: bytes) -> dict[str, Any]:
    try:
        parsed = records.parse(rel, data)
    except ValueError as error:
        raise Damaged(where, "JSON", f"damaged text ({error})", _REMEDY) from error
    if not isinstance(parsed, dict):
        raise Damaged(where, "a JSON object", type(parsed).__name__, _REMEDY)
    return parsed


def _check(where: str, data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    wrong = set(data) ^ set(kinds) or {key for key in kinds if type(data[key]) is not kinds[key]}
    if wrong:
        found = f"{', '.join(sorted(wrong))} missing, unknown or of another type"
        raise Damaged(where, f"the keys {', '.join(kinds)}", found, _REMEDY)


def _receipt(where: str, data: Any) -> Receipt:
    if not isinstance(data, dict):
        raise Damaged(where, "a JSON object", type(data).__name__, _REMEDY)
    _check(where, data, {name: int if kind == "int" else str for name, kind in _FIELDS.items()})
    return Receipt(**data)
