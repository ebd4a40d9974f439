"""Chains of random degradations: what stands between a scene and the LR picture that someone really has.

Pictures are (H, W, 3) float32 in 0..255 between steps, clipped after each; files round them to 8 bits. Everything
random comes from one generator a view, so a view is a pure function of its seed, picture, tile and number.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline.recipe.degradation import AnyStep, Blur, Compression, Fit, Noise, Resize, Shuffle

VERSION = 1
"""Of what the steps draw and do; part of the name of every tile that a chain has made."""
FILTERS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def generator(seed: int, picture: str, y: int, x: int, view: int | str) -> np.random.Generator:
    """The generator of one view of the tile at (y, x), in HR pixels, of the picture with this sha256."""
    digest = hashlib.sha256(f"{seed} {picture} {y} {x} {view}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def degraded(
    hr: np.ndarray, size: tuple[int, int], steps: Sequence[AnyStep], rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """An (H, W, 3) uint8 picture through the chain: ((h, w, 3) uint8 of exactly `size`, what was done)."""
    x = hr.astype(np.float32)
    done: list[str] = []
    for step in steps:
        x = _stepped(x, size, step, rng, done)
    if x.shape[:2] != size:
        x = resized(x, size, "bicubic")
        done.append("fit bicubic")
    return _levels(x), "; ".join(done)


def _stepped(
    x: np.ndarray, size: tuple[int, int], step: AnyStep, rng: np.random.Generator, done: list[str]
) -> np.ndarray:
    if rng.random() >= step.p:
        return x
    if isinstance(step, Shuffle):
        for group in rng.permutation(len(step.groups))[: step.take]:
            for part in step.groups[group]:
                x = _stepped(x, size, part, rng, done)
        return x
    if isinstance(step, Blur):
        kernel, note = drawn_kernel(step, rng)
        x = blurred(x, kernel)
    elif isinstance(step, Resize):
        x, note = _another_size(x, size, step, rng)
    elif isinstance(step, Noise):
        x, note = _noisy(x, step, rng)
    elif isinstance(step, Fit):
        name = step.filters[rng.integers(len(step.filters))]
        x, note = resized(x, size, name), f"fit {name}"
    else:
        assert isinstance(step, Compression)
        quality = int(rng.integers(step.quality[0], step.quality[1] + 1))
        x, note = compressed(x, step.kind, quality), f"{step.kind} {quality}"
    done.append(note)
    return np.clip(x, 0, 255)


def _levels(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def _pick(weights: Mapping[Any, float], rng: np.random.Generator) -> Any:
    """A key with a probability in proportion to its weight."""
    names = list(weights)
    ends = np.cumsum([weights[name] for name in names])
    return names[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]


# --- blur


def drawn_kernel(step: Blur, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """A random kernel (k, k) that sums to 1, and what it is."""
    shape = _pick(step.shapes, rng)
    first, last = step.size[0] // 2, (step.size[1] - 1) // 2
    side = 2 * int(rng.integers(max(first, 1), max(last, 1) + 1)) + 1
    if shape == "sinc":
        least = math.pi / 3 if side < 13 else math.pi / 5
        cutoff = float(rng.uniform(*(step.cutoff or (least, math.pi))))
        return sinc(side, cutoff), f"blur sinc {side} {cutoff:.3f}"
    across = float(rng.uniform(*step.sigma))
    along, angle, power = across, 0.0, 1.0
    if shape.endswith("aniso"):
        along, angle = float(rng.uniform(*step.sigma)), float(rng.uniform(-math.pi, math.pi))
    if shape.startswith(("generalised", "plateau")):
        power = float(rng.uniform(*(step.plateau if shape.startswith("plateau") else step.beta)))
    kernel = gaussian(side, across, along, angle, power, plateau=shape.startswith("plateau"))
    return kernel, f"blur {shape} {side} {across:.3f} {along:.3f} {angle:.3f} {power:.3f}"


def gaussian(
    side: int, across: float, along: float, angle: float = 0.0, power: float = 1.0, *, plateau: bool = False
) -> np.ndarray:
    """(side, side) of sum 1: exp(-g^power / 2), or 1 / (1 + g^power), with g = v' C^-1 v and C of standard deviations
    `across` and `along` turned by `angle` radians (Real-ESRGAN, on its classical model).
    """
    y, x = np.mgrid[:side, :side] - side // 2
    u = x * math.cos(angle) + y * math.sin(angle)
    v = -x * math.sin(angle) + y * math.cos(angle)
    g = ((u / across) ** 2 + (v / along) ** 2) ** power
    kernel = 1 / (1 + g) if plateau else np.exp(-g / 2)
    return kernel / kernel.sum()


def sinc(side: int, cutoff: float) -> np.ndarray:
    """(side, side) of sum 1: the circular low-pass w J1(w r) / (2 pi r), w = `cutoff` in radians a pixel, which rings
    and overshoots (Real-ESRGAN, on ringing and overshoot).
    """
    y, x = np.mgrid[:side, :side] - side // 2
    r = np.hypot(x, y)
    inside = np.where(r == 0, 1, r)
    kernel = np.where(
        r == 0, cutoff**2 / (4 * math.pi), cutoff * _j1(cutoff * inside) / (2 * math.pi * inside)
    )
    return kernel / kernel.sum()


def _j1(z: np.ndarray) -> np.ndarray:
    """Bessel's J1 by his integral, mean of cos(t - z sin t) over a period: equal steps are exact to rounding here."""
    t = (np.arange(512) + 0.5) * (2 * math.pi / 512)
    return np.cos(t - z[..., None] * np.sin(t)).mean(-1)


def blurred(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(H, W, C) convolved with an odd kernel, mirrored about its border pixels' edges."""
    half = kernel.shape[0] // 2
    padded = np.pad(x, ((half, half), (half, half), (0, 0)), "symmetric").astype(np.float64)
    size = padded.shape[0], padded.shape[1]
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * np.fft.rfft2(kernel, size)[..., None]
    full = np.fft.irfft2(spectrum, size, axes=(0, 1))
    return full[2 * half :, 2 * half :].astype(np.float32)


# --- size


def resized(x: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    """(H, W, C) float32 at another size by one of `FILTERS`, antialiased."""
    if x.shape[:2] == size:
        return x
    planes = [Image.fromarray(np.ascontiguousarray(x[..., c])) for c in range(x.shape[2])]
    return np.stack([np.asarray(p.resize((size[1], size[0]), FILTERS[name])) for p in planes], axis=-1)


def _another_size(
    x: np.ndarray, size: tuple[int, int], step: Resize, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    way = _pick({"up": step.up, "down": step.down, "keep": step.keep}, rng)
    spans = {
        "up": (max(step.factor[0], 1.0), step.factor[1]),
        "down": (step.factor[0], min(step.factor[1], 1.0)),
    }
    factor = float(rng.uniform(*spans[way])) if way in spans else 1.0
    name = step.filters[rng.integers(len(step.filters))]
    base = size if step.of == "lr" else x.shape[:2]
    wanted = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
    return resized(x, wanted, name), f"resize {name} {wanted[1]}x{wanted[0]}"


# --- noise


def _noisy(x: np.ndarray, step: Noise, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    kind = _pick({"gaussian": step.gaussian, "poisson": step.poisson}, rng)
    grey = bool(rng.random() < step.grey)
    strength = float(rng.uniform(*(step.sigma if kind == "gaussian" else step.scale)))
    noise = (gaussian_noise if kind == "gaussian" else poisson_noise)(x, strength, grey, rng)
    return x + noise, f"noise {kind}{' grey' * grey} {strength:.3f}"


def gaussian_noise(x: np.ndarray, sigma: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Noise for (H, W, 3): mean 0, standard deviation `sigma` in grey levels; one channel for all where `grey`."""
    shape = (*x.shape[:2], 1 if grey else x.shape[2])
    return (rng.standard_normal(shape) * sigma).astype(np.float32)


def poisson_noise(x: np.ndarray, scale: float, grey: bool, rng: np.random.Generator) -> np.ndarray:
    """Noise for (H, W, 3) of variance 255 scale^2 x / n at level x, where white is n photons: as many as the picture
    has levels, up to the next power of two (as Real-ESRGAN's code has it). `grey`: of the mean of the channels.
    """
    levels = _levels(x.mean(axis=2, keepdims=True) if grey else x)
    photons = 2.0 ** math.ceil(math.log2(max(len(np.unique(levels)), 2)))
    clean = levels / 255.0
    return ((rng.poisson(clean * photons) / photons - clean) * 255 * scale).astype(np.float32)


# --- files


def compressed(x: np.ndarray, kind: str, quality: int) -> np.ndarray:
    """(H, W, 3) in 0..255 as Pillow's JPEG or WebP file of this quality gives it back."""
    file = io.BytesIO()
    Image.fromarray(_levels(x)).save(file, kind.upper(), quality=quality)
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.float32)
