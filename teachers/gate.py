"""Looks a new teacher over before anything is learned from it.

`check` upscales a few photographs that come with scikit-image and refuses a teacher that does worse than bicubic,
naming what would mend it: another value range, blue first, another scale. `precision_gate` says whether bf16 is
faster here and as good.
"""

from __future__ import annotations

import importlib.resources
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.degrade import downscale, modcrop, upscale
from pipeline.errors import InputError
from pipeline.metrics import psnr_rgb, psnr_y
from teachers.descriptor import Precision, Teacher

log = logging.getLogger(__name__)

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
SWAPPED_GAIN = 0.05
"""dB in RGB by which the other order of channels must win on the colourful crops for a refusal."""
CLEAR_GAIN = 1.0  # dB by which another reading of the network must win to be named as the cause
PERCEPTUAL_ALLOWANCE = 6.0  # dB below bicubic that an adversarially trained network may lie
PRECISION_LOSS = 0.005  # dB that bf16 may cost
PRECISION_SPEEDUP = 1.1  # by which it must be faster


@dataclass(frozen=True, slots=True)
class GateResult:
    """How a teacher did on the pictures of the gate, in dB; luma with `scale` pixels shaved."""

    psnr_y: float
    bicubic_psnr_y: float
    consistency: float
    """PSNR of the teacher's output, downscaled again, against its input."""


def check(teacher: Teacher, pictures: Sequence[np.ndarray] | None = None) -> GateResult:
    """Raises InputError, naming the likely cause, where a teacher does not do what its descriptor says.

    `pictures`: HR, (H, W, 3) uint8; left out, photographs that come with scikit-image. Refused are: worse than
    bicubic upscaling (by more than 6 dB for a perceptual teacher); clearly better in another value range; better
    in BGR; weights of another scale where their shapes fit several.
    """
    bundled = pictures is None
    scale = teacher.info.scale
    photographs = (
        list(_crops(PHOTOGRAPHS, 144)) if pictures is None else [modcrop(p, scale) for p in pictures]
    )
    outputs = [run(teacher, downscale(hr, scale)) for hr in photographs]
    result = GateResult(
        psnr_y=_mean(psnr_y(out, hr, scale) for out, hr in zip(outputs, photographs)),
        bicubic_psnr_y=_mean(psnr_y(upscale(downscale(hr, scale), scale), hr, scale) for hr in photographs),
        consistency=_consistency(outputs, photographs, scale),
    )
    floor = result.bicubic_psnr_y - (PERCEPTUAL_ALLOWANCE if teacher.info.perceptual else 0.0)
    log.info("%r: %.2f dB, bicubic %.2f dB", teacher, result.psnr_y, result.bicubic_psnr_y)
    if not result.psnr_y >= floor or teacher.info.perceptual:
        cause = _cause(teacher, photographs, outputs, max(floor, result.psnr_y + CLEAR_GAIN))
        if cause or not result.psnr_y >= floor:
            raise _refusal(
                teacher, f"{result.psnr_y:.2f} dB", f"at least {floor:.2f} dB", cause or UNKNOWN_CAUSE
            )
    _check_scale(teacher, photographs, result)
    if bundled:
        _check_order(teacher)
    return result


UNKNOWN_CAUSE = (
    "No other value range or channel order helps: the weights are untrained, damaged, or made for another scale "
    "or degradation. If it was trained adversarially, say so: `perceptual`."
)


def _refusal(teacher: Teacher, found: str, expected: str, remedy: str) -> InputError:
    where = f"teacher {teacher.info.name} ({teacher.info.architecture} x{teacher.info.scale})"
    return InputError(where, f"{expected} on the gate's pictures", found, remedy)


def _cause(
    teacher: Teacher, photographs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], enough: float
) -> str:
    """What reads the same network with at least `enough` dB, or an empty string."""
    scale, convention = teacher.info.scale, teacher.convention
    other_range = 1.0 if convention.value_range == 255.0 else 255.0

    def score(reading: Callable[[Tensor], Tensor]) -> float:
        return _mean(psnr_y(run(reading, downscale(hr, scale)), hr, scale) for hr in photographs)

    def centred(lr: Tensor) -> Tensor:  # the network wants [-1, 1]
        return (teacher.with_convention(value_range=1.0)(lr * 2.0 - 1.0) + 1.0) / 2.0

    swapped = teacher.with_convention(bgr=not convention.bgr)
    readings = {
        f"values of 0..{other_range:g}; it was given 0..{convention.value_range:g}": score(
            teacher.with_convention(value_range=other_range)
        ),
        "values of -1..1": score(centred),
        "its output with red and blue exchanged": _mean(
            psnr_y(np.ascontiguousarray(out[..., ::-1]), hr, scale) for out, hr in zip(outputs, photographs)
        ),
        "its input with red and blue exchanged": score(lambda lr: swapped(lr).flip(1)),
    }
    best = max(readings, key=lambda reading: readings[reading])
    if readings[best] < enough:
        return ""
    return f"The network seems to want {best} ({readings[best]:.2f} dB so)."


def _check_scale(teacher: Teacher, photographs: Sequence[np.ndarray], result: GateResult) -> None:
    """A network made for another scale gives pictures that do not shrink back to what it was given."""
    for other in teacher.variants:
        scale = other.info.scale
        cropped = [modcrop(hr, scale) for hr in photographs]
        outputs = [run(other.to(teacher.device), downscale(hr, scale)) for hr in cropped]
        consistency = _consistency(outputs, cropped, scale)
        if consistency > result.consistency:
            found = f"weights made for x{scale}: shrunk again, outputs are {consistency:.1f} dB from the input there, "
            raise _refusal(
                teacher,
                found + f"{result.consistency:.1f} dB at x{teacher.info.scale}",
                f"weights made for x{teacher.info.scale}",
                "Name the checkpoint of the recipe's scale.",
            )


def _check_order(teacher: Teacher) -> None:
    """A network fed with red and blue exchanged is hardly worse: it takes strong colours to tell."""
    scale = teacher.info.scale
    other = teacher.with_convention(bgr=not teacher.convention.bgr)
    gains = []
    for crop in _crops(COLOURFUL, 120):
        hr = _saturated(crop)
        lr = downscale(hr, scale)
        gains.append(psnr_rgb(run(other, lr), hr, scale) - psnr_rgb(run(teacher, lr), hr, scale))
    gain = float(np.mean(gains))
    if gain > SWAPPED_GAIN:
        order, wanted = ("BGR", "RGB") if teacher.convention.bgr else ("RGB", "BGR")
        found = f"{gain:.2f} dB more in {wanted}"
        remedy = f"Red and blue are exchanged: the network wants {wanted}."
        raise _refusal(teacher, found, f"{order} to be the better order", remedy)


def run(upscaler: Callable[[Tensor], Tensor], lr: np.ndarray) -> np.ndarray:
    """One 8-bit picture (h, w, 3) through an upscaler of (N, 3, H, W) floats in [0, 1], back to 8 bits."""
    out = upscaler(torch.from_numpy(np.ascontiguousarray(lr)).permute(2, 0, 1)[None].float() / 255.0)
    quantised = out[0].nan_to_num(0.0).clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8)
    return quantised.permute(1, 2, 0).cpu().numpy()


def _consistency(outputs: Sequence[np.ndarray], photographs: Sequence[np.ndarray], scale: int) -> float:
    """Mean PSNR of the outputs, downscaled again, against what the network was given."""
    return _mean(
        min(psnr_y(downscale(out, scale), downscale(hr, scale), scale), 99.0)
        for out, hr in zip(outputs, photographs)
    )


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def _crops(places: Sequence[tuple[str, int, int]], side: int) -> Iterator[np.ndarray]:
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


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """bf16 against fp32 on one device."""

    drop: float
    """dB of PSNR (luma, against HR) lost on the gate's photographs; negative when bf16 is better."""
    speedup: float
    """Seconds of an fp32 call over seconds of a bf16 call."""

    @property
    def choice(self) -> Precision:
        return "bf16" if self.drop <= PRECISION_LOSS and self.speedup >= PRECISION_SPEEDUP else "fp32"


def precision_gate(teacher: Teacher, lr: Tensor | None = None) -> Precision:
    """The precision to teach in: bf16 where it is faster here and costs at most 0.005 dB, else fp32.

    Times are taken on `lr` (N, 3, H, W) in [0, 1], by default two pictures of 64 pixels a side. The answer is
    kept for the process, by checkpoint, device and number of threads. The teacher's precision is left alone.
    """
    device = torch.cuda.get_device_name(teacher.device) if teacher.device.type == "cuda" else "cpu"
    key = (teacher.info.sha256, teacher.info.scale, device, torch.get_num_threads())
    if key not in _chosen:
        report = measure_precision(teacher, lr)
        log.info("%r: bf16 %.2f times as fast, %.4f dB lost", teacher, report.speedup, report.drop)
        _chosen[key] = report.choice
    return _chosen[key]


_chosen: dict[tuple[str, int, str, int], Precision] = {}


def measure_precision(teacher: Teacher, lr: Tensor | None = None) -> PrecisionReport:
    """Measures what `precision_gate` decides on."""
    before: Precision = teacher.dtype
    lr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) if lr is None else lr
    scale = teacher.info.scale
    pictures = [*_crops(PHOTOGRAPHS, 144), *_crops(COLOURFUL, 120)]
    psnr, seconds = {}, {}
    try:
        for dtype in ("fp32", "bf16"):
            teacher.precision(dtype)
            psnr[dtype] = _mean(psnr_y(run(teacher, downscale(hr, scale)), hr, scale) for hr in pictures)
            seconds[dtype] = _seconds(teacher, lr)
    finally:
        teacher.precision(before)
    return PrecisionReport(psnr["fp32"] - psnr["bf16"], seconds["fp32"] / seconds["bf16"])


def _seconds(teacher: Teacher, lr: Tensor, repeats: int = 3) -> float:
    """The shortest of a few calls, after one to warm up."""
    times = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        teacher(lr)[0, 0, 0, 0].item()  # waits for the device
        times.append(time.perf_counter() - started)
    return min(times[1:])
