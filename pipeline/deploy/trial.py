"""Pictures on which a smaller format is tried before it leaves, and what the format loses on them, in dB."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.manifest import Manifest
from pipeline.cache.rows import Rows
from pipeline.cache.store import Store
from pipeline.data.decode import decode, survey
from pipeline.data.degrade import downscale
from pipeline.errors import FacultyError, InputError
from pipeline.metrics import psnr_y, quantise

SIDE = 96
"""LR pixels, at most, a side of what is cut from a picture of a folder."""
COUNT = 16
"""Tiles, at most, to calibrate on, and as many others to check on."""
NOMINAL = 35.0
"""dB that a student is taken to reach where no HR tells: how much a given difference would cost it."""
EQUAL = 120.0
"""dB that stand for equal pictures, which have no finite PSNR."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture to try a format on."""

    lr: np.ndarray
    """(h, w, 3) uint8 RGB"""
    hr: np.ndarray | None = None
    """(scale*h, scale*w, 3) uint8 RGB, where it is known."""

    @property
    def input(self) -> Tensor:
        """(1, 3, h, w) float32 in [0, 1]."""
        return torch.from_numpy(np.ascontiguousarray(self.lr)).permute(2, 0, 1)[None].float() / 255


@dataclass(frozen=True, slots=True)
class Trial:
    """What formats are calibrated and checked on."""

    check: tuple[Tile, ...]
    source: str
    """In words, for the model card."""
    calibrate: tuple[Tile, ...] = ()
    """Pictures of the kind that the student will get; empty where there are none."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What a format loses against the student in PyTorch and float32."""

    db: float
    """PSNR of the student minus that of the format, on luma against HR and a mean over pictures as in the tables: flat
    ones, where eight bits show, count as much as others. Where no HR is known: what the difference of their pictures
    costs a student of `NOMINAL` dB.
    """
    likeness: float
    """PSNR in dB between the format's pictures and the student's, RGB in [0, 1], clamped, by the mean squared error of
    all; `EQUAL` for equal ones.
    """
    measured: bool
    """Whether `db` is against HR."""
    details: dict[str, Any] = field(default_factory=dict)
    """What else is to be said of the file."""

    @property
    def facts(self) -> dict[str, Any]:
        """As JSON."""
        figures = {"loss_db": round(self.db, 4), "psnr_to_pytorch": round(self.likeness, 2)}
        return {**figures, "against_hr": self.measured, **self.details}

    @property
    def text(self) -> str:
        against = "against HR" if self.measured else f"estimated for a student of {NOMINAL:.0f} dB, no HR"
        return f"{self.db:+.3f} dB lost ({against}), {self.likeness:.1f} dB from PyTorch's pictures"


def from_cache(store: Store, train: Manifest, held_out: Manifest | None) -> Trial:
    """The run's tiles: calibrated on training tiles, checked on held-out ones (on other training tiles without)."""
    rows = Rows(store, train)
    numbers = np.linspace(0, len(rows) - 1, min(len(rows), 2 * COUNT)).astype(int)
    some = _cached(rows, numbers[::2])
    if held_out is None or not held_out.shards:
        return Trial(_cached(rows, numbers[1::2]) or some, "training tiles", some)
    others = Rows(store, held_out)
    chosen = np.linspace(0, len(others) - 1, min(len(others), COUNT)).astype(int)
    return Trial(_cached(others, chosen), "held-out tiles", some)


def _cached(rows: Rows, numbers: np.ndarray) -> tuple[Tile, ...]:
    known = rows.known("hr")
    return tuple(
        Tile(rows.take("lr", one)[0], rows.take("hr", one)[0] if known[one[0]] else None)
        for one in (np.array([number]) for number in numbers)
    )


def from_folder(folder: str | Path, scale: int) -> Trial:
    """Centres of the HR pictures under `folder`, made smaller: every second one calibrates, the others check.

    Raises InputError for a missing folder, a bad picture and fewer than two pictures.
    """
    found = survey(Path(folder), min_side=16 * scale, on_bad="raise")
    if len(found.pictures) < 2:
        remedy = "One half calibrates, the other one checks."
        raise InputError(str(folder), "at least two HR pictures", str(len(found.pictures)), remedy)
    tiles = []
    for picture in found.pictures[: 2 * COUNT]:
        hr = decode(picture.path)
        height, width = (min(SIDE, side // scale) * scale for side in hr.shape[:2])
        top, left = (hr.shape[0] - height) // 2, (hr.shape[1] - width) // 2
        hr = np.ascontiguousarray(hr[top : top + height, left : left + width])
        tiles.append(Tile(downscale(hr, scale), hr))
    return Trial(tuple(tiles[1::2]), f"centres of pictures of {Path(folder).name}", tuple(tiles[::2]))


def invented(count: int = 8, side: int = 48) -> Trial:
    """Where there are no pictures: fixed noise with the spectrum of photographs, amplitude 1/f (Field 1987)."""
    generator = np.random.default_rng(0)
    row, column = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    frequency = np.maximum(np.hypot(row, column), 1 / side)
    tiles = []
    for _ in range(count):
        waves = np.fft.fft2(generator.standard_normal((3, side, side))) / frequency
        waves[1:] = 0.8 * waves[:1] + 0.2 * waves[1:]  # the channels of photographs go together
        values = np.fft.ifft2(waves).real
        values = (values - values.mean()) / values.std()
        tiles.append(Tile(np.rint((0.5 + 0.2 * values).clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)))
    return Trial(tuple(tiles), "fixed 1/f noise")


@torch.inference_mode()
def loss(
    other: Callable[[Tensor], Tensor],
    model: Callable[[Tensor], Tensor],
    tiles: tuple[Tile, ...],
    scale: int,
    details: dict[str, Any] | None = None,
) -> Loss:
    """What `other` loses against `model`, both (1, 3, h, w) -> (1, 3, scale*h, scale*w).

    Raises FacultyError where `other` returns another size or values that are not finite.
    """
    between: list[float] = []
    lost: list[float] = []
    for tile in tiles:
        expected, found = model(tile.input), other(tile.input)
        if found.shape != expected.shape:
            sizes = f"{tuple(found.shape)} came back instead of {tuple(expected.shape)}"
            raise FacultyError(f"pictures of {sizes}")
        if not torch.isfinite(found).all():
            raise FacultyError("values that are not finite came back")
        between.append((found.clamp(0, 1) - expected.clamp(0, 1)).double().square().mean().item())
        if tile.hr is not None:
            ours, theirs = (psnr_y(quantise(sr)[0], tile.hr, scale) for sr in (found, expected))
            if math.isfinite(ours) and math.isfinite(theirs):  # as tables leave exact pictures out
                lost.append(theirs - ours)
    error = sum(between) / len(between)
    likeness = min(EQUAL, -10 * math.log10(error)) if error else EQUAL
    if lost:
        return Loss(sum(lost) / len(lost), likeness, True, details or {})
    return Loss(10 * math.log10(1 + error / 10 ** (-NOMINAL / 10)), likeness, False, details or {})
