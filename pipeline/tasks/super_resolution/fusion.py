"""All teachers as one: weights that are fitted, a network that is trained, and where the fused pictures lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.cache import records
from pipeline.cache.fingerprint import fingerprint
from pipeline.cache.format import Receipt
from pipeline.cache.manifest import Manifest
from pipeline.recipe.fusion import Aggregate, Bands, Mask, Regions, Weighted
from pipeline.recipe.recipe import Recipe
from pipeline.steps.job import located
from pipeline.steps.planner import Planner
from pipeline.steps.values import Column, Outputs, Samples
from pipeline.tasks.super_resolution import fuse as fusing
from pipeline.tasks.super_resolution.teach import output_manifest
from pipeline.tasks.super_resolution.training import TrainJob, job_fingerprint
from teachers import agreement
from teachers import fusion as fixed
from teachers.fusion import Weights
from teachers.regional import REGIONS, Regional

if TYPE_CHECKING:
    from pipeline.tasks.base import Task

FUSED = "fused"
Fit = TypeVar("Fit")


@dataclass(frozen=True, slots=True)
class PictureFusion:
    """How several teachers' pictures become one, by value."""

    kind: str
    folder: str
    """Of the fused pictures, in the cache."""
    weights: fusing.Chosen | None
    network: str | None
    """Aggregation weights, relative to the cache."""

    @property
    def identity(self) -> str:
        """Follows from everything that shapes the fused pixels."""
        return f"fused-{self.folder.split('-')[-1]}"


def fuse(
    task: Task, planner: Planner, samples: Samples, members: Sequence[Outputs]
) -> tuple[PictureFusion, Column]:
    """The recipe's fusion, its weights fitted or its network trained where they are missing."""
    recipe: Recipe = planner.recipe
    config = recipe.fusion
    folders = [m.cached.folder for m in members if m.cached]
    weights: fusing.Chosen | None = None
    network: str | None = None
    extra: dict[str, object] = {}
    if isinstance(config, Weighted):
        weights = fitted(planner, config.weights, samples, members)
        extra = {"weights": asdict(weights)}
    elif isinstance(config, Regions):
        weights = by_region(planner, config.levels, samples, members)
        extra = {"regions": asdict(weights)}
    elif isinstance(config, Bands):
        labels = [m.label for m in members]
        places = labels.index(config.low), labels.index(config.details)
        weights = fixed.Bands(*places, config.wavelet, config.shares)
        extra = {"bands": asdict(weights)}
    elif isinstance(config, Mask):
        weights = agreement.Mask(config.radius, config.softness)
        extra = {"mask": asdict(weights)}
    elif isinstance(config, Aggregate):
        job = aggregation_job(task, planner, samples, members)
        planner.train([job])
        network = f"{job.folder}/weights.safetensors"
        extra = {"job": job.fingerprint}
    folder = fusing.fusion_folder(samples.folder, config.kind, folders, extra)
    cached = [m.cached for m in members if m.cached]
    by_key = [{r.key: r for _, m in c.splits() for r in m.shards} for c in cached]
    identity: dict[str, object] = {
        "kind": config.kind,
        "teachers": [m.label for m in members],
        "sha256": [m.network.sha256 for m in members],
        **extra,
    }

    def step(tile: Receipt) -> fusing.FuseTask:
        return fusing.FuseTask(
            cache=planner.store.uri,
            samples=tile,
            teachers=tuple(receipts[tile.key] for receipts in by_key),
            folder=folder,
            scale=recipe.scale,
            dtype=recipe.cache.dtype,
            kind=config.kind,
            weights=weights,
            network={"config": config.model_dump(), "weights": network} if network else {},
        )

    def manifest(tiles: Manifest, receipts: Mapping[str, Receipt]) -> Manifest:
        return output_manifest(identity, folder, tiles, receipts)

    gpus = recipe.teach.gpus_per_actor if network else 0.0
    return PictureFusion(config.kind, folder, weights, network), Column(FUSED, folder, step, manifest, gpus)


def fitted(
    planner: Planner, given: dict[str, float] | str, samples: Samples, members: Sequence[Outputs]
) -> Weights:
    """The given weights, or those of least squared error on the training tiles (fitted once)."""
    if isinstance(given, dict):
        return Weights(tuple(given[m.label] for m in members))

    def own(found: dict[str, Any]) -> Weights:
        if len(found["values"]) != len(members):
            raise ValueError(f"it has {len(found['values'])} weights for {len(members)} teachers")
        return Weights(tuple(map(float, found["values"])), float(found["offset"]))

    return _known(planner, samples, members, (), own)


def by_region(planner: Planner, levels: int, samples: Samples, members: Sequence[Outputs]) -> Regional:
    """Weights of least squared error by region and band (fitted once)."""
    shape = len(REGIONS), len(members) * (levels + 1) + 1

    def own(found: dict[str, Any]) -> Regional:
        values = tuple(tuple(map(float, row)) for row in found["values"])
        if (len(values), *{len(row) for row in values}) != shape:
            raise ValueError(f"it does not have {shape[1]} weights for each of {shape[0]} regions")
        return Regional(int(found["levels"]), values)

    return _known(planner, samples, members, (levels,), own)


def _known(
    planner: Planner,
    samples: Samples,
    members: Sequence[Outputs],
    kind: tuple[int, ...],
    own: Callable[[dict[str, Any]], Fit],
) -> Fit:
    """What was fitted before to these tiles and outputs, or is fitted now."""
    columns = [m.cached.train for m in members if m.cached]
    inputs = [samples.train.fingerprint, *(manifest.fingerprint for manifest in columns)]
    if kind:
        inputs.append(f"regions {kind}")
    rel = f"fused/fits/{fingerprint(inputs)}.json"
    if (known := records.load(planner.store, rel, own)) is not None:
        return known
    planner.tracked.begin()
    (weights,) = planner.engine.map(_fit, [(planner.store.uri, samples.train, columns, *kind)])
    records.save(planner.store, rel, asdict(weights))
    return own(asdict(weights))


def aggregation_job(task: Task, planner: Planner, samples: Samples, members: Sequence[Outputs]) -> TrainJob:
    """The training of the aggregation network on these teachers' cached outputs."""
    recipe: Recipe = planner.recipe
    cached = {f"teacher{i}": m.cached for i, m in enumerate(members) if m.cached}
    columns = {"lr": samples.columns("lr"), "hr": samples.columns("hr")}
    columns |= {name: c.columns("sr") for name, c in cached.items()}
    inputs = {"tiles": samples.train.fingerprint, **{n: c.train.fingerprint for n, c in cached.items()}}
    config = recipe.fusion
    assert isinstance(config, Aggregate)
    start: tuple[float, ...] = ()
    if config.skip == "weighted" and not config.official:
        start = fitted(planner, "fit", samples, members).values
    print_ = job_fingerprint(recipe, "aggregation", recipe.seed, inputs)
    return TrainJob(
        task=task,
        label="aggregation",
        role="aggregation",
        recipe=located(recipe),
        seed=recipe.seed,
        gap=recipe.scale,
        columns=columns,
        folder=f"fused/networks/{print_}",
        fingerprint=print_,
        skip_weights=start,
    )


def _fit(asked: tuple, device: str) -> Weights | Regional:
    return fusing.fit_weights(*asked)
