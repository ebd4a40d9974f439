"""Asks whether a network does what is said of it: enlarge a picture and leave it that picture.

`check` looks for outputs that are not finite or, shrunk again, no longer the input, and names a value range, an order
of channels or a scale only where reading the network so is better far beyond noise. How high its PSNR lies is no
question here: networks that were trained adversarially invent texture.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.degrade import downscale, modcrop
from pipeline.errors import FacultyError, InputError
from pipeline.metrics import psnr_rgb
from teachers.descriptor import Teacher

log = logging.getLogger(__name__)

Upscaler = Callable[[Tensor], Tensor]
"""(N, 3, H, W) RGB float in [0, 1] -> (N, 3, scale*H, scale*W), the same."""

PHOTOGRAPHS = (
    ("astronaut.png", 0, 120),
    ("coffee.png", 120, 200),
    ("chelsea.png", 60, 100),
    ("rocket.jpg", 150, 250),
)
"""File, top and left of crops of 144 pixels a side."""
COLOURFUL = (
    ("motorcycle_left.png", 120, 360),
    ("motorcycle_left.png", 120, 480),
    ("motorcycle_left.png", 240, 240),
    ("astronaut.png", 240, 240),
    ("motorcycle_left.png", 120, 120),
    ("astronaut.png", 240, 120),
    ("motorcycle_left.png", 120, 240),
    ("coffee.png", 240, 360),
    ("coffee.png", 0, 0),
    ("coffee.png", 120, 240),
)
"""The same for the most colourful crops of 120 pixels a side."""
SATURATION = 4.0
PLAUSIBLE = 25.0
"""dB between an output, shrunk again, and the input: less is warned of. Of published networks, sharpening ones that
were trained adversarially have 30 at least, others 47 at least.
"""
UNLIKE = 15.0
"""dB below which, on every picture, an output has nothing to do with the input."""
CLEAR_GAIN = 6.0
"""dB by which another reading must be nearer to the input on every picture to be named as the right one."""
FAITHFUL = 45.0
"""dB from which on outputs are those of a network that is read right: no other value range is certain, and its order of
channels can be judged.
"""
ORDER_GAIN = 0.1
"""dB against HR, in the mean, that the other order of channels must be better by, and `ORDER_CERTAINTY` times the
standard error, and on all but one picture.
"""
ORDER_CERTAINTY = 3.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a network that speaks against what is said of it."""

    expected: str
    found: str
    remedy: str
    certain: bool
    """Nothing good can come of it; else it may be right all the same."""

    def error(self, where: str) -> InputError:
        """The finding as the error that names `where`; its text is that of a warning as well."""
        return InputError(where, self.expected, self.found, self.remedy)


GO_ON = "`gate: warn` on this teacher goes on all the same."


def check(
    upscaler: Teacher | Upscaler,
    scale: int | None = None,
    *,
    pictures: Sequence[np.ndarray] | None = None,
    order: bool = True,
) -> list[Finding]:
    """What speaks against a teacher, or against any upscaler of a `scale`; nothing for a plausible one.

    `pictures`: HR, (H, W, 3) uint8; left out, photographs that come with scikit-image. `order=False` leaves out the
    order of channels, the longest question. Raises InputError where the output has another size than it should.
    """
    scale = upscaler.info.scale if isinstance(upscaler, Teacher) else scale
    assert scale is not None, "an upscaler that is no Teacher needs its scale"
    given = list(crops(PHOTOGRAPHS, 144)) if pictures is None else [modcrop(p, scale) for p in pictures]
    low = [downscale(hr, scale) for hr in given]
    size, wanted = (
        tuple(_output(upscaler, low[0]).shape),
        (3, low[0].shape[0] * scale, low[0].shape[1] * scale),
    )
    if size != wanted:
        return [
            Finding(
                f"output {wanted} for x{scale}", f"{size}", "The network is made for another scale.", True
            )
        ]
    own = _consistency(upscaler, low, scale)
    log.info("%r: shrunk again, %.1f dB from the input", upscaler, own.mean())
    for finding in (_range(upscaler, low, scale, own), _scale(upscaler, given, own)):
        if finding is not None:
            return [finding]
    if not all(_output(upscaler, lr).isfinite().all() for lr in low):
        return [Finding("finite values", "NaN or infinite ones", f"The weights are damaged. {GO_ON}", True)]
    if own.mean() < PLAUSIBLE:
        return [_unlike(own)]
    swapped = _order(upscaler, scale) if order and own.mean() >= FAITHFUL else None
    return [swapped] if swapped else []


def warn_of(
    upscaler: Teacher | Upscaler, scale: int, where: str, warn: Callable[[str], None], *, order: bool = True
) -> None:
    """Say what speaks against a network, in a run's words, for commands that never refuse one for it."""
    if isinstance(upscaler, Teacher):
        where = name(upscaler)
    try:
        findings = check(upscaler, scale, order=order)
    except FacultyError as error:  # a graph may take other sizes only; the user's pictures will tell
        log.info("%s: not looked over: %s", where, error)
        return
    for finding in findings:
        warn(str(finding.error(where)))


def name(teacher: Teacher) -> str:
    """How messages call a teacher."""
    return f"teacher {teacher.info.name} ({teacher.info.architecture} x{teacher.info.scale})"


def read_as(upscaler: Upscaler, value_range: float = 1.0, bgr: bool = False) -> Upscaler:
    """An upscaler whose network wants white to be `value_range`, and blue first."""

    def run(lr: Tensor) -> Tensor:
        out = upscaler((lr.flip(1) if bgr else lr) * value_range) / value_range
        return out.flip(1) if bgr else out

    return run


def _range(
    upscaler: Teacher | Upscaler, low: list[np.ndarray], scale: int, own: np.ndarray
) -> Finding | None:
    """Another value range, in which outputs are far nearer to the inputs."""
    now = upscaler.convention.value_range if isinstance(upscaler, Teacher) else 1.0
    other = 1.0 if now == 255.0 else 255.0
    reading = (
        upscaler.with_convention(value_range=other)
        if isinstance(upscaler, Teacher)
        else read_as(upscaler, other)
    )
    readings: dict[str, tuple[Upscaler, str]] = {f"0..{other:g}": (reading, _keys(f"value_range: {other:g}"))}
    if now == 1.0:
        remedy = f"Export it again with its output divided by 255. {GO_ON}"
        readings["0..255 in its output alone"] = (lambda lr: upscaler(lr) / 255.0, remedy)
    for wanted, (reading, remedy) in readings.items():
        there = _consistency(reading, low, scale)
        if there.min() >= PLAUSIBLE and (there - own).min() >= CLEAR_GAIN:
            found = (
                f"one of {wanted}: its outputs, shrunk again, are {there.mean():.1f} dB from the inputs so, "
            )
            found += f"{own.mean():.1f} dB now"
            return Finding(f"a network of values in 0..{now:g}", found, remedy, bool(own.max() < FAITHFUL))
    return None


def _scale(upscaler: Teacher | Upscaler, given: list[np.ndarray], own: np.ndarray) -> Finding | None:
    """Weights that fit several scales tell theirs alone by what their outputs shrink to."""
    for other in upscaler.variants if isinstance(upscaler, Teacher) else ():
        scale = other.info.scale
        low = [downscale(modcrop(hr, scale), scale) for hr in given]
        there = _consistency(other.to(upscaler.device), low, scale)
        if there.min() >= PLAUSIBLE and (there - own).min() >= CLEAR_GAIN:
            found = (
                f"weights made for x{scale}: their outputs, shrunk again, are {there.mean():.1f} dB from the inputs "
                f"there, {own.mean():.1f} dB at x{upscaler.info.scale}"
            )
            remedy = f"Name the checkpoint of the recipe's scale. {GO_ON}"
            expected = f"weights made for x{upscaler.info.scale}"
            return Finding(expected, found, remedy, True)
    return None


def _unlike(own: np.ndarray) -> Finding:
    return Finding(
        f"outputs that, shrunk again, are {PLAUSIBLE:g} dB from the inputs or nearer",
        f"{own.mean():.1f} dB",
        "The network may be untrained, damaged, or made for something else than enlarging, and no `value_range` is "
        f"clearly right. {GO_ON}",
        certain=bool(own.max() < UNLIKE),
    )


def _order(upscaler: Teacher | Upscaler, scale: int) -> Finding | None:
    """A network fed with red and blue exchanged shrinks to its input all the same: only its loss against HR tells, on
    strong colours, and by so little that it is never certain.
    """
    if isinstance(upscaler, Teacher):
        now = upscaler.convention.bgr
        if upscaler.convention.luma:
            return None
        other: Upscaler = upscaler.with_convention(bgr=not now)
    else:
        now, other = False, read_as(upscaler, bgr=True)
    gains = []
    for crop in crops(COLOURFUL, 120):
        hr = _saturated(crop)
        lr = downscale(hr, scale)
        gains.append(psnr_rgb(run(other, lr), hr, scale) - psnr_rgb(run(upscaler, lr), hr, scale))
    gain, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / len(gains) ** 0.5
    better = sum(g > 0 for g in gains)
    if gain < ORDER_GAIN or gain < ORDER_CERTAINTY * error or better < len(gains) - 1:
        return None
    told, wanted = ("bgr", "rgb") if now else ("rgb", "bgr")
    found = f"{wanted} better on {better} of {len(gains)} colourful pictures, by {gain:.2f} dB"
    return Finding(f"channels in the order {told}", found, _keys(f"channels: {wanted}"), False)


def _keys(setting: str) -> str:
    option = "--" + setting.replace("_", "-").replace(":", "")
    return f"Set `{setting}` on this teacher (`{option}` on the command line). {GO_ON}"


def _output(upscaler: Upscaler, lr: np.ndarray) -> Tensor:
    """One 8-bit picture (h, w, 3) through an upscaler: (3, H, W)."""
    return upscaler(torch.from_numpy(np.ascontiguousarray(lr)).permute(2, 0, 1)[None].float() / 255.0)[0]


def run(upscaler: Upscaler, lr: np.ndarray) -> np.ndarray:
    """One 8-bit picture (h, w, 3) through an upscaler, back to 8 bits."""
    quantised = _output(upscaler, lr).nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return quantised.permute(1, 2, 0).cpu().numpy()


def _consistency(upscaler: Upscaler, low: Sequence[np.ndarray], scale: int) -> np.ndarray:
    """PSNR in dB, by picture, of the outputs, shrunk again, against what the network was given; at most 99."""
    return np.array([min(psnr_rgb(downscale(run(upscaler, lr), scale), lr, 2), 99.0) for lr in low])


def crops(places: Sequence[tuple[str, int, int]], side: int) -> Iterator[np.ndarray]:
    """Square crops of `side` pixels, (side, side, 3) uint8, of scikit-image's photographs."""
    folder = importlib.resources.files("skimage.data")
    for name, top, left in places:
        with (folder / name).open("rb") as file:
            picture = np.asarray(Image.open(file).convert("RGB"))
        yield picture[top : top + side, left : left + side]


def _saturated(picture: np.ndarray) -> np.ndarray:
    grey = picture @ np.array([0.299, 0.587, 0.114])
    return np.clip(np.rint(grey[..., None] + SATURATION * (picture - grey[..., None])), 0, 255).astype(
        np.uint8
    )
