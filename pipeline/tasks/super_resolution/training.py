"""The trainings of super-resolution: a student, MTKD's aggregation network, PISR's teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.methods import PICTURES
from pipeline.methods.base import Modules, Phase, PhaseBuilder
from pipeline.methods.mtkd import aggregation
from pipeline.methods.pisr import TEACHER
from pipeline.methods.pisr import teacher as pisr_teacher
from pipeline.recipe.fusion import Aggregate
from pipeline.recipe.methods import PISR
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.settings import Train
from pipeline.steps.job import STUDENT, Job, Judge, weighty, weighty_method
from pipeline.steps.values import Columns
from pipeline.tasks.super_resolution.gains import gains
from pipeline.tasks.super_resolution.held_out import HeldOut
from pipeline.tasks.super_resolution.privileged import decoder_of, load_privileged
from students import build, start
from students.expansion import expand

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob(Job):
    """A training on tiles and on what is cached beside them."""

    columns: dict[str, Columns]
    """Where the tensors of a batch are cached, by name."""
    skip_weights: tuple[float, ...] = ()
    """Where the learned sum of an aggregation network's skip starts."""
    taught_by: str | None = None
    """Where the weights of PISR's teacher lie (path or URI), for a student that has one."""

    @property
    def settings(self) -> Train:
        recipe: Recipe = self.spec
        if self.role == "aggregation":
            assert isinstance(recipe.fusion, Aggregate)
            return recipe.fusion.train
        if self.role == "teacher":
            assert isinstance(recipe.method, PISR)
            return recipe.method.pretrain or recipe.train
        return recipe.train

    @property
    def scored(self) -> bool:
        return self.role == STUDENT

    def params(self) -> dict[str, Any]:
        shown: tuple[str, ...] = ("scale", "fusion")
        if self.role != "aggregation":
            shown = ("scale", "method", "student", "train", "fusion")
        return {**{k: self.recipe[k] for k in shown}, "seed": self.seed}

    def given(self, device: str) -> dict[str, nn.Module]:
        return {} if self.taught_by is None else {TEACHER: load_privileged(self.spec, self.taught_by)}

    def phases(self, device: str) -> list[PhaseBuilder]:
        recipe: Recipe = self.spec
        if self.role == "aggregation":
            assert isinstance(recipe.fusion, Aggregate)
            return list(aggregation(recipe.fusion, len(recipe.teachers), recipe.scale, self.skip_weights))
        if self.role == "teacher":
            assert isinstance(recipe.method, PISR)
            return list(pisr_teacher(recipe.method, recipe.train, decoder_of(recipe), recipe.scale))
        student = partial(build, recipe.student.name, recipe.scale, **recipe.student.options)
        makers = list(PICTURES[recipe.method.name](recipe.method, recipe.train, student))
        return [expanded(make, recipe.student.expand) for make in makers]

    def sampler(self, phase: Phase) -> Sampler:
        recipe: Recipe = self.spec
        cache = Store.open(recipe.cache.root)
        assert isinstance(phase.settings, Train)
        sources = {name: _source(cache, self.columns[name]) for name in phase.sources}
        known = None
        if phase.settings.sampling == "gain":
            known = gains(sources["lr"], sources.get("target", sources["hr"]), recipe.scale)
        return Sampler(
            sources,
            scale=recipe.scale,
            patch=phase.settings.patch,
            batch=phase.settings.batch,
            seed=self.seed,
            margin=recipe.data.margin,
            require_hr=phase.require_hr,
            gains=known,
        )

    def judge(self, phase: Phase, device: str) -> Judge | None:
        recipe: Recipe = self.spec
        if self.columns["lr"].held_out is None:
            return None
        return HeldOut(Store.open(recipe.cache.root), self.columns, recipe.scale, phase, device)

    def facts(self) -> dict[str, Any]:
        recipe: Recipe = self.spec
        fuses = self.role == "aggregation"
        facts: dict[str, Any] = {
            "kind": self.role,
            "architecture": "aggregation" if fuses else recipe.student.name,
            "options": recipe.fusion.model_dump(mode="json") if fuses else recipe.student.options,
            "scale": recipe.scale,
            "method": "mtkd stage 1" if fuses else recipe.method.name,
        }
        if self.role != "teacher" and not fuses and recipe.student.expand != 1:
            facts["expand"] = recipe.student.expand
        if self.role == "teacher":
            assert isinstance(recipe.method, PISR)
            facts |= {"teacher": recipe.method.teacher, "larger": recipe.method.larger}
        return facts


def expanded(make: PhaseBuilder, factor: int) -> PhaseBuilder:
    """The phase with its artefact expanded, once its method has given it its start and looked up its layers."""

    def build(artefacts: Modules) -> Phase:
        phase = make(artefacts)
        expand(phase.modules[phase.artefact], factor)
        return phase

    return build if factor != 1 else make


def job_fingerprint(recipe: Recipe, role: str, seed: int, manifests: dict[str, str]) -> str:
    """Covers what changes the weights: settings, seed and cached inputs, not how often one looks."""
    dump = recipe.model_dump(mode="json")
    if role == "aggregation":
        own = {**dump["fusion"], "train": weighty(dump["fusion"]["train"])}
    elif role == "teacher":
        method = {k: dump["method"][k] for k in ("name", "teacher", "larger", "imitation")}
        train = dump["method"]["pretrain"] or dump["train"]
        decoder = {k: v for k, v in dump["student"].items() if k != "expand"}  # it trains as it is
        own = {"method": method, "student": decoder, "train": weighty(train)}
    else:
        method = weighty_method(dump["method"])
        if method.get("checkpoint"):
            method["checkpoint"] = ""  # its content is among the inputs
        own = {"method": method, "student": dump["student"], "train": weighty(dump["train"])}
    if role != "aggregation" and (begun := start(recipe.student.name)) > 1:
        own["start"] = begun
    return fingerprint(
        {
            "version": VERSION,
            "kind": role,
            "scale": recipe.scale,
            "seed": seed,
            "own": own,
            "inputs": manifests,
        }
    )


def _source(cache: Store, columns: Columns) -> Source:
    return Source(cache, load_manifest(cache, columns.train), columns.column)
