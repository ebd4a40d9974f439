"""What is known of every model on every test picture: read, added to, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.store import Store
from pipeline.deploy.perceptual import Measure
from pipeline.steps.job import STUDENT
from pipeline.tasks.super_resolution.score import BOOKS, Model, Scored

Book = dict[str, tuple[float, float]]
"""{place of a test picture: (PSNR dB, SSIM)} of one model."""
Nearness = dict[str, tuple[float, float, float]]
"""{place of a test picture: (fidelity dB, consistency dB, sharpness)} of one model beside a reference."""
Distances = dict[str, float]
"""{place of a test picture: perceptual distance to HR} of one model."""


class Books:
    """Scores of students lie with the run, those of what is cached lie in the cache, for every run on it."""

    def __init__(
        self,
        models: Sequence[Model],
        cache: Store,
        output: Store,
        reference: str = "",
        measures: Sequence[Measure] = (),
    ) -> None:
        """`reference`: identity of the model that the others are compared with; `measures`: further distances."""
        self._models, self._cache, self._output = models, cache, output
        self.reference, self.measures = reference, {m.metric.key: m for m in measures}
        self.scores: dict[str, Book] = {m.identity: self._load(m, _book_file(m), _pairs) for m in models}
        self.near: dict[str, Nearness] = {
            m.identity: self._load(m, self._near_file(m), _triples)
            for m in models
            if reference not in ("", m.identity)
        }
        self.distances: dict[str, dict[str, Distances]] = {
            key: {m.identity: self._load(m, self._far_file(m, key), _singles) for m in models}
            for key in self.measures
        }

    def lacking(self, place: str) -> tuple[str, ...]:
        """Identities of the models of which something is not known on a picture."""
        kept: list[Mapping[str, Mapping[str, Any]]] = [self.scores, self.near, *self.distances.values()]
        return tuple(
            m.identity for m in self._models if any(place not in b.get(m.identity, (place,)) for b in kept)
        )

    def add(self, place: str, scored: Scored) -> None:
        """Enter what was measured on one picture."""
        for key, score in scored.scores.items():
            self.scores[key][place] = score
        for key, values in scored.against.items():
            self.near[key][place] = values
        for key, distances in scored.perceptual.items():
            for name, value in distances.items():
                self.distances[name][key][place] = value

    def save(self) -> None:
        for model in self._models:
            shelf = self._shelf(model)
            records.save(shelf, _book_file(model), self.scores[model.identity])
            if model.identity in self.near:
                records.save(shelf, self._near_file(model), self.near[model.identity])
            for key, books in self.distances.items():
                records.save(shelf, self._far_file(model, key), books[model.identity])

    def means(self, places: Mapping[str, Sequence[str]]) -> dict[str, dict[str, dict[str, float]]]:
        """{identity: {set: {metric: mean}}} of nearness and distances, for {set: places}, as far as measured."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for model in self._models:
            of_model = found.setdefault(model.identity, {name: {} for name in places})
            for name, on in places.items():
                if (near := self.near.get(model.identity)) is not None:
                    columns = zip(*(near[place] for place in on), strict=True)
                    of_model[name] |= dict(zip(NEAR, (float(np.mean(c)) for c in columns), strict=True))
                for key, books in self.distances.items():
                    values = [books[model.identity].get(place) for place in on]
                    if None not in values:
                        of_model[name][key] = float(np.mean(values))  # type: ignore[arg-type]
        return found

    def _load(self, model: Model, rel: str, make: Callable[[dict[str, Any]], Any]) -> Any:
        return records.load(self._shelf(model), rel, make) or {}

    def _shelf(self, model: Model) -> Store:
        return self._output if model.role == STUDENT else self._cache

    def _near_file(self, model: Model) -> str:
        return f"fidelity/1/{fingerprint([model.identity, self.reference])}.json"

    def _far_file(self, model: Model, key: str) -> str:
        return f"perceptual/1/{self.measures[key].identity}/{model.identity}.json"


NEAR = ("fidelity", "consistency", "sharpness")


def _book_file(model: Model) -> str:
    return f"{BOOKS}/{model.identity}.json"


def _pairs(book: dict[str, Any]) -> Book:
    return {place: (float(psnr), float(ssim)) for place, (psnr, ssim) in book.items()}


def _triples(book: dict[str, Any]) -> Nearness:
    return {place: (float(f), float(c), float(s)) for place, (f, c, s) in book.items()}


def _singles(book: dict[str, Any]) -> Distances:
    return {place: float(value) for place, value in book.items()}
