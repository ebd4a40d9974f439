"""How LR is made from HR beyond bicubic: chains of random steps, each documented beside its settings.

A span is [least, most]; each view draws uniformly from it. `pipeline/data/chain.py` carries the steps out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from pipeline.recipe.settings import Section, Seed


def _rising(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"[least, most] with least <= most, found {list(span)}")
    return span


Above0 = Annotated[float, Field(gt=0, le=1000)]
Span = Annotated[tuple[Above0, Above0], AfterValidator(_rising)]
Levels = Annotated[
    tuple[Annotated[float, Field(ge=0, le=255)], Annotated[float, Field(ge=0, le=255)]],
    AfterValidator(_rising),
]
Quality = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]], AfterValidator(_rising)
]
Sides = Annotated[
    tuple[Annotated[int, Field(ge=3, le=63)], Annotated[int, Field(ge=3, le=63)]], AfterValidator(_rising)
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Shape = Literal[
    "iso", "aniso", "generalised_iso", "generalised_aniso", "plateau_iso", "plateau_aniso", "sinc"
]
Filter = Literal["area", "bilinear", "bicubic", "lanczos"]


class Step(Section):
    p: Share = 1.0
    """Probability that the step is done at all."""


class Blur(Step):
    """Convolution with a random kernel that sums to 1; borders are mirrored."""

    kind: Literal["blur"]
    """Always `blur`."""
    shapes: dict[Shape, Weight] = {"iso": 1.0}
    """Relative frequency of each shape: Gaussian (`iso`, `aniso`), generalised Gaussian exp(-g^beta / 2), plateau
    1 / (1 + g^beta), `sinc`, the circular low-pass that rings."""
    size: Sides = (7, 21)
    """Side of the kernel in pixels; odd sides are drawn."""
    sigma: Span = (0.2, 3.0)
    """Standard deviation along each axis, in pixels of the picture as it is when the step begins."""
    beta: Span = (0.5, 4.0)
    """Exponent of the generalised Gaussian; 1 is the Gaussian."""
    plateau: Span = (1.0, 2.0)
    """Exponent of the plateau."""
    cutoff: Annotated[tuple[Above0, Above0], AfterValidator(_rising)] | None = None
    """Cut-off of `sinc` in radians a pixel, at most pi. Default: pi/3 to pi below a side of 13, else pi/5 to pi."""

    @model_validator(mode="after")
    def _possible(self) -> Blur:
        if not sum(self.shapes.values()):
            raise ValueError("shapes needs a weight above 0; name at least one shape")
        if self.size[0] == self.size[1] and self.size[0] % 2 == 0:
            raise ValueError(f"size needs an odd side, found {list(self.size)}")
        if self.cutoff and self.cutoff[1] > 3.1416:
            raise ValueError(f"cutoff must end at pi (3.1416) or below, found {self.cutoff[1]}")
        return self


class Resize(Step):
    """Another size, by a random factor and filter."""

    kind: Literal["resize"]
    """Always `resize`."""
    up: Weight = 0.0
    """Relative frequency of enlarging, by 1 to the most of `factor`."""
    down: Weight = 1.0
    """Relative frequency of shrinking, by the least of `factor` to 1."""
    keep: Weight = 0.0
    """Relative frequency of leaving the size alone."""
    factor: Annotated[
        tuple[Annotated[float, Field(gt=0.02, le=8)], Annotated[float, Field(gt=0.02, le=8)]],
        AfterValidator(_rising),
    ]
    """Least and most of the factor."""
    of: Literal["picture", "lr"] = "picture"
    """What the factor multiplies: the size of the picture as it is, or that of the LR picture to be."""
    filters: tuple[Filter, ...] = Field(("area", "bilinear", "bicubic"), min_length=1)
    """One is drawn. All are antialiased; `area` is a box."""

    @model_validator(mode="after")
    def _possible(self) -> Resize:
        if not self.up + self.down + self.keep:
            raise ValueError("one of up, down and keep must be above 0")
        if self.up and self.factor[1] < 1:
            raise ValueError(
                f"up enlarges, and factor ends at {self.factor[1]}; set up: 0 or a factor above 1"
            )
        if self.down and self.factor[0] > 1:
            raise ValueError(
                f"down shrinks, and factor starts at {self.factor[0]}; set down: 0 or a factor below 1"
            )
        return self


class Noise(Step):
    """Gaussian noise, or Poisson noise that grows with the light."""

    kind: Literal["noise"]
    """Always `noise`."""
    gaussian: Weight = 1.0
    """Relative frequency of Gaussian noise."""
    poisson: Weight = 0.0
    """Relative frequency of Poisson noise."""
    sigma: Levels = (1.0, 30.0)
    """Standard deviation of Gaussian noise in grey levels of 0..255."""
    scale: Span = (0.05, 3.0)
    """Factor of Poisson noise; 1 is that of as many photons at white as the picture has levels."""
    grey: Share = 0.4
    """Probability that all three channels get the same noise."""

    @model_validator(mode="after")
    def _possible(self) -> Noise:
        if not self.gaussian + self.poisson:
            raise ValueError("one of gaussian and poisson must be above 0")
        return self


class Compression(Step):
    """Through a lossy file and back, by Pillow."""

    kind: Literal["jpeg", "webp"]
    """`jpeg` or `webp`."""
    quality: Quality = (30, 95)
    """Quality of the file, 1 to 100."""


class Fit(Step):
    """To the size of the LR picture. What a chain lacks of it is done at its end, bicubically."""

    kind: Literal["fit"]
    """Always `fit`."""
    filters: tuple[Filter, ...] = Field(("area", "bilinear", "bicubic"), min_length=1)
    """One is drawn."""


Plain = Annotated[Union[Blur, Resize, Noise, Compression, Fit], Field(discriminator="kind")]


class Shuffle(Step):
    """Groups of steps in a random order."""

    kind: Literal["shuffle"]
    """Always `shuffle`."""
    groups: tuple[tuple[Plain, ...], ...] = Field(min_length=2)
    """The groups; within one the order stays."""
    take: Annotated[int, Field(ge=1)] | None = None
    """How many of them are done; default: all."""

    @model_validator(mode="after")
    def _possible(self) -> Shuffle:
        if self.take and self.take > len(self.groups):
            raise ValueError(f"take ({self.take}) exceeds the {len(self.groups)} groups")
        return self


AnyStep = Annotated[Union[Blur, Resize, Noise, Compression, Fit, Shuffle], Field(discriminator="kind")]


class Chain(Section):
    """A chain of random steps from HR to LR. A view is a pure function of seed, picture, tile and number."""

    preset: Literal["realesrgan", "bsrgan", "web", "video"] | None = None
    """A published or a mild chain, instead of `steps` (pipeline/data/presets.py)."""
    steps: tuple[AnyStep, ...] = ()
    """The chain, instead of a preset."""
    views: Annotated[int, Field(ge=1, le=64)] = 1
    """LR pictures made of each HR tile. Teachers see each once; HR is stored beside each."""
    seed: Seed = 0
    """Seed of all draws."""

    @model_validator(mode="after")
    def _one(self) -> Chain:
        if (self.preset is None) == (not self.steps):
            raise ValueError("give `preset` or `steps`, and not both")
        return self


def _tag(value: Any) -> str:
    return "bicubic" if isinstance(value, str) else "chain"


Degradation = Annotated[
    Union[Annotated[Literal["bicubic"], Tag("bicubic")], Annotated[Chain, Tag("chain")]], Discriminator(_tag)
]
