"""The gate on nineteen of spandrel's architectures, as they are and altered: what is wrong is named, nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from network_kit import ARCHITECTURES, RESTORERS, saved

from pipeline.data.degrade import downscale
from pipeline.errors import InputError
from pipeline.metrics import psnr_rgb
from teachers.descriptor import Teacher
from teachers.gate import CLEAR_GAIN, PHOTOGRAPHS, PLAUSIBLE, Finding, check, crops
from teachers.gate import run as levels
from teachers.loading import load_teacher

FAST = ("Compact", "NAFNet", "PLKSR", "SAFMN", "SwinIR", "OmniSR")
NETWORKS = [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in ARCHITECTURES]
READING = "Set `"


def made(name: str, folder: Path, **altered: object) -> Teacher:
    return load_teacher(saved(name, folder / f"{name}.pth", **altered))  # type: ignore[arg-type]


def named(subject: Teacher, key: str) -> None:
    """The gate is certain, and of that key alone."""
    (finding,) = check(subject)
    assert finding.certain and f"{READING}{key}` on this teacher" in finding.remedy, finding
    assert "`gate: warn`" in finding.remedy


def test_there_are_fifteen_and_spandrel_reads_them(tmp_path: Path) -> None:
    assert len(ARCHITECTURES) >= 15
    assert made("Compact", tmp_path).info.architecture == "Compact"


@pytest.mark.parametrize("name", NETWORKS)
def test_as_they_are_nothing_is_found(name: str, tmp_path: Path) -> None:
    good = made(name, tmp_path)
    assert check(good) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_read_in_255_is_named_where_every_picture_tells(name: str, tmp_path: Path) -> None:
    """Where biases hardly matter a network reads either range, and there is nothing to name."""
    good = made(name, tmp_path)
    misread = good.with_convention(value_range=255.0)
    right, wrong = shrunk(good), shrunk(misread)
    if right.min() >= PLAUSIBLE and (right - wrong).min() >= CLEAR_GAIN:
        named(misread, "value_range: 1")
    else:
        assert all(plausible(finding) for finding in check(misread))
        assert bool(check(misread)) == bool(wrong.mean() < PLAUSIBLE)


def shrunk(subject: Teacher) -> np.ndarray:
    """PSNR in dB of the outputs, shrunk again, against the inputs, by picture."""
    scale, found = subject.info.scale, []
    for crop in crops(PHOTOGRAPHS, 144):
        lr = downscale(crop, scale)
        found.append(min(psnr_rgb(downscale(levels(subject, lr), scale), lr, 2), 99.0))
    return np.array(found)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.values[0] not in RESTORERS])
def test_values_of_0_to_255_are_named(name: str, tmp_path: Path) -> None:
    altered = made(name, tmp_path, value_range=255.0)
    named(altered, "value_range: 255")
    assert check(altered.with_convention(value_range=255.0)) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_another_scale_is_named(name: str, tmp_path: Path) -> None:
    good = made(name, tmp_path)
    other = 2 if good.info.scale != 2 else 4
    with pytest.raises(InputError, match=f"expected scale {other}, found scale {good.info.scale} "):
        load_teacher(tmp_path / f"{name}.pth", scale=other)
    (finding,) = check(lambda lr: good(lr), other)
    assert finding.certain and f"for x{other}" in finding.expected and READING not in finding.remedy


@pytest.mark.parametrize("name", NETWORKS)
def test_blue_first_is_named_or_nothing_untrue_is_said(name: str, tmp_path: Path) -> None:
    """A small network hardly knows one end of the spectrum from the other: only what is measured is said."""
    altered = made(name, tmp_path, blue_first="input output")
    for finding in check(altered):
        assert not finding.certain
        assert READING not in finding.remedy or "channels: bgr" in finding.remedy
    assert check(altered.with_convention(bgr=True)) == []


def plausible(finding: Finding) -> bool:
    """A warning of outputs unlike the inputs: no reading is said to be wrong."""
    return not finding.certain and READING not in finding.remedy


def test_blue_first_is_named_where_many_pictures_tell(tmp_path: Path) -> None:
    altered = made("Compact", tmp_path, blue_first="input output")
    (finding,) = check(altered)
    assert "channels: bgr" in finding.remedy and "10 of 10 colourful pictures" in finding.found
    assert check(altered.with_convention(bgr=True)) == []


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("side", ["input", "output"])
def test_colours_exchanged_on_one_side_are_warned_of_without_a_guess(
    name: str, side: str, tmp_path: Path
) -> None:
    (finding,) = check(made(name, tmp_path, blue_first=side))
    assert "shrunk again" in finding.expected and plausible(finding)
