"""Queries and what networks answer them first: right answers framed in green, wrong ones in red."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.report.pictures import BACKGROUND, FAINT, INK, MARGIN, write
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.showing import shown_student

if TYPE_CHECKING:
    from pipeline.road.run import Run

QUERIES = 6
CELL, APART, FRAME, TEXT = 76, 6, 4, 190
"""Pixels: of a picture's side, between pictures, of a frame, and for a network's name."""
RIGHT, WRONG = (94, 214, 150), (240, 96, 84)


def first_hits(run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> Drawing:
    """Queries from the one that the student answers worst to the one it answers best, evenly between, each answered by
    the teacher (all of them together, where there are several) and by the student.
    """
    gallery = Gallery(run.planner.store, outcome.prepared.samples.manifests["test"])
    names = [f"{outcome.prepared.all[-1].label} (HR)"] if outcome.prepared.all else []
    names += [name] if (name := shown_student(outcome)) else []
    answers = {name: {a["query"]: a for a in curves[name]["answered"]} for name in names if name in curves}
    judged = list(answers.values())[-1]
    ordered = sorted(judged, key=lambda query: (judged[query]["precision"], query))
    picked = [ordered[i] for i in np.unique(np.linspace(0, len(ordered) - 1, QUERIES).astype(int))]
    most = max(len(a["hits"]) for found in answers.values() for a in found.values())
    step, block = CELL + APART, len(answers) * (CELL + APART) + 2 * APART
    left = MARGIN + step + APART
    size = (left + TEXT + most * step + MARGIN, 2 * MARGIN + len(picked) * block)
    drawing = Image.new("RGB", size, BACKGROUND)
    for row, query in enumerate(picked):
        top = MARGIN + row * block
        _paste(drawing, gallery, query, (MARGIN, top), INK)
        for line, (name, found) in enumerate(answers.items()):
            y, answer = top + line * step, found[query]
            write(drawing, (left, y + CELL // 2 - 16), name, INK, TEXT - 8)
            said = f"average precision {answer['precision']:.2f}"
            write(drawing, (left, y + CELL // 2 + 2), said, FAINT, TEXT - 8)
            for i, (hit, right) in enumerate(zip(answer["hits"], answer["right"], strict=True)):
                _paste(drawing, gallery, hit, (left + TEXT + i * step, y), RIGHT if right else WRONG)
    caption = (
        "Queries (left) and the first answers to them, shown at HR: right ones in green, wrong ones in red; from the "
        "query that the student answers worst to the one that it answers best"
    )
    return caption, np.asarray(drawing)


def _paste(
    drawing: Image.Image, gallery: Gallery, number: int, at: tuple[int, int], frame: tuple[int, int, int]
) -> None:
    """One picture in its frame; its shape is kept."""
    picture = Image.fromarray(gallery.hr(np.array([number]))[0])
    inner = CELL - 2 * FRAME
    zoom = inner / max(picture.size)
    width, height = (max(round(side * zoom), 1) for side in picture.size)
    ImageDraw.Draw(drawing).rectangle((*at, at[0] + CELL - 1, at[1] + CELL - 1), fill=frame)
    place = (at[0] + (CELL - width) // 2, at[1] + (CELL - height) // 2)
    drawing.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
