"""Chains by name, with the ranges of their papers.

`realesrgan`: Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV
Workshops 2021 (arXiv 2107.10833), section 3 and the settings of its x4 model: two rounds of blur, resizing, noise and
JPEG, then sinc and the last JPEG in either order. Pillow's bilinear and bicubic filters are antialiased, the authors'
are not.

`bsrgan`: Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution", ICCV 2021
(arXiv 2103.14006), section 3: two blurs, shrinking, Gaussian noise and JPEG in a random order, and a last JPEG. Left
out: its camera noise (raw sensor and processing), its nearest-neighbour shrinking, and noise correlated between
channels other than grey. Blurs as in the authors' code (utils_blindsr.py): a standard deviation up to 2 + 0.2 s at
scale s, along the axes of an anisotropic one variances up to 4 + s.

`web` and `video` are ours: mild, for pictures that were shrunk and saved once, and for frames of compressed video.
"""

from __future__ import annotations

from pipeline.recipe.degradation import (
    AnyStep,
    Blur,
    Chain,
    Compression,
    Fit,
    Noise,
    Resize,
    Shape,
    Shuffle,
)

GAUSSIANS: dict[Shape, float] = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalised_iso": 0.12,
    "generalised_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
"""Frequencies among the kernels that are no sinc (Real-ESRGAN)."""


def realesrgan(scale: int) -> tuple[AnyStep, ...]:
    """Real-ESRGAN's high-order model, the same at every scale."""
    shapes: dict[Shape, float] = {**{name: 0.9 * share for name, share in GAUSSIANS.items()}, "sinc": 0.1}
    jpeg = Compression(kind="jpeg", quality=(30, 95))
    last = (Fit(kind="fit"), Blur(kind="blur", p=0.8, shapes={"sinc": 1.0}))
    return (
        Blur(kind="blur", shapes=shapes, sigma=(0.2, 3.0)),
        Resize(kind="resize", up=0.2, down=0.7, keep=0.1, factor=(0.15, 1.5)),
        Noise(kind="noise", gaussian=0.5, poisson=0.5, sigma=(1, 30), scale=(0.05, 3.0), grey=0.4),
        jpeg,
        Blur(kind="blur", p=0.8, shapes=shapes, sigma=(0.2, 1.5)),
        Resize(kind="resize", up=0.3, down=0.4, keep=0.3, factor=(0.3, 1.2), of="lr"),
        Noise(kind="noise", gaussian=0.5, poisson=0.5, sigma=(1, 25), scale=(0.05, 2.5), grey=0.4),
        Shuffle(kind="shuffle", groups=(last, (jpeg,))),
    )


def bsrgan(scale: int) -> tuple[AnyStep, ...]:
    """BSRGAN's shuffled model."""
    round_, long = 2 + 0.2 * scale, (4 + scale) ** 0.5
    half = Resize(kind="resize", p=0.25, down=1.0, factor=(0.5, 1.0))
    return (
        Shuffle(
            kind="shuffle",
            groups=(
                (Blur(kind="blur", shapes={"iso": 1.0}, size=(7, 25), sigma=(0.1, round_)),),
                (Blur(kind="blur", shapes={"aniso": 1.0}, size=(7, 25), sigma=(0.5, long)),),
                (half, Fit(kind="fit", filters=("bilinear", "bicubic"))),
                (Noise(kind="noise", sigma=(1, 25), grey=0.4),),
                (Compression(kind="jpeg", p=0.75, quality=(30, 95)),),
            ),
        ),
        Compression(kind="jpeg", quality=(30, 95)),
    )


def web(scale: int) -> tuple[AnyStep, ...]:
    """Shrunk and saved once, as JPEG or, one time in three, as WebP."""
    jpeg, webp = (Compression(kind=kind, quality=(60, 95)) for kind in ("jpeg", "webp"))
    return (
        Fit(kind="fit", filters=("area", "bilinear", "bicubic", "lanczos")),
        Shuffle(kind="shuffle", groups=((jpeg,), (jpeg,), (webp,)), take=1),
    )


def video(scale: int) -> tuple[AnyStep, ...]:
    """A soft picture and the blocks of a codec, for which JPEG stands: both transform blocks and quantise them."""
    return (
        Blur(kind="blur", p=0.7, shapes={"iso": 0.6, "aniso": 0.4}, size=(7, 13), sigma=(0.2, 1.2)),
        Fit(kind="fit", filters=("bilinear", "bicubic")),
        Noise(kind="noise", p=0.3, sigma=(1, 5), grey=0.8),
        Compression(kind="jpeg", quality=(40, 85)),
    )


PRESETS = {"realesrgan": realesrgan, "bsrgan": bsrgan, "web": web, "video": video}


def steps_of(chain: Chain, scale: int) -> tuple[AnyStep, ...]:
    """The steps that a chain's settings stand for."""
    return chain.steps if chain.preset is None else PRESETS[chain.preset](scale)
