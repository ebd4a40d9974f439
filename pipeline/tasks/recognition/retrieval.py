"""Queries to a gallery: pictures of the same come first, of people who were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pipeline.report.table import Metric
from pipeline.steps.values import Outcome
from pipeline.tasks.base import Drawing
from pipeline.tasks.recognition import drawings, intervals, metrics, strips
from pipeline.tasks.recognition.answers import answers_of
from pipeline.tasks.recognition.recipe import Recognition
from pipeline.tasks.recognition.sampler import Gallery
from pipeline.tasks.recognition.task import RecognitionTask

if TYPE_CHECKING:
    from pipeline.road.run import Run


class Retrieval(RecognitionTask):
    """Which pictures of a gallery show the same as a query."""

    name = "retrieval"
    asks = "embedding"
    figures = (Metric("map", "mAP", 4), Metric("rank1", "rank-1", 4), Metric("rank5", "rank-5", 4))

    def scores(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """With queries of its own where the layout names them; else every picture asks for the others."""
        embeddings = answers_of(model, gallery, recipe, gap, device, "embedding")
        everything = np.arange(len(gallery))
        cameras = gallery.rows.take("camera", everything)
        roles = gallery.rows.take("role", everything)
        asks, answers = everything[roles == 1], everything[roles == 2]
        same = None
        if not len(asks):
            asks = answers = same = everything
            if len(np.unique(cameras)) == 1:  # no cameras known: only the picture itself is left out
                cameras = everything
        values, curves = metrics.retrieval(
            embeddings[asks],
            embeddings[answers],
            gallery.labels[asks],
            gallery.labels[answers],
            cameras[asks],
            cameras[answers],
            same,
        )
        for answer in curves["answered"]:  # by their numbers in the split
            answer["query"] = int(asks[answer["query"]])
            answer["hits"] = [int(answers[hit]) for hit in answer["hits"]]
        return values, curves

    def scores_at_the_end(
        self, model: nn.Module, gallery: Gallery, recipe: Recognition, gap: int, device: str
    ) -> tuple[dict[str, float], dict[str, Any]]:
        values, curves = self.scores(model, gallery, recipe, gap, device)
        answers = curves["answered"]
        columns = {"map": np.array([a["precision"] for a in answers])}
        ranks = np.array([a["rank"] for a in answers])
        columns |= {f"rank{k}": (ranks < k).astype(float) for k in (1, 5)}
        asked = gallery.labels[[a["query"] for a in answers]]
        return values | intervals.of_means(columns, intervals.units_of(asked)), {
            **curves,
            "answered": metrics.some(answers),
        }

    def drawn(self, run: Run, outcome: Outcome, curves: Mapping[str, Any]) -> dict[str, Drawing]:
        lines = {name: [list(range(1, len(c["cmc"]) + 1)), c["cmc"]] for name, c in curves.items()}
        words = ("CMC: cumulative matching", "rank", "queries answered")
        cmc = drawings.curve(lines, *words, logarithmic=False)
        return {"cmc": cmc, "hits": strips.first_hits(run, outcome, curves)}
