"""Teachers' outputs: one tile shard in, one output shard out, by teacher.

An output shard is named after its tile shard and lies in a folder named after everything that shaped its
pixels: the tiles' folder, the checkpoint's sha256, the precision and the stored type. So one more teacher, or
one more picture, computes only itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.cost import multiply_adds
from pipeline.errors import FacultyError, InputError
from pipeline.metrics import to_y
from pipeline.recipe import TeacherSpec
from pipeline.shards import records
from pipeline.shards.fingerprint import file_sha256, fingerprint
from pipeline.shards.format import Receipt, Shard, open_verified, write_shard
from pipeline.shards.manifest import Manifest, write_receipt
from pipeline.shards.node import damaged
from pipeline.shards.store import Store
from teachers import zoo
from teachers.descriptor import Precision, Teacher
from teachers.gate import Finding, check, name
from teachers.loading import load_teacher
from teachers.precision_gate import precision_gate

VERSION = 1
STATS = ".stats.json"
"""Beside each output shard: what `read_stats` gives."""


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What was found out about one teacher, once; the cache keeps it."""

    label: str
    path: str
    sha256: str
    architecture: str
    scale: int
    parameters: int
    multiply_adds: int
    """For one 48 x 48 LR tile."""
    precision: Precision
    reading: dict[str, Any] = field(default_factory=dict)
    """`Convention` as the recipe has it, where that is not what the loader knows."""
    findings: tuple[Finding, ...] = ()
    """What the gate has against it."""

    @property
    def warnings(self) -> list[str]:
        """The gate's findings, in the words of an error."""
        where = f"teacher {self.label} ({self.architecture} x{self.scale})"
        return [str(finding.error(where)) for finding in self.findings]

    def record(self) -> dict[str, Any]:
        """The JSON that the cache keeps. What is as it mostly is, is left out."""
        return {k: v for k, v in asdict(self).items() if k not in ("reading", "findings") or v}

    def identity(self, tiles_folder: str, dtype: str) -> dict[str, object]:
        return {
            "version": VERSION,
            "tiles": tiles_folder,
            "sha256": self.sha256,
            "scale": self.scale,
            "precision": self.precision,
            "dtype": dtype,
            **({"reading": self.reading} if self.reading else {}),
        }

    def folder(self, tiles_folder: str, dtype: str) -> str:
        """Where the output shards lie."""
        kind = self.architecture.lower().replace(" ", "-")
        return (
            f"outputs/{tiles_folder.split('/')[-1]}/{kind}-{fingerprint(self.identity(tiles_folder, dtype))}"
        )


def find_facts(spec: TeacherSpec, scale: int, cache: str, device: str = "cpu") -> TeacherFacts:
    """Load a teacher, put it through the gate, choose its precision. Known facts are read from the cache.

    Raises InputError for a missing, damaged, unknown or misfitting checkpoint and, under `gate: check`, for one of
    which the gate is certain. What else it finds is in the facts.
    """
    store = Store.open(cache)
    kind = device.split(":")[0]
    if (known := known_facts(spec, scale, store, kind)) is not None:
        return known
    path, sha256 = resolve(spec.checkpoint)
    as_known = load_teacher(spec.checkpoint, scale=scale, name=spec.label).to(device)
    teacher = as_known.with_convention(**spec.convention)
    findings = tuple(check(teacher)) if spec.gate != "off" else ()
    for finding in findings:
        if finding.certain and spec.gate == "check":
            raise finding.error(name(teacher))
    precision = spec.precision
    if precision == "auto":
        precision = precision_gate(teacher)
    info = teacher.info
    facts = TeacherFacts(
        label=spec.label,
        path=str(path),
        sha256=sha256,
        architecture=info.architecture,
        scale=scale,
        parameters=info.parameters,
        multiply_adds=multiply_adds(teacher.network, (1, 1 if teacher.convention.luma else 3, 48, 48)),
        precision=precision,
        reading={k: v for k, v in spec.convention.items() if v != getattr(as_known.convention, k)},
        findings=findings,
    )
    records.save(store, _facts_file(sha256, scale, spec, kind), facts.record())
    return facts


def known_facts(spec: TeacherSpec, scale: int, store: Store, kind: str) -> TeacherFacts | None:
    """What the cache knows of this checkpoint on this kind of device (`cpu`, `cuda`), or None."""
    path, sha256 = resolve(spec.checkpoint)
    rel = _facts_file(sha256, scale, spec, kind)

    def own(facts: dict[str, Any]) -> TeacherFacts:
        if facts["sha256"] != sha256:
            raise ValueError("it describes another checkpoint")
        findings = tuple(Finding(**finding) for finding in facts.pop("findings", ()))
        return TeacherFacts(**{**facts, "label": spec.label, "path": str(path), "findings": findings})

    return records.load(store, rel, own)


def located(spec: TeacherSpec) -> TeacherSpec:
    """The teacher with its file's absolute path; names of the zoo stay, because the zoo knows more than the file."""
    path = Path(spec.checkpoint)
    return spec.model_copy(update={"checkpoint": str(path.absolute())}) if path.is_file() else spec


def resolve(checkpoint: str) -> tuple[Path, str]:
    """The file behind a path or a name of the zoo (downloaded where it is not here yet), and its sha256."""
    path = Path(checkpoint)
    if not path.is_file():
        if checkpoint not in zoo.ZOO:
            raise InputError(
                f"teachers: {checkpoint}",
                "a checkpoint file or a name of the zoo",
                "neither",
                "`faculty teachers` lists the zoo's names.",
            )
        path = zoo.fetch(zoo.ZOO[checkpoint])
    return path.absolute(), file_sha256(path)


def _facts_file(sha256: str, scale: int, spec: TeacherSpec, kind: str) -> str:
    settings = [str(v) for k in ("gate", "channels", "value_range") if (v := spec.changed.get(k)) is not None]
    return f"teachers/{'-'.join([sha256[:16], f'x{scale}', spec.precision, kind, *settings])}.json"


def load(facts: TeacherFacts, device: str = "cpu") -> Teacher:
    """The teacher as its facts describe it, ready to run."""
    teacher = load_teacher(facts.path, scale=facts.scale, name=facts.label).to(device)
    return teacher.with_convention(**facts.reading).precision(facts.precision)


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher's answer to one shard, not yet written."""

    ids: list[str]
    pictures: np.ndarray
    """(tiles, H, W, 3) in the stored type."""
    stats: dict[str, float]


@dataclass(frozen=True, slots=True)
class TeachTask:
    """One tile shard for one teacher."""

    cache: str
    tiles: Receipt
    folder: str
    scale: int
    dtype: str
    batch: int

    def run(
        self, teacher: Callable[[torch.Tensor], torch.Tensor], device: str = "cpu"
    ) -> tuple[Receipt, dict[str, float]]:
        """Read, compute, commit. Returns the shard's receipt and {tiles, seconds, squared_error, pixels}.

        The squared error is the luma's against HR. Raises as `compute`.
        """
        return self.commit(self.compute(self.read(), teacher, device))

    def read(self) -> Shard:
        """The tile shard, verified."""
        return read(Store.open(self.cache), self.tiles)

    def compute(self, shard: Shard, teacher: Callable[[torch.Tensor], torch.Tensor], device: str) -> Taught:
        """Every tile through the teacher.

        Raises FacultyError naming folder and tile where an output is not finite or has another size.
        """
        ids, lr = shard.columns["id"], shard.columns["lr"]
        hr = shard.columns.get("hr")
        started = time.perf_counter()
        out: np.ndarray | None = None
        error, pixels = 0.0, 0
        for begin in range(0, len(ids), self.batch):
            sr = self._forward(teacher, lr[begin : begin + self.batch], ids[begin], device)
            if out is None:
                out = np.empty((len(ids), *sr.shape[1:]), sr.dtype)
            out[begin : begin + len(sr)] = sr
            if hr is not None:
                e, n = luma_error(sr, hr[begin : begin + len(sr)], self.scale)
                error, pixels = error + e, pixels + n
        assert out is not None
        seconds = time.perf_counter() - started
        stats = {"tiles": len(ids), "seconds": seconds, "squared_error": error, "pixels": pixels}
        return Taught(ids, out, stats)

    def commit(self, taught: Taught) -> tuple[Receipt, dict[str, float]]:
        """Write the output shard; its receipt comes last."""
        store = Store.open(self.cache)
        receipt = commit_output(store, self.folder, self.tiles.key, taught.ids, taught.pictures, taught.stats)
        return receipt, taught.stats

    def _forward(
        self, teacher: Callable[[torch.Tensor], torch.Tensor], lr: np.ndarray, first: str, device: str
    ) -> np.ndarray:
        x = torch.from_numpy(np.array(lr)).to(device).permute(0, 3, 1, 2).float().div_(255)
        sr = teacher(x)
        wanted = (len(lr), 3, lr.shape[1] * self.scale, lr.shape[2] * self.scale)
        if tuple(sr.shape) != wanted or not torch.isfinite(sr).all():
            raise FacultyError(
                f"{self.folder}: the teacher's output for the tiles from {first} on has shape {tuple(sr.shape)} "
                f"(expected {wanted}) or is not finite; precision: fp32 may help."
            )
        return to_stored(sr, self.dtype)


def read(store: Store, receipt: Receipt) -> Shard:
    """The shard of a receipt, verified once on this machine (fetched first from an object store)."""
    return open_verified(store, receipt)


def to_stored(sr_NCHW: torch.Tensor, dtype: str) -> np.ndarray:
    """Float pictures in [0, 1] to the stored form, NHWC: uint8 0..255 rounded, or float16 as they are."""
    sr = sr_NCHW.permute(0, 2, 3, 1)
    if dtype == "uint8":
        return sr.mul(255).round().clamp(0, 255).to(torch.uint8).contiguous().cpu().numpy()
    return sr.to(torch.float16).contiguous().cpu().numpy()


def as_levels(stored: np.ndarray) -> np.ndarray:
    """Stored pictures of either type as uint8 levels."""
    if stored.dtype == np.uint8:
        return stored
    return np.clip(np.rint(stored.astype(np.float32) * 255), 0, 255).astype(np.uint8)


def luma_error(sr: np.ndarray, hr: np.ndarray, shave: int) -> tuple[float, int]:
    """Sum of squared luma errors (grey levels^2) and pixel count of (n, H, W, 3) stored pictures, `shave`
    pixels cut.
    """
    inner = (slice(None), slice(shave, -shave), slice(shave, -shave))
    difference = to_y(as_levels(sr[inner])) - to_y(hr[inner])
    return float(np.square(difference).sum()), difference.size


def psnr(stats: list[dict[str, float]]) -> float:
    """PSNR in dB over all tiles together, from the pooled squared error: a tile that comes out exactly right is a part
    without errors like any other. At most 148.13 dB, which is what is found where all are exactly right.
    """
    error, pixels = sum(s["squared_error"] for s in stats), sum(s["pixels"] for s in stats)
    if not pixels:
        return float("nan")
    return float(10 * np.log10(255**2 / max(error / pixels, 1e-10)))


def commit_output(
    store: Store, folder: str, key: str, ids: list[str], pictures: np.ndarray, stats: dict[str, float]
) -> Receipt:
    """Write an output shard, its statistics, and last its receipt."""
    span = (0, 255) if pictures.dtype == np.uint8 else (0, 1)
    receipt = write_shard(
        store,
        f"{folder}/{key}.arrow",
        {"id": ids, "sr": pictures},
        metadata={"kind": "outputs", "key": key, "folder": folder},
        value_ranges={"sr": span},
    )
    records.save(store, f"{folder}/{key}{STATS}", stats)
    write_receipt(store, receipt)
    return receipt


def read_stats(store: Store, folder: str, keys: list[str]) -> list[dict[str, float]]:
    """The statistics of these shards. Raises Damaged for those that must be made again, with their shard."""
    return [_stats(store, f"{folder}/{key}{STATS}") for key in keys]


def _stats(store: Store, rel: str) -> dict[str, float]:
    found = records.load(store, rel, lambda value: {str(k): float(v) for k, v in value.items()})
    if found is None:
        raise damaged(store.where(rel), "a shard's statistics", "none that can be read")
    return found


def output_manifest(
    facts: dict[str, object], folder: str, tiles: Manifest, receipts: dict[str, Receipt]
) -> Manifest:
    """The manifest of one teacher's (or the fusion's) outputs over one set of tiles."""
    return Manifest(
        kind="outputs",
        fingerprint=fingerprint({"folder": folder, "tiles": tiles.fingerprint}),
        inputs={**facts, "tiles": tiles.fingerprint},
        shards=tuple(receipts[r.key] for r in tiles.shards),
    )
