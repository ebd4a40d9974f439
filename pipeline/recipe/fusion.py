"""How several teachers' pictures become one target, each way documented beside its settings."""

from __future__ import annotations

from typing import Annotated, Literal, Union

from pydantic import Field

from pipeline.recipe.settings import Positive, Section, Train


class Mean(Section):
    """Pixel-wise mean of the teachers."""

    kind: Literal["mean"]
    """Always `mean`."""


class Median(Section):
    """Pixel-wise median of the teachers."""

    kind: Literal["median"]
    """Always `median`."""


class Best(Section):
    """For each tile the teacher nearest to HR."""

    kind: Literal["best"]
    """Always `best`."""


class Weighted(Section):
    """A weighted sum of the teachers."""

    kind: Literal["weighted"]
    """Always `weighted`."""
    weights: dict[str, float] | Literal["fit"] = "fit"
    """Weight by teacher name (they sum to 1), or `fit`: least squares against HR on the training tiles."""


class Bands(Section):
    """The low band of one teacher and the wavelet details of another: a faithful and a sharp one make one target."""

    kind: Literal["bands"]
    """Always `bands`."""
    low: str
    """Name of the teacher whose colours and large structures count."""
    details: str
    """Name of the teacher whose details count."""
    shares: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (1.0, 1.0)
    """What its details count, from the finest level to the coarsest; the rest is the other teacher's."""
    wavelet: str = "bior4.4"
    """Any discrete wavelet of PyWavelets."""


class Mask(Section):
    """Per pixel, by how well each teacher's output, shrunk again, agrees with LR around the pixel. Needs no HR; of LR
    with noise or blocks it prefers the teacher that leaves them."""

    kind: Literal["mask"]
    """Always `mask`."""
    radius: Annotated[int, Field(ge=0)] = 2
    """Of the square in which agreement is judged, in LR pixels."""
    softness: Annotated[float, Field(gt=0)] = 1.0
    """In grey levels: teachers whose errors differ by less count nearly alike; smaller is a harder choice."""


class Regions(Section):
    """Least-squares weights of their own for flat, edge and texture pixels, and for each band of detail."""

    kind: Literal["regions"]
    """Always `regions`."""
    levels: Annotated[int, Field(ge=0, le=4)] = 1
    """Bands of detail with weights of their own, beside those of the rest; 0 for none."""


class Aggregate(Section):
    """MTKD's knowledge-aggregation network (DCTSwin), trained on cached teacher outputs (MTKD, section 3.1)."""

    kind: Literal["aggregate"]
    """Always `aggregate`."""
    dim: Positive = 96
    """Channels."""
    depths: tuple[Positive, ...] = (4, 4)
    """Blocks in each residual group."""
    heads: tuple[Positive, ...] = (6, 6)
    """Attention heads in each residual group."""
    window: Positive = 8
    """Window side in LR pixels."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Hidden width of the MLP over `dim`."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Drop-path rate of the last block; it rises linearly from 0."""
    official: bool = False
    """Behaviour of the released code (un-normalised DCT, transformed mask, output / 255 + mean, no skip)."""
    skip: Literal["none", "mean", "weighted"] = "mean"
    """Ours: the network learns a correction to the teachers' mean, or to a weighted sum of them that starts at the
    least-squares weights and is learned too."""
    train: Train = Train(steps=20_000, batch=16, patch=32, lr=2e-4)
    """How the network is trained."""


Fusion = Annotated[
    Union[Mean, Median, Best, Weighted, Bands, Mask, Regions, Aggregate], Field(discriminator="kind")
]
