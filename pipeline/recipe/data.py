"""Where pictures for super-resolution are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from pipeline.recipe.degradation import Degradation
from pipeline.recipe.settings import Positive, Section
from pipeline.recipe.upcycle import Upcycle


class Pairs(Section):
    """LR pictures that somebody else made, and their HR: equal names, apart from suffixes of LR such as `x4`."""

    lr: str
    """Folder of LR pictures, taken as they are."""
    hr: str
    """Folder of their HR pictures."""
    align: bool = False
    """Crop both where LR is shifted by whole pixels; else a shift beyond half an LR pixel is refused."""


class Data(Section):
    """Where the pictures are and how tiles are cut from them."""

    train: tuple[str, ...] = ()
    """Folders (or files) of high-resolution training pictures."""
    lr_only: tuple[str, ...] = ()
    """Folders of low-resolution pictures without a high-resolution partner: teachers' targets are their only
    supervision. Without `train` they are all there is: students are then judged by their fidelity to the teachers.
    """
    pairs: tuple[Pairs, ...] = ()
    """Folders of LR and HR pictures to train on, beside `train` or instead."""
    test: tuple[str, ...] = ()
    """Folders of high-resolution benchmark pictures; never trained on. A set is named after its folder. A picture that
    a model reproduces exactly is named, and no mean of PSNR counts it.
    """
    test_pairs: tuple[Pairs, ...] = ()
    """The same of LR and HR pictures: models get LR as it is."""
    holdout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of the training pictures (chosen by their sha256) kept out of training to judge fusion and progress."""
    degradation: Degradation = "bicubic"
    """How LR is made from HR: `bicubic` is MATLAB's antialiased bicubic, bit for bit; a table is a chain of random
    steps (`preset` or `steps`), which makes `views` LR pictures of each tile. LR of pairs stays as it is."""
    upcycle: Upcycle | None = None
    """Further views of each training tile, without HR, for teachers to explain. Default: none; method `dukd` brings
    `{}`, one nearer and one farther, for all methods of its run. `{zoom_in: 0, zoom_out: 0}` is none.
    """
    tile: Positive = 192
    """Side of a stored HR tile in pixels; a multiple of the scale. Training patches are cropped from tiles at
    read time.
    """
    margin: Annotated[int, Field(ge=0)] = 4
    """LR pixels at each side of a tile that crops never touch, because teachers saw padding beyond them."""
    on_bad: Literal["raise", "quarantine"] = "raise"
    """A damaged picture stops the run (`raise`), or is listed and left out (`quarantine`)."""

    @property
    def has_hr(self) -> bool:
        """Whether there is any HR to train on."""
        return bool(self.train or self.pairs)

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Sweeps of before know nothing of pairs and upcycling: where there are none, the keys are left out."""
        later = ("pairs", "test_pairs", "upcycle")
        return {k: v for k, v in handler(self).items() if k not in later or v}
