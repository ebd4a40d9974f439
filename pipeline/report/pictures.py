"""Comparison pictures: what each method made of the same few pixels, and where each is wrong.

The zoomed part is found, not chosen: it is where the methods differ most from one another. Enlargement is
by whole factors without smoothing, so what is seen is what was predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.metrics import psnr_y, to_y

SIDE = 200
"""Aim for the side of a cell, in pixels of the drawing."""
GAP = 10
MARGIN = 16
TEXT = 15
LINE = 22
REFERENCE = "HR"
BACKGROUND = (17, 19, 24)
PANEL = (30, 33, 41)
INK = (236, 238, 242)
FAINT = (150, 156, 168)
ACCENT = (94, 214, 150)
FRAME = (255, 196, 61)
ERROR_LEVELS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)

# Every sixteenth colour of matplotlib's `inferno` (CC0), interpolated between: within 7 of 255 levels of it.
_INFERNO = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754 d04545 e35933 f1711f f98c0a fcaa0f f9c932 f2e865 "
    "fcffa4"
)
INFERNO = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _INFERNO.split()], dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Crop:
    """A square of an HR picture, in its pixels."""

    y: int
    x: int
    side: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        """That part of (H, W, ...)."""
        return picture[self.y : self.y + self.side, self.x : self.x + self.side]


def colours(values: np.ndarray) -> np.ndarray:
    """(...) in [0, 1] to (..., 3) uint8 on a scale that is even to the eye, dark for 0."""
    position = np.clip(values, 0.0, 1.0) * (len(INFERNO) - 1)
    anchors = np.arange(len(INFERNO))
    channels = [np.interp(position, anchors, INFERNO[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def error_map(prediction: np.ndarray, reference: np.ndarray, limit: float) -> np.ndarray:
    """Absolute difference of the luma of two (H, W, 3) uint8 as (H, W, 3) uint8 colours; `limit` levels are
    brightest.
    """
    return colours(np.abs(to_y(prediction) - to_y(reference)) / limit)


def find_crop(
    pictures: Sequence[np.ndarray], reference: np.ndarray | None, side: int, *, shave: int = 0
) -> Crop:
    """The square of `side` pixels in which the errors of (H, W, 3) `pictures` differ most from one another.

    Without a reference the pictures themselves are compared. Among three or more, the one with the largest
    error is left out: it differs from all others wherever there is an edge. `shave` pixels at the border do
    not count.
    """
    luma = [to_y(p) for p in pictures]
    if reference is not None:
        target = to_y(reference)
        luma = sorted((np.abs(y - target) for y in luma), key=lambda error: float(error.mean()))
        luma = luma[:-1] if len(luma) >= 3 else luma
    differ = np.std(luma, axis=0) if len(luma) > 1 else luma[0]
    height, width = differ.shape
    side = min(side, height, width)
    shave = min(shave, (height - side) // 2, (width - side) // 2)
    inner = differ[shave : height - shave, shave : width - shave]
    total = np.pad(inner.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return Crop(int(y) + shave, int(x) + shave, side)


def comparison_strip(
    rows: Sequence[tuple[str, np.ndarray]],
    reference: np.ndarray | None = None,
    *,
    shave: int = 0,
    crop: Crop | None = None,
    columns: int = 6,
    title: str = "",
) -> np.ndarray:
    """Draw methods side by side: (H', W', 3) uint8.

    `rows` are (label, (H, W, 3) uint8); a smaller picture is the LR input and is enlarged without
    smoothing. With a `reference` (the HR picture, drawn last) each cell shows PSNR of the luma over the
    whole picture, `shave` pixels cut from its border, and an error map below its crop. Raises ValueError
    where sizes do not fit.
    """
    size = reference.shape[:2] if reference is not None else max(p.shape[:2] for _, p in rows)
    full = [_enlarge(label, p, size) for label, p in rows]
    predictions = [p for p, (_, given) in zip(full, rows) if given.shape[:2] == size]
    if not predictions:
        raise ValueError("a comparison needs at least one picture of the full size")
    crop = crop or find_crop(predictions, reference, crop_side(size), shave=shave)
    zoom = max(1, round(SIDE / crop.side))
    limit = _limit(predictions, reference, crop) if reference is not None else 1.0

    cells = []
    for picture, (label, given) in zip(full, rows):
        if given.shape[:2] != size:
            cells.append(_Cell(label, f"{given.shape[1]} x {given.shape[0]}", None, crop.of(picture), None))
        elif reference is None:
            cells.append(_Cell(label, "", None, crop.of(picture), None))
        else:
            score = psnr_y(picture, reference, shave)
            error = error_map(crop.of(picture), crop.of(reference), limit)
            cells.append(_Cell(label, decibels(score), score, crop.of(picture), error))
    if reference is not None:
        cells.append(_Cell(REFERENCE, "reference", None, crop.of(reference), None))
    best = max((c.score for c in cells if c.score is not None), default=None)
    sheet = _Sheet(len(cells), columns, crop.side * zoom, maps=reference is not None)
    overview = reference if reference is not None else predictions[-1]
    drawing = sheet.canvas(title, overview.shape[1] / overview.shape[0])
    sheet.overview(drawing, overview, crop)
    for i, cell in enumerate(cells):
        sheet.cell(drawing, i, cell, best=cell.score is not None and cell.score == best)
    if reference is not None:
        sheet.legend(drawing, len(cells) - 1, limit)
    return np.asarray(drawing)


def crop_side(size: tuple[int, int]) -> int:
    """HR pixels a side of a crop: a sixth of the shorter side, within 32 to 100."""
    return min(*size, max(32, min(100, min(size) // 6)))


@dataclass(frozen=True, slots=True)
class _Cell:
    label: str
    note: str
    score: float | None
    """PSNR in dB, None for the input and the reference."""
    picture: np.ndarray
    error: np.ndarray | None


class _Sheet:
    """Where things lie: the whole picture at the left, then rows of cells, each a crop above its error map."""

    def __init__(self, cells: int, columns: int, side: int, *, maps: bool) -> None:
        self.side, self.maps = side, maps
        self.rows = math.ceil(cells / columns)
        self.columns = math.ceil(cells / self.rows)
        self.step = (side + GAP, 2 * LINE + side + GAP // 2 + (side + GAP // 2 if maps else 0) + GAP)

    def canvas(self, title: str, aspect: float) -> Image.Image:
        """An empty drawing with its title, for a whole picture of `aspect` (width / height)."""
        self.top = MARGIN + (LINE + GAP if title else 0)
        height = self.rows * self.step[1] - GAP
        self.panel = min((2 if self.rows == 1 else 3) * self.side, round((height - 2 * LINE) * aspect))
        self.left = MARGIN + self.panel + 2 * GAP
        width = self.left + self.columns * self.step[0] - GAP + MARGIN
        drawing = Image.new("RGB", (width, self.top + height + MARGIN), BACKGROUND)
        if title:
            ImageDraw.Draw(drawing).text((MARGIN, MARGIN), title, INK, _font(TEXT + 3))
        return drawing

    def overview(self, drawing: Image.Image, picture: np.ndarray, crop: Crop) -> None:
        """The whole picture with a frame around the crop."""
        factor = self.panel / picture.shape[1]
        size = (self.panel, max(1, round(picture.shape[0] * factor)))
        at = (MARGIN, self.top + 2 * LINE)
        drawing.paste(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), at)
        x, y = at[0] + crop.x * factor, at[1] + crop.y * factor
        box = (x - 2, y - 2, x + crop.side * factor + 1, y + crop.side * factor + 1)
        ImageDraw.Draw(drawing).rectangle(box, outline=FRAME, width=2)
        where = (
            f"{picture.shape[1]} x {picture.shape[0]}, crop {crop.side} x {crop.side} at ({crop.x}, {crop.y})"
        )
        write(drawing, (at[0], at[1] - LINE), where, FAINT, self.panel)

    def cell(self, drawing: Image.Image, index: int, cell: _Cell, *, best: bool) -> None:
        """A method's name, its PSNR, its crop and its error map."""
        x, y = self._corner(index)
        write(drawing, (x, y), cell.label, ACCENT if best else INK, self.side)
        write(drawing, (x, y + LINE - 3), cell.note, ACCENT if best else FAINT, self.side)
        self._paste(drawing, cell.picture, (x, y + 2 * LINE))
        y += 2 * LINE + self.side + GAP // 2
        if cell.error is not None:
            self._paste(drawing, cell.error, (x, y))
        elif self.maps:
            ImageDraw.Draw(drawing).rectangle((x, y, x + self.side - 1, y + self.side - 1), fill=PANEL)
            if cell.label != REFERENCE:
                write(
                    drawing, (x + GAP, y + (self.side - LINE) // 2), "the input", FAINT, self.side - 2 * GAP
                )

    def legend(self, drawing: Image.Image, index: int, limit: float) -> None:
        """What the colours of the error maps mean, in the place of the reference's own map."""
        x, y = self._corner(index)
        y += 2 * LINE + self.side + GAP // 2
        bar = colours(np.linspace(0.0, 1.0, self.side - 2 * GAP))[None].repeat(14, axis=0)
        drawing.paste(Image.fromarray(bar), (x + GAP, y + self.side // 2))
        write(
            drawing,
            (x + GAP, y + self.side // 2 - 2 * LINE),
            "absolute error of luma",
            INK,
            self.side - 2 * GAP,
        )
        write(drawing, (x + GAP, y + self.side // 2 - LINE), "in levels of 255", FAINT, self.side - 2 * GAP)
        write(drawing, (x + GAP, y + self.side // 2 + 18), "0", FAINT, self.side)
        text = f"{limit:.0f}+"
        write(
            drawing,
            (x + self.side - GAP - int(_font(TEXT).getlength(text)), y + self.side // 2 + 18),
            text,
            FAINT,
            99,
        )

    def _corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, self.columns)
        return self.left + column * self.step[0], self.top + row * self.step[1]

    def _paste(self, drawing: Image.Image, picture: np.ndarray, at: tuple[int, int]) -> None:
        zoomed = Image.fromarray(picture).resize((self.side, self.side), Image.Resampling.NEAREST)
        drawing.paste(zoomed, at)


def decibels(value: float) -> str:
    """PSNR for people."""
    return "equal" if math.isinf(value) else f"{value:.2f} dB"


def _enlarge(label: str, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = size[0] // max(1, height)
    if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or (height * factor, width * factor) != size:
        found = f"{picture.shape} {picture.dtype}"
        raise ValueError(
            f"{label}: expected (H, W, 3) uint8 of {size} or a whole fraction of it, found {found}"
        )
    return picture if factor == 1 else picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _limit(predictions: Sequence[np.ndarray], reference: np.ndarray, crop: Crop) -> float:
    """A common scale for the error maps: nearly all errors in the crop fall below it."""
    target = to_y(crop.of(reference))
    errors = [np.percentile(np.abs(to_y(crop.of(p)) - target), 98.0) for p in predictions]
    return float(next((n for n in ERROR_LEVELS if n >= float(np.median(errors))), ERROR_LEVELS[-1]))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write(
    drawing: Image.Image, at: tuple[int, int], text: str, colour: tuple[int, int, int], width: int
) -> None:
    """One line of text, cut with an ellipsis to `width` pixels."""
    font = _font(TEXT)
    while font.getlength(text) > width and len(text) > 1:
        text = text[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    ImageDraw.Draw(drawing).text(at, text, colour, font)
