"""Benchmarks: a picture folder, an upscaler, and the published protocol between them.

HR is cropped to a multiple of the scale, LR is its MATLAB bicubic, the prediction is clamped and rounded to 8
bit, and PSNR and SSIM are taken on the luma with `scale` pixels shaved (of a picture stored with one channel on its
grey levels as they are); a set's figure is the mean over its files, copies included, in the PSNR's without those that
the model or bicubic reproduces exactly (pipeline/means.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.decode import Survey, decode_stored, survey
from pipeline.data.degrade import downscale, modcrop, upscale, upscale_tensor
from pipeline.errors import FacultyError, InputError
from pipeline.means import exact_pictures, set_means
from pipeline.metrics import SSIM_SIDE, psnr_y, quantise, ssim_y
from pipeline.progress import Reporter

log = logging.getLogger(__name__)

Upscaler = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class BenchmarkSet:
    """HR pictures to evaluate on."""

    name: str
    pictures: tuple[tuple[str, str], ...]
    """(picture name, path), sorted by name."""
    survey: Survey | None = None
    """How the folder was read; None for pictures that were named one by one."""
    lr: Mapping[str, str] = field(default_factory=dict)
    """{picture name: path of its LR}, of pairs; others are made smaller."""
    moved: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """{picture name: whole LR pixels that its LR is moved by}, of pairs that are aligned."""

    @property
    def grey(self) -> frozenset[str]:
        """Names of the pictures that are stored with one channel."""
        return frozenset(p.name for p in self.survey.pictures if p.grey) if self.survey else frozenset()


@dataclass(frozen=True, slots=True)
class PictureScore:
    set_name: str
    picture: str
    psnr_y: float
    """dB"""
    ssim_y: float


def load_set(folder: str | Path, scale: int) -> BenchmarkSet:
    """The pictures under `folder`. The set's name is the folder's, or its parent's for a folder called HR.

    Raises InputError for a missing or empty folder, and for a picture that cannot be read or is too small to
    score.
    """
    root = Path(folder).resolve()
    # What is left after the crop to a multiple of the scale and after shaving must hold one SSIM window.
    found = survey(root, min_side=SSIM_SIDE + 2 * scale + scale - 1, on_bad="raise", keep_copies=True)
    name = root.parent.name if root.name == "HR" else root.name
    return BenchmarkSet(name, tuple((p.name, p.path) for p in found.pictures), found)


def announce(found: Survey, reporter: Reporter, *, tested: bool = False) -> None:
    """One line on how a folder was narrowed; a warning where more than hidden files was left out, or changed."""
    (reporter.warn if found.matters else reporter.say)(found.line)
    if changed := found.changed:
        reporter.warn(changed)
    if tested and (copies := found.copies):
        reporter.warn(f"{found.source}: equal pictures are each counted: {', '.join(copies)}")


def bicubic(scale: int) -> Upscaler:
    """The baseline every super-resolution table starts with: MATLAB's bicubic enlargement."""

    def enlarge(lr: torch.Tensor) -> torch.Tensor:
        levels = quantise(lr).permute(0, 3, 1, 2)
        return upscale_tensor(levels, scale).float() / 255.0

    return enlarge


def predict(upscaler: Upscaler, lr: np.ndarray, scale: int, device: torch.device | str = "cpu") -> np.ndarray:
    """One (h, w, 3) uint8 picture through `upscaler`: (h * scale, w * scale, 3) uint8.

    Raises InputError where the upscaler's output has another size, FacultyError where it is not finite.
    """
    x = torch.from_numpy(np.ascontiguousarray(lr)).to(device).permute(2, 0, 1)[None].float() / 255.0
    with torch.inference_mode():
        sr = upscaler(x)
    wanted = (1, 3, lr.shape[0] * scale, lr.shape[1] * scale)
    if tuple(sr.shape) != wanted:
        raise InputError(
            "the model under evaluation",
            f"an output of shape {wanted} for scale {scale}",
            str(tuple(sr.shape)),
            "Is it a model of another scale?",
        )
    if not torch.isfinite(sr).all():
        raise FacultyError(f"the model under evaluation returned non-finite values for a {lr.shape} picture")
    return quantise(sr)[0].cpu().numpy()


def evaluate(
    upscaler: Upscaler,
    sets: Sequence[BenchmarkSet],
    scale: int,
    device: torch.device | str = "cpu",
    on_picture: Callable[[PictureScore], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """`{set name: {"images": n, "psnr_y": dB, "ssim_y": value}}` of an upscaler, with `exact: names` of the pictures
    that the mean PSNR leaves out, where there are any.

    The upscaler takes LR as (1, 3, h, w) in [0, 1] and returns (1, 3, h * scale, w * scale).

    `on_picture` is called after each picture, for progress lines and per-picture tables.
    """
    results: dict[str, dict[str, Any]] = {}
    names = [benchmark.name for benchmark in sets]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"benchmark set {twice[0]}", "sets of different names", "two of one name", "Rename a folder."
        )
    for benchmark in sets:
        scores: dict[str, tuple[float, float]] = {}
        baseline: dict[str, tuple[float, float]] = {}
        for name, path in benchmark.pictures:
            stored, grey = decode_stored(path)
            hr = modcrop(stored, scale)
            lr = downscale(hr, scale)
            sr = predict(upscaler, lr, scale, device)
            score = PictureScore(
                benchmark.name, name, psnr_y(sr, hr, scale, grey), ssim_y(sr, hr, scale, grey)
            )
            log.debug("%s %s: %.3f dB %.4f", score.set_name, name, score.psnr_y, score.ssim_y)
            scores[name] = (score.psnr_y, score.ssim_y)
            # So that a model's figures and bicubic's are means over the same pictures, as in a run's table.
            baseline[name] = (psnr_y(upscale(lr, scale), hr, scale, grey), math.nan)
            if on_picture is not None:
                on_picture(score)
        results[benchmark.name] = set_means(scores, exact_pictures([scores, baseline]))
    return results
