"""One training as a job by value: it can be sent to a worker on another machine, and run again after a kill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.manifest import load as load_manifest
from pipeline.cache.sampler import Sampler, Source
from pipeline.cache.store import Store
from pipeline.methods import PICTURES
from pipeline.methods.base import Phase
from pipeline.methods.mtkd import aggregation
from pipeline.methods.pisr import TEACHER
from pipeline.methods.pisr import teacher as pisr_teacher
from pipeline.recipe.methods import PISR
from pipeline.recipe.recipe import Aggregate, Recipe
from pipeline.recipe.settings import Train
from pipeline.tasks.super_resolution.privileged import decoder_of, load_privileged
from pipeline.tasks.super_resolution.teach import as_levels, luma_error, psnr, read, to_stored
from pipeline.training import weights
from pipeline.training.loop import Curves, Hooks, train
from students import build
from students.colour import grey

VERSION = 1
OBSERVED_ONLY = ("log_every", "evaluate_every", "keep")
HELD_OUT_TILES = 64


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a named tensor of the batch is cached."""

    column: str
    train: str
    """Manifest of the training tiles, relative to the cache."""
    held_out: str | None
    """Manifest of the held-out tiles, if there are any."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """Everything that a training needs, by value."""

    label: str
    kind: Literal["student", "aggregation", "teacher"]
    """A student, MTKD's aggregation network, or PISR's teacher."""
    recipe: dict[str, Any]
    seed: int
    columns: dict[str, Columns]
    folder: str
    """Where checkpoints and the result go, relative to the output root."""
    fingerprint: str
    skip_weights: tuple[float, ...] = ()
    """Where the learned sum of an aggregation network's skip starts."""
    method: str = ""
    """The method's name, or the name of the variant that its settings come from."""
    taught_by: str | None = None
    """Where the weights of PISR's teacher lie (path or URI), for a student that has one."""

    @property
    def spec(self) -> Recipe:
        return Recipe.model_validate(self.recipe)

    @property
    def group(self) -> str:
        """The label without the seed: what the seeds of one training share."""
        return self.label.removesuffix(f"-s{self.seed}")

    def output(self) -> Store:
        recipe = self.spec
        root = f"{recipe.output}/{recipe.name}" if self.kind == "student" else recipe.cache.root
        return Store.open(Store.open(root).where(self.folder))

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole job."""
        recipe = self.spec
        if self.kind == "aggregation":
            assert isinstance(recipe.fusion, Aggregate)
            return recipe.fusion.train.steps
        if self.kind == "teacher":
            assert isinstance(recipe.method, PISR)
            return (recipe.method.pretrain or recipe.train).steps
        return recipe.train.steps

    def result(self) -> dict[str, Any] | None:
        """What a finished job left, or None; damaged results are set aside (`weights.finished`)."""
        return weights.finished(self.output(), self.fingerprint)

    def run(
        self, *, device: str = "cpu", rank: int = 0, world: int = 1, listener: Listener | None = None
    ) -> dict[str, Any] | None:
        """`run_job` of this job."""
        return run_job(self, device=device, rank=rank, world=world, listener=listener)


def job_fingerprint(recipe: Recipe, kind: str, seed: int, manifests: dict[str, str]) -> str:
    """Covers what changes the weights: settings, seed and cached inputs, not how often one looks."""
    dump = recipe.model_dump(mode="json")
    if kind == "aggregation":
        own = {k: v for k, v in dump["fusion"].items() if k != "train"} | {
            "train": _weighty(dump["fusion"]["train"])
        }
    elif kind == "teacher":
        method = {k: dump["method"][k] for k in ("name", "teacher", "larger", "imitation")}
        train = dump["method"]["pretrain"] or dump["train"]
        own = {"method": method, "student": dump["student"], "train": _weighty(train)}
    else:
        own = {"method": dump["method"], "student": dump["student"], "train": _weighty(dump["train"])}
    return fingerprint(
        {
            "version": VERSION,
            "kind": kind,
            "scale": recipe.scale,
            "seed": seed,
            "own": own,
            "inputs": manifests,
        }
    )


def located(recipe: Recipe) -> Recipe:
    """The recipe with cache and output as URIs: a worker of Ray Train runs in a folder of its own."""
    cache = recipe.cache.model_copy(update={"root": Store.open(recipe.cache.root).uri})
    return recipe.model_copy(update={"cache": cache, "output": Store.open(recipe.output).uri})


def _weighty(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if k not in OBSERVED_ONLY}


def phases(job: TrainJob) -> list[Callable[[dict[str, nn.Module]], Phase]]:
    """The phases of a job's method."""
    recipe = job.spec
    if job.kind == "aggregation":
        assert isinstance(recipe.fusion, Aggregate)
        return list(aggregation(recipe.fusion, len(recipe.teachers), recipe.scale, job.skip_weights))
    if job.kind == "teacher":
        assert isinstance(recipe.method, PISR)
        return list(pisr_teacher(recipe.method, recipe.train, decoder_of(recipe), recipe.scale))
    student = partial(build, recipe.student.name, recipe.scale, **recipe.student.options)
    return list(PICTURES[recipe.method.name](recipe.method, recipe.train, student))


class Stopped(Exception):
    """Raised by a listener's `sync` on every rank: this training goes no further."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where a training's news go; all optional."""

    log: Callable[[dict[str, float], int], None] | None = None
    picture: Callable[[np.ndarray, int], None] | None = None
    """(HWC uint8 strip of held-out tiles, step) after each evaluation."""
    sync: Callable[[dict[str, float], int], None] | None = None
    """(metrics, step) on every rank after each checkpoint; the metrics say `last_phase` (1 or 0) too."""
    urgent: Callable[[], bool] | None = None
    """Asked on every rank now and then; True where a checkpoint is due at once, because the machine may go."""


def run_job(
    job: TrainJob, *, device: str = "cpu", rank: int = 0, world: int = 1, listener: Listener | None = None
) -> dict[str, Any] | None:
    """Train every phase of a job from wherever it stands; rank 0 writes weights and result and returns the result."""
    if (done := job.result()) is not None:
        return done
    listener = listener or Listener()
    recipe, output = job.spec, job.output()
    artefacts: dict[str, nn.Module] = {}
    if job.taught_by is not None:
        artefacts[TEACHER] = load_privileged(recipe, job.taught_by)
    curves: dict[str, Any] = {}
    modules: nn.Module | None = None
    makers = phases(job)
    for number, make in enumerate(makers):
        torch.manual_seed(job.seed)
        phase = make(artefacts)
        cache = Store.open(recipe.cache.root)
        assert isinstance(phase.settings, Train)
        sampler = Sampler(
            {name: _source(cache, job.columns[name]) for name in phase.sources},
            scale=recipe.scale,
            patch=phase.settings.patch,
            batch=phase.settings.batch,
            seed=job.seed,
            margin=recipe.data.margin,
            require_hr=phase.require_hr,
        )
        judge = HeldOut(cache, job, phase, device) if rank == 0 and job.columns["lr"].held_out else None
        hooks = Hooks(
            evaluate=partial(_evaluate, judge, listener) if judge else None,
            log=listener.log,
            sync=_synced(listener, last=number == len(makers) - 1),
            urgent=listener.urgent,
        )
        result: Curves = train(
            phase,
            sampler,
            folder=Store.open(output.where(f"{number}-{phase.name}")),
            fingerprint=job.fingerprint,
            seed=job.seed,
            device=torch.device(device),
            rank=rank,
            world=world,
            hooks=hooks,
        )
        modules = phase.modules[phase.artefact]
        artefacts[phase.name] = modules
        curves[phase.name] = result.values
    assert modules is not None
    return _finish(job, output, modules, curves) if rank == 0 else None


def _synced(listener: Listener, last: bool) -> Callable[[dict[str, float], int], None] | None:
    sync = listener.sync
    if sync is None:
        return None
    return lambda metrics, step: sync({**metrics, "last_phase": float(last)}, step)


def _finish(job: TrainJob, output: Store, model: nn.Module, curves: dict[str, Any]) -> dict[str, Any]:
    recipe = job.spec
    facts = {
        "kind": job.kind,
        "architecture": "aggregation" if job.kind == "aggregation" else recipe.student.name,
        "options": recipe.fusion.model_dump(mode="json")
        if job.kind == "aggregation"
        else recipe.student.options,
        "scale": recipe.scale,
        "method": "mtkd stage 1" if job.kind == "aggregation" else recipe.method.name,
        "seed": job.seed,
        "fingerprint": job.fingerprint,
    }
    if job.kind == "teacher":
        assert isinstance(recipe.method, PISR)
        facts |= {"teacher": recipe.method.teacher, "larger": recipe.method.larger}
    return weights.write(output, model, facts, {"label": job.label, "curves": curves})


def _source(cache: Store, columns: Columns) -> Source:
    return Source(cache, load_manifest(cache, columns.train), columns.column)


def _evaluate(judge: HeldOut, listener: Listener, model: nn.Module, step: int) -> dict[str, float]:
    value, strip = judge(model)
    if listener.picture is not None:
        listener.picture(strip, step)
    return {"held_out/psnr_y": value}


class HeldOut:
    """PSNR of a phase's artefact on the held-out tiles, and a strip of pictures to look at."""

    def __init__(self, cache: Store, job: TrainJob, phase: Phase, device: str) -> None:
        self.device, self.scale = device, job.spec.scale
        names = dict.fromkeys((*phase.inputs, "hr", *(n for n in phase.sources if n != "lr"), "lr"))
        self.inputs, self.shown = phase.inputs, phase.shown
        self.tiles = {n: self._first(cache, job.columns[n]) for n in names if n in job.columns}

    @staticmethod
    def _first(cache: Store, columns: Columns) -> np.ndarray:
        assert columns.held_out is not None
        manifest = load_manifest(cache, columns.held_out)
        rows, have = [], 0
        for receipt in manifest.shards:
            rows.append(read(cache, receipt).columns[columns.column][: HELD_OUT_TILES - have])
            have += len(rows[-1])
            if have >= HELD_OUT_TILES:
                break
        return np.concatenate(rows)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> tuple[float, np.ndarray]:
        """(PSNR in dB over all tiles together, strip HWC uint8 of one tile: LR, targets, output, HR)."""
        error, pixels = 0.0, 0
        shown: np.ndarray | None = None
        extra: np.ndarray | None = None
        for begin in range(0, len(self.tiles["hr"]), 8):
            rows = slice(begin, begin + 8)
            tensors = [self._tensor(self.tiles[n][rows]) for n in self.inputs]
            x = tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=1)
            y = model(x).float()
            sr = to_stored(grey(y) if y.shape[1] == 1 else y, "uint8")
            if shown is None:
                shown = sr
                extra = to_stored(self.shown(model, x).float(), "uint8") if self.shown else None
            e, n = luma_error(sr, self.tiles["hr"][rows], self.scale)
            error, pixels = error + e, pixels + n
        assert shown is not None
        return psnr([{"squared_error": error, "pixels": pixels}]), self._strip(shown, extra)

    def _tensor(self, stored: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(np.array(stored)).to(self.device).permute(0, 3, 1, 2).float()
        return x / 255 if stored.dtype == np.uint8 else x

    def _strip(self, sr: np.ndarray, extra: np.ndarray | None) -> np.ndarray:
        # The tile with the most detail among those shown says the most.
        best = int(np.argmax([t.astype(np.float32).var() for t in self.tiles["hr"][: len(sr)]]))
        small = [self.tiles["lr"][best], *([] if extra is None else [extra[best]])]
        lr = np.concatenate([p.repeat(self.scale, 0).repeat(self.scale, 1) for p in small], axis=1)
        targets = [as_levels(t[best]) for n, t in self.tiles.items() if n not in ("lr", "hr")]
        return np.concatenate([lr, *targets, sr[best], self.tiles["hr"][best]], axis=1)
