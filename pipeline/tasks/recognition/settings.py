"""Where pictures for recognition come from, which views of them there are, and where all is kept."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.recipe.settings import Later, Positive, Section, Seed

Degradation = Literal["bicubic", "average", "blur_noise"]
"""How LR arises from HR (degradations.py)."""
Size = Annotated[int, Field(ge=4)]
LEAST_SIDE = 4
"""Least side of an LR picture in pixels."""
GAPS: dict[int, tuple[int, ...]] = {
    1: (),
    2: (2,),
    3: (3,),
    4: (4,),
    6: (3, 2),
    8: (4, 2),
    12: (4, 3),
    16: (4, 4),
}
"""Gap -> the steps in which it is made: MATLAB's antialiased bicubic, which is exact up to 4, step by step above."""


def unfit(size: tuple[int, int], gap: int) -> str:
    """Why pictures of `size` (height, width) cannot be made `gap` times smaller; empty where they can."""
    height, width = size
    if height % gap or width % gap:
        return f"data.size {size} must be a multiple of gap ({gap})"
    if min(size) // gap < LEAST_SIDE:
        return (
            f"gap {gap} leaves {height // gap}x{width // gap} pixels of {height}x{width}; at least {LEAST_SIDE} a side "
            "are needed"
        )
    return ""


class Views(Section):
    """The views of a picture: seeded, so that cached teacher outputs line up with what the student sees."""

    count: Positive = 4
    """Views per picture; view 0 is the picture as it is."""
    seed: Seed = 0
    """Seed of the views; part of the cache's fingerprint, apart from the training's seed."""
    shift: Annotated[int, Field(ge=0)] = 0
    """Largest shift in HR pixels; borders are mirrored."""
    flip: bool = False
    """Mirror half of the views left and right."""
    zoom: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Views are magnified by between 1 / (1 + zoom) and 1 + zoom."""
    light: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Their contrast changes by between 1 / (1 + light) and 1 + light, their brightness by up to light x 128 levels."""


class OutputFusion(Section):
    """How several teachers become one: soft labels averaged, embeddings side by side."""

    kind: Literal["mean", "weighted", "best"] = "mean"
    """`mean` of the soft labels; `weighted`: by `weights`; `best`: each class from the teacher that is surest of its
    held-out pictures."""
    weights: dict[str, Annotated[float, Field(ge=0)]] | Literal["fit"] = "fit"
    """Of `weighted`: a share by teacher, or `fit`: those of the greatest likelihood of the held-out labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """At which the soft labels are averaged."""
    embeddings: Literal["concatenate", "project", "whiten"] = "concatenate"
    """All embeddings side by side, each of one length, so that distances are the means of theirs; `project`: their
    principal components, as many as the widest has; `whiten`: these of one variance each."""


class Sampling(Section):
    """P x K sampling: every batch holds K pictures of each of P identities."""

    identities: Annotated[int, Field(ge=2)]
    """P. One identity alone has no relations to others."""
    pictures: Annotated[int, Field(ge=2)]
    """K; an identity with fewer pictures repeats them in other views."""


class Mixing(Section):
    """Pictures of a batch mixed by twos: their pixels, their labels, and what the teachers say of them."""

    mixup: Annotated[float, Field(ge=0)] = 0.0
    """mixup (Zhang et al., ICLR 2018): lam of one and 1 - lam of the other, lam from Beta(mixup, mixup); 0: off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """CutMix (Yun et al., ICCV 2019): a box of the one in the other, its area 1 - lam, lam from Beta(cutmix, cutmix);
    0: off. With both each picture has either with probability 1/2.
    """
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the pictures that are mixed with another."""

    @property
    def on(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _something(self) -> Mixing:
        if self.share != 1.0 and not self.on:
            raise ValueError("mixing.share without mixing.mixup or mixing.cutmix: give one of them")
        return self


class RecognitionData(Later):
    """Where the pictures are and how they become training, validation and test sets."""

    later: ClassVar[tuple[str, ...]] = ("fold", "test_camera")

    layout: Literal["digits", "folders", "market1501", "masks", "npz"] = "digits"
    """`digits`: scikit-learn's 8 x 8 digits, no files. `folders`: a folder per class. `market1501`: bounding_box_train,
    query, bounding_box_test with names like 0002_c1s1_000451_03.jpg. `masks`: NAME.jpg beside NAME_mask.png.
    `npz`: arrays in one file.
    """
    root: str = ""
    """The folder, or the npz file."""
    size: Size | tuple[Size, Size] = 32
    """HR side, or [height, width]; every picture is resized to it, and it must be a multiple of every gap."""
    images: str = "x"
    """npz: the key of the pictures (n, H, W[, 3]) uint8."""
    labels: str = "y"
    """npz: the key of the labels (n,), integers from 0."""
    test_images: str | None = None
    """npz: the key of test pictures; without it a part of the pictures is set aside."""
    test_labels: str | None = None
    """npz: the key of their labels."""
    camera: str | None = None
    """npz: the key of the camera or view of each picture, for retrieval."""
    test_camera: str | None = None
    """npz: the key of those of the test pictures, where they have a key of their own."""
    classes: tuple[str, ...] = ()
    """Names of the classes; found from the data where left out. A named class without pictures is refused."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share set aside as test set where the layout has none of its own."""
    fold: tuple[Positive, Positive] | None = None
    """[k, n]: the test set is the k-th of n parts of every class (or of the identities) instead of a share. Runs with k
    from 1 to n test every picture once: cross-validation, where pictures are few."""
    split: Literal["pictures", "identities"] = "pictures"
    """What is set aside: pictures of every class, or whole identities (verification, retrieval: unseen people)."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training pictures kept out of training to watch it and to choose settings by; of the identities
    (at least two) for verification and retrieval.
    """
    views: Views = Views()

    @model_validator(mode="after")
    def _part(self) -> RecognitionData:
        if self.fold and not self.fold[0] <= self.fold[1] >= 2:
            raise ValueError(
                f"fold must be [k, n] with k from 1 to n and n at least 2, found {list(self.fold)}"
            )
        if self.test_images and self.camera and not self.test_camera:
            raise ValueError(
                "camera: retrieval looks at the cameras of test pictures; name theirs, test_camera"
            )
        if self.test_camera and not self.test_images:
            raise ValueError("test_camera without test_images: `camera` is that of all pictures")
        if self.fold and (self.test_images or self.layout == "market1501"):
            raise ValueError("fold: these pictures have a test set of their own (test_images, market1501)")
        return self


class RecognitionCache(Section):
    """Where pictures and teacher outputs are kept."""

    root: str = "cache"
    """Folder or URI (s3://, gs://) that holds every shard."""
    shard_mb: Annotated[float, Field(gt=0)] = 64.0
    """Approximate size of one shard of pictures in megabytes (10^6 bytes)."""
    features: Literal["none", "map"] = "none"
    """Cached beside logits and embedding: nothing, or the last feature map (float16), for `map` of `rkd`."""
    online: bool = False
    """Run the teacher in every step instead of reading its outputs from the cache."""


class Boundary(Section):
    """What a classifier made elsewhere is given; what is left out it says itself, or gets as it is."""

    size: Size | tuple[Size, Size] | None = None
    """Side, or [height, width], that pictures are resized to."""
    mean: tuple[float, float, float] | None = None
    """Of red, green and blue, taken away from values up to `value_range`."""
    std: tuple[float, float, float] | None = None
    """What is left is divided by."""
    value_range: Annotated[float, Field(gt=0)] = 1.0
    """White: 1 or 255."""
