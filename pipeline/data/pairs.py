"""Pairs of LR and HR pictures made by somebody else: found by their names, and looked over for shifts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from pipeline.data.decode import BAD, COPY, Picture, Quarantined, Survey, decode, survey
from pipeline.data.degrade import downscale, modcrop
from pipeline.errors import InputError
from pipeline.metrics import to_y

MOST = 0.5
"""LR pixels that LR may be shifted against its HR: more is no matter of how it was made smaller."""
CLEAR = 0.7
"""Share of the squared difference that must be left at the shift, for it to be believed."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An LR picture and its HR."""

    lr: Picture
    hr: Picture


def pairs(
    lr: str, hr: str, scale: int, on_bad: Literal["raise", "quarantine"], copies: bool = False
) -> tuple[list[Pair], list[Survey]]:
    """The pairs of two folders: equal names, apart from suffixes of LR such as `x4`, `_LR` and `LRx4`. Of equal ones
    the first is kept, all with `copies`, as in a test set. Partners of pictures in quarantine are left out with them.

    Raises InputError for a picture without a partner, a second one of the same HR, and a size that does not fit.
    """
    small, large = (
        survey(Path(f).absolute(), min_side=m, on_bad=on_bad, keep_copies=True)
        for f, m in ((lr, 2), (hr, 2 * scale))
    )
    by_name = {_stem(p.name): p for p in large.pictures}
    bad = {_stem(_below(q.path, hr)) for q in large.left_out if q.kind == BAD}
    worse = {s for q in small.left_out if q.kind == BAD for s in _stems(_stem(_below(q.path, lr)), scale)}
    lost = [p for p in small.pictures if bad.intersection(_stems(_stem(p.name), scale))]
    alone = [p for p in large.pictures if _stem(p.name) in worse]
    small, large = _without(small, lost, "its HR is bad"), _without(large, alone, "its LR is bad")
    found: list[Pair] = []
    taken: dict[str, str] = {}
    for picture in small.pictures:
        stem = _stem(picture.name)
        partner = next((by_name[s] for s in _stems(stem, scale) if s in by_name), None)
        if partner is None:
            raise InputError(
                picture.path, f"an HR picture of its name in {hr}", "none", "Add it, or leave LR out."
            )
        wanted = (partner.height // scale, partner.width // scale)
        if (picture.height, picture.width) != wanted:
            raise InputError(
                picture.path,
                f"{wanted[1]}x{wanted[0]} pixels, a {scale}th of its HR {partner.path}",
                f"{picture.width}x{picture.height}",
                "Is `scale` that of these pairs?",
            )
        if (other := taken.setdefault(partner.path, picture.path)) != picture.path:
            raise InputError(
                picture.path,
                f"one LR picture for each HR picture in {hr}",
                f"{other} for {partner.path} too",
                "Give several LR pictures of one HR in folders of their own, one entry of data.pairs each.",
            )
        found.append(Pair(picture, partner))
    if lonely := sorted({p.path for p in large.pictures} - {pair.hr.path for pair in found}):
        raise InputError(lonely[0], f"an LR picture of its name in {lr}", "none", "Add it, or leave HR out.")
    first: dict[tuple[str, str], Pair] = {}
    again = [p for p in found if first.setdefault((p.lr.sha256, p.hr.sha256), p) is not p and not copies]
    said = "duplicate of an earlier pair"
    surveys = [
        _without(small, [p.lr for p in again], said, COPY),
        _without(large, [p.hr for p in again], said, COPY),
    ]
    return [pair for pair in found if copies or first[pair.lr.sha256, pair.hr.sha256] is pair], surveys


def _without(found: Survey, pictures: list[Picture], reason: str, kind: str = BAD) -> Survey:
    """The survey without these pictures."""
    left_out = [Quarantined(p.path, reason, kind) for p in pictures]
    gone = {p.path for p in pictures}
    kept = [p for p in found.pictures if p.path not in gone]
    return replace(found, pictures=kept, left_out=[*found.left_out, *left_out])


def _below(path: str, folder: str) -> str:
    """A picture's name in its folder."""
    return Path(path).relative_to(Path(folder).absolute()).as_posix()


def _stems(stem: str, scale: int) -> tuple[str, ...]:
    """The names that an LR picture's HR may have."""
    return (stem, _bare(stem, scale))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _bare(stem: str, scale: int) -> str:
    """A name without what LR pictures are marked by."""
    return re.sub(rf"[-_. ]?(lr)?[-_. ]?(x{scale})?$", "", stem, flags=re.IGNORECASE)


def shift_of(lr: np.ndarray, hr: np.ndarray, scale: int) -> tuple[float, float]:
    """How far LR (h, w, 3) is moved down and to the right against HR (H, W, 3) uint8, in LR pixels.

    The peak of the phase correlation (Kuglin and Hines, 1975) of luma with HR shrunk, to parts of a pixel by a
    parabola; (0, 0) where moving LR back does not make the two clearly more alike.
    """
    here, there = (to_y(p) for p in (lr, downscale(modcrop(hr, scale), scale)))
    window = np.outer(np.hanning(here.shape[0]), np.hanning(here.shape[1]))
    one, other = (np.fft.rfft2((x - x.mean()) * window) for x in (here, there))
    cross = one * np.conj(other)
    peaks = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), here.shape)
    top = np.unravel_index(int(np.argmax(peaks)), peaks.shape)
    whole = [int(p) - n if p > n // 2 else int(p) for p, n in zip(top, peaks.shape)]
    if any(whole) and _difference(here, there, whole) > CLEAR * _difference(here, there, [0, 0]):
        return 0.0, 0.0
    parts = [_vertex(np.take(peaks, top[1 - axis], 1 - axis), top[axis]) for axis in (0, 1)]
    return whole[0] + parts[0], whole[1] + parts[1]


def _difference(lr: np.ndarray, small: np.ndarray, moved: Sequence[int]) -> float:
    """Mean squared difference where the two overlap once LR is moved back."""
    one, other = overlap(lr, small, (moved[0], moved[1]), 1)
    return float(np.square(one - other).mean()) if one.size else float("inf")


def _vertex(line: np.ndarray, at: np.intp) -> float:
    """Of the parabola through a peak and its neighbours: between -0.5 and 0.5."""
    before, peak, after = (float(line[(int(at) + d) % len(line)]) for d in (-1, 0, 1))
    bend = before - 2 * peak + after
    return 0.0 if bend >= 0 else float(np.clip(0.5 * (before - after) / bend, -0.5, 0.5))


def overlap(
    lr: np.ndarray, hr: np.ndarray, moved: tuple[int, int], scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """The parts of LR and HR that show the same, LR being moved by whole LR pixels (down, right)."""
    height, width = lr.shape[:2]
    (y, x), (up, left) = ((max(d, 0) for d in moved), (max(-d, 0) for d in moved))
    lr = lr[y : height - up, x : width - left]
    hr = hr[up * scale : (height - y) * scale, left * scale : (width - x) * scale]
    return lr, hr


def registered(pair: Pair, scale: int, align: bool) -> tuple[int, int]:
    """Whole LR pixels that LR is to be moved back by.

    Raises InputError for a shift of more than half an LR pixel, unless `align` mends it.
    """
    moved = shift_of(decode(pair.lr.path), decode(pair.hr.path), scale)
    if max(map(abs, moved)) <= MOST:
        return 0, 0
    if not align:
        raise InputError(
            pair.lr.path,
            f"LR in register with its HR {pair.hr.path}",
            f"a shift of {moved[0]:+.2f} LR pixels down, {moved[1]:+.2f} to the right",
            "`align: true` of this entry of data.pairs crops both to what they share.",
        )
    return round(moved[0]), round(moved[1])
